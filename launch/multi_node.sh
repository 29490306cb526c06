#!/usr/bin/env bash
# Several machines without a scheduler. On each, from the folder that holds .venv and runs/, which all have to see:
#   HEAD_NODE=node1 NODES=2 launch/multi_node.sh conf=hyperfusion data.shards=/data/shards run.name=fox
# in any order, within ten minutes; they meet at port 29500 of the head node. Where a worker dies all machines start
# theirs again, and the run goes on from its last checkpoint. Where a machine dies the others wait an hour for it: start
# the same command there again, or, where it was the head node, on all. To stop: Ctrl-C or SIGTERM on every machine.
# It ends with 0 finished, 1 failed, 2 a mistake, 75 asked to stop and saved.
#
# torchrun rather than `accelerate launch`, whose file would have to differ by machine (machine_rank). DeepSpeed's own
# launcher and hostfile are not needed: DeepSpeed is configured by the recipe (strategy=zero1, zero2 or zero3).
set -euo pipefail
: "${HEAD_NODE:?give the name or address of one of the machines}" "${NODES:?give the number of machines}"
# shellcheck source=/dev/null
. .venv/bin/activate
# Seconds in which a step and a checkpoint have to be done once the launcher was asked to stop.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}"

exec python -m finetune.launch --nnodes "$NODES" --nproc_per_node "${PROCESSES:-gpu}" \
  --rdzv_backend c10d --rdzv_endpoint "$HEAD_NODE:${PORT:-29500}" --rdzv_id longhaul \
  --rdzv_conf join_timeout=3600,read_timeout=600 --max_restarts "${MAX_RESTARTS:-9}" -m finetune "$@"
