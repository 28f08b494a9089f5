"""The training loop: `iteration` first (read this), then `program` (seeds, devices), then `driver` (time, files)."""
