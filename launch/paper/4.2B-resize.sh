#!/bin/sh
# Section 4.2, figure 6 middle. Boxes are asked for as fractions of the image, while under letterbox the model sees the padded
# Further arguments are overrides: launch/paper/4.2B-resize.sh seed=1,2,3
exec prism sweep paper/4.2B-resize "$@"
