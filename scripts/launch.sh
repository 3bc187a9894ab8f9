#!/usr/bin/env bash
# Start one node's part of a run: scripts/launch.sh RECIPE [derta_train options]
#
#   NODES, NODE_RANK, GPUS   how many nodes, which one this is, processes on it   (default: 1, 0, all GPUs)
#   HEAD, PORT, RUN_ID       where the nodes meet (torchrun's rendezvous, c10d)   (default: localhost, 29500, derta)
#   ENGINE                   "" as the recipe says (single, ddp, fsdp2), or an accelerate configuration: zero3, zero3-offload, fsdp2, fsdp2-offload
#
# Leaves with 85 if the run was told to leave and has saved a checkpoint.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/env.sh
source "$HERE/env.sh"
if [ $# -lt 1 ]; then sed -n '2,8p' "${BASH_SOURCE[0]}"; exit 2; fi

NODES="${NODES:-1}" NODE_RANK="${NODE_RANK:-0}" HEAD="${HEAD:-localhost}" PORT="${PORT:-29500}" RUN_ID="${RUN_ID:-derta}" ENGINE="${ENGINE:-}"
GPUS="${GPUS:-$(python -c 'import torch; print(max(1, torch.accelerator.device_count() if torch.accelerator.is_available() else 1))')}"
MARKS="$(mktemp -d)"
trap 'rm -rf "$MARKS"' EXIT
export DERTA_REQUEUE_MARK="$MARKS/requeue"

if [ -n "$ENGINE" ]; then
    CONFIG="$HERE/accelerate/$ENGINE.yaml"
    [ -f "$CONFIG" ] || { echo "launch.sh: no accelerate configuration for ENGINE=$ENGINE: $CONFIG" >&2; exit 2; }
    START=(accelerate launch --config_file "$CONFIG" --num_machines "$NODES" --machine_rank "$NODE_RANK" --num_processes "$((NODES * GPUS))"
           --rdzv_backend c10d --main_process_ip "$HEAD" --main_process_port "$PORT" --module)
else
    START=(torchrun --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$GPUS" --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id "$RUN_ID"
           --max_restarts 0 --module)
fi

# SIGTERM goes on to the launcher, which hands it to its processes and waits for them.
"${START[@]}" derta_kit.cli_train "$@" &
CHILD=$!
trap 'kill -TERM "$CHILD" 2>/dev/null || true' TERM
CODE=0; wait "$CHILD" || CODE=$?
while kill -0 "$CHILD" 2>/dev/null; do CODE=0; wait "$CHILD" || CODE=$?; done      # a signal ends `wait`, not the child
if [ -e "$DERTA_REQUEUE_MARK" ]; then exit "$REQUEUE"; fi
exit "$CODE"
