#!/bin/sh
# Are text-only conversations needed?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.3B-text-only-data.sh seed=1,2,3
exec prism sweep paper/4.3B-text-only-data "$@"
