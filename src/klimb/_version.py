"""The version, in one place: the package's metadata and every file that klimb writes read it here."""

__version__ = "0.2.0"
