"""Writers of results: one record, several formats. Nothing here computes or decides."""
