#!/bin/bash
# Independent runs of one input, each with its own seed and folder: sbatch array.sh
#SBATCH --job-name=beads
#SBATCH --array=0-3
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120

BEADWORK_ENV=${BEADWORK_ENV:-$HOME/beadwork}
DEVICE=${DEVICE:---device cuda}

. "$BEADWORK_ENV/bin/activate"
cd "$SLURM_SUBMIT_DIR" || exit
folder=$(printf 'run-%02d' "$SLURM_ARRAY_TASK_ID")
if [ ! -d "$folder" ]; then
    mkdir "$folder"
    cp init.xyz "$folder"
    sed "s#<seed>.*</seed>#<seed>$((31415 + SLURM_ARRAY_TASK_ID))</seed>#" input.xml > "$folder/input.xml"
fi
cd "$folder" || exit
from=input.xml
if [ -f RESTART ]; then from=RESTART; fi
# a queue each: SQLite on a file system of several machines has no locks that can be trusted
exec beadwork run ../run.toml --simulation "$from" $DEVICE --queue queue.db \
    --sockets-prefix "/tmp/ipi_$SLURM_JOB_ID-"
