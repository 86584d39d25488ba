"""Packages that ted_ds can do without. ``tests/run.sh`` installs them beside the environment, not into it."""

from __future__ import annotations

import sys
from pathlib import Path

OPTIONAL = Path(sys.prefix) / "optional"
MISSING = f"{OPTIONAL} is not there; bash tests/run.sh makes it"
BITSANDBYTES = OPTIONAL / "bitsandbytes"
GPTQMODEL = Path(sys.prefix) / "gptqmodel"
NO_GPTQMODEL = (
    f"{GPTQMODEL} is not there, which no script makes, as it takes minutes: pip install --no-deps --target {GPTQMODEL} "
    "gptqmodel==7.7.0 optimum==2.3.0 logbar device-smi tokenicer defuser pypcre pillow threadpoolctl protobuf"
)
TRACKERS = Path(sys.prefix) / "trackers"
NO_TRACKERS = f"{TRACKERS} is not there; bash tests/run.sh makes it"
LM_EVAL = Path(sys.prefix) / "lm_eval"
NO_LM_EVAL = f"{LM_EVAL} is not there; bash tests/run.sh makes it"
REPORT = Path(sys.prefix) / "report"
NO_REPORT = f"{REPORT} is not there; bash tests/run.sh makes it"
HADOLINT = Path(sys.prefix) / "hadolint" / "bin" / "hadolint"
NO_HADOLINT = f"{HADOLINT} is not there; bash tests/run.sh makes it"
SITE = Path(sys.prefix) / "site"
NO_SITE = f"{SITE} is not there; bash tests/run.sh makes it"
JUPYTER = Path(sys.prefix) / "jupyter"
NO_JUPYTER = f"{JUPYTER} is not there; bash tests/run.sh makes it"
ONNX = Path(sys.prefix) / "onnx"
NO_ONNX = (
    f"{ONNX} is not there, which no script makes: pip install --no-deps --target {ONNX} onnx==1.23.2 onnxscript==0.7.2 "
    "onnx_ir==1.1.0 onnxruntime==1.32.0 ml_dtypes==0.6.0 flatbuffers"
)
STORES = Path(sys.prefix) / "stores"
NO_STORES = f"{STORES} is not there; bash tests/run.sh makes it"
TRITON = Path(sys.prefix) / "triton"
NO_TRITON = f"{TRITON} is not there, nor is the package; bash tests/run.sh makes it"
PEFT = Path(sys.prefix) / "peft"
NO_PEFT = f"{PEFT} is not there; bash tests/run.sh makes it"


def use_peft() -> None:
    """Let this process import peft."""
    assert PEFT.is_dir(), NO_PEFT
    if str(PEFT) not in sys.path:
        sys.path.append(str(PEFT))
