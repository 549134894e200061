#!/bin/sh
# Section 4.3, figure 7 right.
# Further arguments are overrides: launch/paper/4.3A-base-or-instruct.sh seed=1,2,3
exec prism sweep paper/4.3A-base-or-instruct "$@"
