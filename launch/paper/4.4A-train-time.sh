#!/bin/sh
# Section 4.4, figure 10 middle. Longer training also stretches the cosine of the learning rate.
# Further arguments are overrides: launch/paper/4.4A-train-time.sh seed=1,2,3
exec prism sweep paper/4.4A-train-time "$@"
