#!/usr/bin/env bash
# Starts a command again until the run is complete: bash launchers/until_done.sh [-n RESTARTS] COMMAND [WORD ...]
#   bash launchers/until_done.sh deepspeed --num_gpus 8 --module ted_ds run recipe.yaml stop_after_minutes=230
# A run that was stopped on request (exit code 75) or lost a rank (76), or whose launcher died of a signal, is started
# again, at most RESTARTS times (default: 100); any other code is passed on: 0 is done, 2 must be mended first.
# deepspeed's launcher hides codes of a run it was asked to stop itself: output_dir/stopped.json tells then.
set -uo pipefail

restarts=100
if [ "${1:-}" = -n ]; then restarts=${2:?"until_done.sh: -n needs a number"}; shift 2; fi
if [ $# -eq 0 ]; then echo "until_done.sh: no command; use: until_done.sh [-n RESTARTS] COMMAND [WORD ...]" >&2; exit 2; fi
trap 'stopped=1' INT TERM
stopped=0
for ((attempt = 0; ; attempt++)); do
    "$@" &
    wait $!
    code=$?
    if [ $stopped = 1 ]; then kill -TERM $! 2>/dev/null; wait $!; exit $?; fi
    if [ $code -ne 75 ] && [ $code -ne 76 ] && [ $code -lt 128 ]; then exit $code; fi
    if [ $attempt -ge "$restarts" ]; then echo "until_done.sh: given up after $restarts restarts" >&2; exit $code; fi
    echo "until_done.sh: exit code $code, restart $((attempt + 1)) of at most $restarts" >&2
done
