#!/bin/bash
# Train on several nodes under SLURM, over as many jobs as it takes. Adapt what is marked, then:
#   sbatch examples/slurm.sh --recipe 1b --cache /shared/cache --execution.strategy fsdp --out /shared/runs/1b
#SBATCH --job-name=mixln
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1       # one torchrun on each node; it starts a process for each GPU
#SBATCH --gpus-per-node=8         # adapt
#SBATCH --cpus-per-task=64        # adapt
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300       # to this script, 300 s before the time is up
#SBATCH --requeue
#SBATCH --open-mode=append        # one log for all jobs of a run
set -euo pipefail

# source /shared/mixln/.venv/bin/activate    # adapt: an environment that all nodes see

# without it, restarted processes may be handed the addresses of lost ones (docs/how-to/several-processes.md)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# a signal other than KILL goes to the steps of a job, not to this script; torchrun passes it on to its processes,
# which write a checkpoint
time_is_up=0
trap 'time_is_up=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# the node that is ready first must not take the others with it: they may still be writing
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=0 \
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$first_node:29500" --rdzv-id "$SLURM_JOB_ID" \
    --max-restarts 3 --shutdown-timeout 240 \
    -m mixln train "$@" &
srun=$!

# a trapped signal ends `wait` before srun has ended
status=0
while kill -0 "$srun" 2> /dev/null; do
    status=0
    wait "$srun" || status=$?
done

# a failure is not requeued, or it would fail for ever
if ((time_is_up)) && ((status != 0)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
