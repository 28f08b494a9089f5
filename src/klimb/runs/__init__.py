"""The files of a run, and nothing else."""
