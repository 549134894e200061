#!/bin/sh
# Section 4.3, figure 8.
# Further arguments are overrides: launch/paper/4.3B-text-only-data.sh seed=1,2,3
exec prism sweep paper/4.3B-text-only-data "$@"
