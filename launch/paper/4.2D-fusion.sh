#!/bin/sh
# Do two towers see more than one?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.2D-fusion.sh seed=1,2,3
exec prism sweep paper/4.2D-fusion "$@"
