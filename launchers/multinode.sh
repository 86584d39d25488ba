#!/usr/bin/env bash
# A run on the hosts of a hostfile, over ssh and pdsh: bash launchers/multinode.sh HOSTFILE VERB RECIPE [a.b=value ...]
#   bash launchers/multinode.sh hostfile run my_recipe.yaml         (lines of the hostfile: node1 slots=8)
#   TED_DS_LOGS       folder of the ranks' logs, on all hosts       (default: logs)
#   TED_DS_RESTARTS   at most so many                               (default: 100)
#   TED_DS_MIN_HOSTS  go on with so many, where others do not answer within TED_DS_HOST_WAIT seconds (default: all; 300)
#   TED_DS_EXCLUDE    hosts of the hostfile to leave out, e.g. "node3 node7"
#   TED_DS_VENV       virtual environment, on all hosts             (default: .venv, if there is one)
#   MASTER_PORT       where the ranks meet on the first host        (default: one that is free here)
# Variables such as NCCL_*, CUDA_*, HF_*, OMP_* and PATH reach all hosts, keys and tokens do not; lines NAME=VALUE in
# .deepspeed_env are added. The checkout, the environment, the data and the output are where all hosts see them.
set -euo pipefail
if [ $# -lt 3 ]; then sed -n 2,3p "$0" >&2; exit 2; fi
hostfile=$1
shift
export PATH="${TED_DS_VENV:-$PWD/.venv}/bin:$PATH"
# or pdsh waits for good where a host has gone
export PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3 ${PDSH_SSH_ARGS_APPEND:-}"
read -ra excluded <<< "${TED_DS_EXCLUDE:-}"
exec ted-ds supervise --logs "${TED_DS_LOGS:-logs}" --restarts "${TED_DS_RESTARTS:-100}" --hostfile "$hostfile" \
    "${excluded[@]/#/--exclude=}" ${TED_DS_MIN_HOSTS:+--min-hosts "$TED_DS_MIN_HOSTS"} --host-wait "${TED_DS_HOST_WAIT:-300}" -- \
    deepspeed --hostfile "{hostfile}" --force_multi --master_port "${MASTER_PORT:-"{port}"}" --module ted_ds "$@"
