"""Improve: the update rules, one per file, and the mathematics that they share."""
