#!/bin/sh
# What becomes of a cell whose tower is trained too?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.1B-full-finetune.sh seed=1,2,3
exec prism sweep paper/4.1B-full-finetune "$@"
