#!/bin/bash
# One node, one server: sbatch node.sh, in a folder of run.toml. Typed again it goes on from RESTART.
#SBATCH --job-name=beads
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120     # two minutes before the end: i-PI writes RESTART, beadwork its summary
# for several GPUs of the node: --gres=gpu:4 above, and DEVICE="--devices all" below

BEADWORK_ENV=${BEADWORK_ENV:-$HOME/beadwork}      # where beadwork is installed
DEVICE=${DEVICE:---device cuda}                 # or: --device cpu

. "$BEADWORK_ENV/bin/activate"
cd "$SLURM_SUBMIT_DIR" || exit
again=()
if [ -f RESTART ]; then again=(--simulation RESTART); fi
# sockets of this job alone: another one on this node may have the same address in its input
exec beadwork run run.toml $DEVICE --sockets-prefix "/tmp/ipi_$SLURM_JOB_ID-" "${again[@]}"
