"""The plan's jobs as processes of this machine."""
