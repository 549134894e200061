#!/bin/sh
# Section 4.4, figure 10 right. At one epoch a larger mix also means more steps.
# Further arguments are overrides: launch/paper/4.4B-data.sh seed=1,2,3
exec prism sweep paper/4.4B-data "$@"
