"""Figures of the theory: each module computes its `numbers`, draws them, and says them in a few lines."""
