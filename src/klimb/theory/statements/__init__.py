"""The statements of the theory, one file per section: each a function that computes both sides."""
