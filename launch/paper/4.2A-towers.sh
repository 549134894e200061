#!/bin/sh
# Section 4.2, figure 6 left.
# Further arguments are overrides: launch/paper/4.2A-towers.sh seed=1,2,3
exec prism sweep paper/4.2A-towers "$@"
