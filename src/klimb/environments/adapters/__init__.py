"""Environments of other packages, one file per package."""
