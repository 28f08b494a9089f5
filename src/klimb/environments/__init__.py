"""Environments: the protocol, `make`, and one file for each environment or adapter."""
