"""The statements of the theory, one file per section: each a function of a problem `p` that computes both sides."""
