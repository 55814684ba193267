#!/usr/bin/env bash
# Evaluate in several processes, on one machine or more, with torchrun.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of test.py]
#
# Environment, with defaults:
#   NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500
#   BACKEND=        gloo: evaluate on the CPU; empty: the config's own, nccl
#   PYTHON=python
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
exec bash "$(dirname "$0")/torchrun.sh" test.py "$3" "$1" "$2" "${@:4}"
