"""Pages and comparisons, made from the files of runs."""
