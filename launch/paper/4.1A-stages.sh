#!/bin/sh
# Is a stage that trains the projector alone worth its cost?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.1A-stages.sh seed=1,2,3
exec prism sweep paper/4.1A-stages "$@"
