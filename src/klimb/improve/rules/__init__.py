"""The update rules, one per file."""
