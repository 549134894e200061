#!/bin/sh
# Other language models in the same recipe.
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/better-lms.sh seed=1,2,3
exec prism sweep paper/better-lms "$@"
