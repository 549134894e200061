#!/bin/sh
# How is an image made square?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.2B-resize.sh seed=1,2,3
exec prism sweep paper/4.2B-resize "$@"
