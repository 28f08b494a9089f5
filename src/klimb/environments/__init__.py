"""Environments: the interfaces, `make`, and one file per environment or adapter."""
