"""The search: many ways to prune one model, each tried, measured and remembered; and which of them no other beats."""
