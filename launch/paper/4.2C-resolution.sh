#!/bin/sh
# What do more pixels bring?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.2C-resolution.sh seed=1,2,3
exec prism sweep paper/4.2C-resolution "$@"
