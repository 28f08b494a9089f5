"""Figures of the theory: each module has `compute` (the data), `draw` (the figure) and `summary` (a few lines)."""
