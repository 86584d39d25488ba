"""Compiles the kernels of a vocabulary's losses for GPUs, of which none is needed.

    python -m tests.compile_kernels [NAME...]

The interpreter takes what the compiler refuses. Prints the sizes of what came out, for each card and divergence.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ted_ds.numerics.divergences import DIVERGENCES
from ted_ds.numerics.triton_kernels import losses_kernel
from ted_ds.numerics.triton_rows import BLOCK, NUM_WARPS

CARDS = {"A100": 80, "H100": 90}


def compiled(divergence: str, capability: int, **settings: Any) -> int:
    """Bytes of machine code for logits of both models in bf16, with every branch that a recipe may switch on."""
    constants = {
        "DIVERGENCE": divergence,
        "LOG_SHARE": math.log(0.3),
        "LOG_REST": math.log(0.7),
        "COOLING": 0.5,
        "DIVISOR": 2.0,
        "BOUND": 30.0,
        "TEACHER_DIVISOR": 1.0,
        "TEACHER_BOUND": 0.0,
        "WITH_GRADIENT": True,
        "WITH_TEACHER_TASK": divergence != "",
        "EXACT": tl.float32,
        "BLOCK": BLOCK,
        **settings,
    }
    signature = {
        **dict.fromkeys(("student", "teacher"), "*bf16"),
        "labels": "*i64",
        **dict.fromkeys(("of_task", "of_divergence", "values"), "*fp32"),
        **dict.fromkeys(("student_ids", "teacher_ids", "shared_ids"), "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    source = ASTSource(fn=losses_kernel, signature=signature, constexprs=constants)
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return len(kernel.asm["cubin"])


def main(divergences: Iterable[str]) -> None:
    """Compile those, and that without a teacher; then both without a gradient, as under ``no_grad``."""
    sizes = {
        card: {name: compiled(name, capability) for name in ("", *divergences)} for card, capability in CARDS.items()
    }
    for name in ("", "kl"):
        sizes["H100"][f"{name} without gradient"] = compiled(name, CARDS["H100"], WITH_GRADIENT=False)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main(sys.argv[1:] or DIVERGENCES)
