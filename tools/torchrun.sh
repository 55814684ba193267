#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: SCRIPT PROCESSES [arguments of SCRIPT].
set -euo pipefail
script=$1
processes=$2
shift 2

tools=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"

options=()
if [ -n "${BACKEND:-}" ]; then
    options=(--cfg-options env_cfg.dist_cfg.backend="$BACKEND")
fi
if [ "${BACKEND:-}" = gloo ]; then
    export CUDA_VISIBLE_DEVICES=
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$tools/$script" "$@" --launcher pytorch ${options[@]+"${options[@]}"}
