#!/bin/bash

# Parameters
#SBATCH --comment=prism-$BATCH
#SBATCH --cpus-per-task=2
#SBATCH --gpus-per-node=8
#SBATCH --job-name=prism-study
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=400G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=$STORE/slurm/study/%j_0_log.out
#SBATCH --partition=main
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1-12:30:00

# setup
export PYTHONPATH=$STORE/snapshots/now${PYTHONPATH:+:$PYTHONPATH}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}
[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK
# attempts.sh, asking $PYTHON -m prism_sweeps.launching.slurm.after

# command
export SUBMITIT_EXECUTOR=slurm
prism_attempts srun --unbuffered --output=$STORE/slurm/study/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 $PYTHON -u -m submitit.core._submit $STORE/slurm/study
