#!/usr/bin/env bash
# On every node, from the folder that holds .venv and runs/, which all nodes have to see:
#   HEAD_NODE=node1 NODES=2 launch/multi_node.sh conf=hyperfusion data.shards=/data/shards run.name=fox
set -euo pipefail
exec python -m finetune.launch --nnodes "$NODES" --nproc_per_node "${PROCESSES:-gpu}" \
  --rdzv_backend c10d --rdzv_endpoint "$HEAD_NODE:${PORT:-29500}" --rdzv_id longhaul \
  --max_restarts "${MAX_RESTARTS:-9}" -m finetune "$@"
