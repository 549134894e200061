#!/bin/sh
# Is one epoch enough?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.4A-train-time.sh seed=1,2,3
exec prism sweep paper/4.4A-train-time "$@"
