#!/bin/sh
# Section 5, figure 9.
# Further arguments are overrides: launch/paper/prisms.sh seed=1,2,3
exec prism sweep paper/prisms "$@"
