#!/bin/sh
# Which pretraining of the tower serves best, at 224 px?
# Needs prism on the PATH (. .venv/bin/activate). Further arguments are overrides: launch/paper/4.2A-towers.sh seed=1,2,3
exec prism sweep paper/4.2A-towers "$@"
