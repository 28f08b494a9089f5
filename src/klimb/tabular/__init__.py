"""Tabular problems: where everything a rule estimates can be computed exactly."""
