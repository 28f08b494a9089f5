"""Sections of the lectures that one can run: exact gradients, statements checked on both sides, figures."""
