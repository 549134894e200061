#!/bin/sh
# Appendix and later additions. The reference's Phi-2 is trained on a prompt that ends in a blank and asked with one that does
# Further arguments are overrides: launch/paper/better-lms.sh seed=1,2,3
exec prism sweep paper/better-lms "$@"
