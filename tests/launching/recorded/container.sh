#!/bin/bash

# Parameters
#SBATCH --account=us
#SBATCH --comment=prism-$BATCH
#SBATCH --constraint='a100&nvlink'
#SBATCH --exclude='n[7-9]'
#SBATCH --exclusive
#SBATCH --gres=scratch:100G
#SBATCH --job-name=prism-study
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=FAIL
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=$STORE/slurm/study/%j_0_log.out
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=01:00:00

# setup
export PYTHONPATH=$STORE/snapshots/now${PYTHONPATH:+:$PYTHONPATH}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}
[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK
module load cuda
export HF_HOME=/scratch/hf
# attempts.sh, asking apptainer exec --nv image.sif '/opt/our python/bin/python' -m prism_sweeps.launching.slurm.after

# command
export SUBMITIT_EXECUTOR=slurm
prism_attempts srun --unbuffered --output=$STORE/slurm/study/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 apptainer exec --nv image.sif '/opt/our python/bin/python' -u -m submitit.core._submit $STORE/slurm/study
