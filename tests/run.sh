#!/usr/bin/env bash
# Makes the environment and runs every check and test. Words are passed on to pytest: bash tests/run.sh tests/unit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launchers/environment.sh
make_environment demo,dev
use_cpu
# beside the environment: transformers imports torchao wherever it is installed, which takes seconds in every process
if [ ! -d "$TED_DS_VENV/optional" ]; then
    "$TED_DS_VENV/bin/pip" install --quiet --no-deps --target "$TED_DS_VENV/optional" "torchao==0.18.0"
fi
if [ ! -d "$TED_DS_VENV/optional/bitsandbytes" ]; then # for quantised teachers
    "$TED_DS_VENV/bin/pip" install --quiet --no-deps --target "$TED_DS_VENV/optional" "bitsandbytes==0.50.2"
fi
if [ ! -d "$TED_DS_VENV/schemas" ]; then # of Kubernetes: 100 MB that nothing but a test needs
    "$TED_DS_VENV/bin/pip" install --quiet --target "$TED_DS_VENV/schemas" "kubernetes-validate==1.37.0"
fi
export HF_HUB_OFFLINE=1 WANDB_MODE=offline

ruff format --check ted_ds benchmarks tests setup.py
ruff check ted_ds benchmarks tests setup.py
pyright
lint-imports
python -m pytest "$@"
