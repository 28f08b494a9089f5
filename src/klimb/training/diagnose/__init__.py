"""Where the first NaN of an iteration was made."""
