#!/usr/bin/env bash
# All there is to ask of one NVIDIA GPU, in one command of at most ten minutes, on a machine that has PyTorch.
#
#   bash benchmarks/gpu.sh [WORDS...]                 install what is missing with pip, run, print tables, write JSON
#   WHEELS=DIR bash benchmarks/gpu.sh [WORDS...]      the same without a network: packages from a folder of wheels
#   bash benchmarks/gpu.sh --collect DIR [VERSION]    where ted_ds is installed: fill such a folder for another
#                                                     machine's Python (3.12)
#
# WORDS go to python -m benchmarks.gpu (--only kernels,jsd; --budget 300; --rehearse). PYTHON: which Python (python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

collect() { # DIR VERSION
    local other=(--python-version "$2" --implementation cp) version package
    # pip takes each of these for a kind of its own
    for version in 28 27 26 24 17 12 5; do other+=(--platform "manylinux_2_${version}_x86_64"); done
    other+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64 --platform any)
    mkdir -p "$1"
    "$python" -m benchmarks.gpu_packages | while read -r package; do
        # of those without a wheel, as DeepSpeed, one is made: it must be of Python alone
        "$python" -m pip download --quiet --no-deps --only-binary=:all: "${other[@]}" -d "$1" "$package" 2>/dev/null ||
            DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps -w "$1" "$package"
    done
    du -sh "$1"
}

if [ "${1:-}" = --collect ]; then
    collect "${2:?give the folder to fill}" "${3:-3.12}"
    exit
fi
if [ -n "${WHEELS:-}" ]; then
    site="$(mktemp -d)"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site:$PYTHONPATH"
elif ! "$python" -c "import deepspeed, torchao, ted_ds.verbs.run, pytest, pytest_timeout, xdist" 2>/dev/null; then
    "$python" -m pip install --quiet '.[int8]' pytest pytest-timeout pytest-xdist
fi
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=disabled PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu "$@"
