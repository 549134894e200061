#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --comment=prism-$BATCH
#SBATCH --job-name=prism-study
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=$STORE/slurm/study/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=01:00:00

# setup
export PYTHONPATH=$STORE/snapshots/now${PYTHONPATH:+:$PYTHONPATH}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}
[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK
# attempts.sh, asking $PYTHON -m prism_sweeps.launching.slurm.after

# command
export SUBMITIT_EXECUTOR=slurm
prism_attempts srun --unbuffered --output=$STORE/slurm/study/%A_%a_%t_log.out --open-mode=append --kill-on-bad-exit=1 $PYTHON -u -m submitit.core._submit $STORE/slurm/study
