#!/bin/sh
# Section 4.1, figure 4.
# Further arguments are overrides: launch/paper/4.1A-stages.sh seed=1,2,3
exec prism sweep paper/4.1A-stages "$@"
