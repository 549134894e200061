#!/bin/sh
# Section 4.2, figure 7 left. Fused backbones have a projector of three layers, single ones of two: the projector differs as
# Further arguments are overrides: launch/paper/4.2D-fusion.sh seed=1,2,3
exec prism sweep paper/4.2D-fusion "$@"
