#!/bin/sh
# Section 4.1, figure 5. The reference saves the trained tower and does not load it for evaluation, so its numbers may be
# Further arguments are overrides: launch/paper/4.1B-full-finetune.sh seed=1,2,3
exec prism sweep paper/4.1B-full-finetune "$@"
