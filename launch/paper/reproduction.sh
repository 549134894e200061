#!/bin/sh
# LLaVA-1.5 by its own recipe, at 7B and 13B.
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/reproduction.sh seed=1,2,3
exec prism sweep paper/reproduction "$@"
