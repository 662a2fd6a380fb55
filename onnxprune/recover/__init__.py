"""Recovery of what a cut destroys: statistics, least-squares reconstruction, distillation. Never changes a width."""
