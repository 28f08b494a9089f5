"""What the theory says, one file a section: every statement as a function that computes both of its sides."""
