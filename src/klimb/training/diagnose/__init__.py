"""Finds the operation that produced the first NaN of an iteration."""
