"""Settings that suit a rule in some environments, as data files."""
