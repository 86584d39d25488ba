#!/usr/bin/env bash
# A run on this node, started again until it is complete: bash launchers/local.sh [-n PROCESSES] VERB RECIPE [a.b=value ...]
#   bash launchers/local.sh -n 8 run my_recipe.yaml stop_after_minutes=230
#   TED_DS_LOGS       folder of the ranks' logs                   (default: logs)
#   TED_DS_RESTARTS   at most so many                             (default: 100)
#   TED_DS_VENV       virtual environment                         (default: .venv, if there is one)
#   MASTER_PORT       where the ranks meet                        (default: a free one)
set -euo pipefail
processes=()
if [ "${1:-}" = -n ]; then processes=(--num_gpus "${2:?"local.sh: -n needs a number"}"); shift 2; fi
if [ $# -lt 2 ]; then sed -n 2,3p "$0" >&2; exit 2; fi
export PATH="${TED_DS_VENV:-$PWD/.venv}/bin:$PATH"
exec ted-ds supervise --logs "${TED_DS_LOGS:-logs}" --restarts "${TED_DS_RESTARTS:-100}" -- \
    deepspeed "${processes[@]}" --master_port "${MASTER_PORT:-"{port}"}" --module ted_ds "$@"
