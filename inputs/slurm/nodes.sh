#!/bin/bash
# Several nodes: i-PI on the first, servers on all. The input's <address> is 0.0.0.0 (mode inet), its <batch_size> is
# beads / servers. i-PI ends with the servers, and they with i-PI.
#SBATCH --job-name=beads
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=16
#SBATCH --gres=gpu:4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120

BEADWORK_ENV=${BEADWORK_ENV:-$HOME/beadwork}
DEVICES=${DEVICES:-all}                         # of each node
SERVERS=${SERVERS:-$((4 * SLURM_NTASKS))}       # in all: GPUs a node times nodes

. "$BEADWORK_ENV/bin/activate"
cd "$SLURM_SUBMIT_DIR" || exit
input=input.xml
if [ -f RESTART ]; then input=RESTART; fi
rm -f EXIT
trap 'touch EXIT' TERM                          # i-PI writes RESTART and tells all servers to end
i-pi "$input" > i-pi.log 2>&1 & ipi=$!
export HEAD=$(hostname) DEVICES SERVERS input
srun bash -c 'exec beadwork serve run.toml --simulation "$input" --host "$HEAD" --devices "$DEVICES" \
    --servers "$SERVERS" --patience 600 --out "node-$SLURM_PROCID"' & servers=$!
# a wait that SIGTERM has ended is begun again
while kill -0 $servers 2> /dev/null; do wait $servers; code=$?; done
if kill -0 $ipi 2> /dev/null; then sleep 5; touch EXIT; fi      # nobody answers it any more
while kill -0 $ipi 2> /dev/null; do wait $ipi; done
exit $code
