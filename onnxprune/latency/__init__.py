"""Honest timing of models: against each other, node by node, and width by width."""
