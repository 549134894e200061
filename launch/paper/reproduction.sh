#!/bin/sh
# Figure 4: does this code give what LLaVA-1.5 reports?
# Further arguments are overrides: launch/paper/reproduction.sh seed=1,2,3
exec prism sweep paper/reproduction "$@"
