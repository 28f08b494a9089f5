"""What somebody sees who watches a training: a panel in a terminal or a notebook, or lines."""
