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
if [ ! -d "$TED_DS_VENV/trackers" ]; then # what tracking.to can name: for the tests of them alone, others see it missing
    "$TED_DS_VENV/bin/pip" install --quiet --no-deps --target "$TED_DS_VENV/trackers" "tensorboard==2.21.0" \
        "absl-py==2.5.1" "trackio==0.43.0" "gradio_client==2.7.2" "orjson==3.13.0" "starlette==1.10.0" \
        "uvicorn==0.54.0" "brotli==1.2.1" "python-multipart==0.0.34" "pillow==12.3.0"
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
