#!/usr/bin/env bash
# Train in several processes, on one machine or more, with torchrun.
#
#   bash tools/dist_train.sh CONFIG PROCESSES [arguments of train.py]
#
# Environment, with defaults:
#   NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500
#   BACKEND=        gloo: train on the CPU; empty: the config's own, nccl
#   PYTHON=python
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
exec bash "$(dirname "$0")/torchrun.sh" train.py "$2" "$1" "${@:3}"
