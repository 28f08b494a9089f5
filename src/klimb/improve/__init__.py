"""Improve: the update rules, one a file, and the mathematics they share."""
