"""What each command of `prism` does once its arguments are parsed: `run(args) -> exit code`."""
