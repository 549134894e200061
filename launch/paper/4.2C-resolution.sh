#!/bin/sh
# Section 4.2, figure 6 right.
# Further arguments are overrides: launch/paper/4.2C-resolution.sh seed=1,2,3
exec prism sweep paper/4.2C-resolution "$@"
