#!/bin/sh
# What do more instructions bring?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.4B-data.sh seed=1,2,3
exec prism sweep paper/4.4B-data "$@"
