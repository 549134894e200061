#!/bin/sh
# A language model as pretrained, or tuned to instructions?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.3A-base-or-instruct.sh seed=1,2,3
exec prism sweep paper/4.3A-base-or-instruct "$@"
