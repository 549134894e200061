"""The plan's jobs as SLURM jobs."""
