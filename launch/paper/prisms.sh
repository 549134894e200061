#!/bin/sh
# The models that put the findings together, at 7B and 13B, controlled (the base data, one epoch) and not.
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/prisms.sh seed=1,2,3
exec prism sweep paper/prisms "$@"
