"""How exactly a GPU computes, and whether it does so the same way each time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ted_ds.errors import ConfigError
from ted_ds.models.document_attention import why_by_masks

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")
"""The two values with which cuBLAS repeats itself (NVIDIA's manual, "Results reproducibility"); the first is faster."""
FLASH = "FLASH_ATTENTION_DETERMINISTIC"
"""What transformers passes on to flash-attn."""
FIRST_DETERMINISTIC_FLASH = (2, 4, 1)
EMPTY_TENSORS: Any = torch.utils.deterministic
"""Says whether deterministic algorithms go with writing over each tensor that is made empty."""


def set_arithmetic(*, tf32: bool, deterministic: bool, attention: str) -> None:
    """Choose it for this process; to be called before the first use of a GPU, as cuBLAS reads its variable then.

    Args:
        tf32: Whether matrix products of fp32 values may drop 13 of their 23 bits.
        deterministic: Whether only algorithms are used that give the same bits each time.
        attention: The recipe's.

    Raises:
        ConfigError: The environment says otherwise, or the installed flash-attn cannot.
    """
    if deterministic:
        os.environ.update(deterministic_variables(os.environ, attention=attention))
        if attention == "flash":
            _refuse_old_flash()
    torch.use_deterministic_algorithms(deterministic)
    # DeepSpeed makes buckets of gigabytes for each step, of which a small model's gradients fill little
    EMPTY_TENSORS.fill_uninitialized_memory = False
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # which torch allows unless it is told not to


def remember_arithmetic() -> Callable[[], None]:
    """What puts this process back to how it computes now."""
    deterministic, fills = torch.are_deterministic_algorithms_enabled(), EMPTY_TENSORS.fill_uninitialized_memory
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    put_back_precision = _remember_precision()

    def put_back() -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        EMPTY_TENSORS.fill_uninitialized_memory = fills
        put_back_precision()

    return put_back


def _remember_precision() -> Callable[[], None]:
    """What puts fp32 products back to how exactly they are computed now.

    Torch has an older and a newer way to say it, and refuses to tell by the older one what was said by the newer.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # the newer one is of torch 2.9
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

        def put_back() -> None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

        return put_back
    of_cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, of_cudnn.conv, of_cudnn.rnn)
    said = [place.fp32_precision for place in places]

    def say_again() -> None:
        for place, value in zip(places, said, strict=True):
            place.fp32_precision = value

    return say_again


def deterministic_variables(environment: Mapping[str, str], *, attention: str) -> dict[str, str]:
    """What libraries must find in the environment to repeat themselves.

    Raises:
        ConfigError: There is something else, put there by hand.
    """
    wanted: dict[str, tuple[str, ...]] = {CUBLAS: DETERMINISTIC_CUBLAS}
    if attention == "flash":
        wanted[FLASH] = ("1",)
    for name, values in wanted.items():
        if environment.get(name, values[0]) not in values:
            raise ConfigError(
                f"deterministic: true, but ${name} is {environment[name]!r}: use {' or '.join(values)}, or unset it"
            )
    return {name: environment.get(name, values[0]) for name, values in wanted.items()}


def _refuse_old_flash() -> None:
    try:
        installed = version("flash_attn")
    except PackageNotFoundError:
        return  # which is said where the model is loaded
    numbers = tuple(int(part) for part in installed.split("+")[0].split(".")[:3] if part.isdecimal())
    if numbers < FIRST_DETERMINISTIC_FLASH:
        first = ".".join(map(str, FIRST_DETERMINISTIC_FLASH))
        raise ConfigError(
            f"deterministic: true with attention: flash: flash-attn {installed} cannot repeat itself in the backward "
            f"pass; install {first} or newer, or use sdpa"
        )


def without_effect(*, tf32: bool, attention: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Which setting of these does nothing on this device, in words; None where each does what it says."""
    if tf32 and device.type != "cuda":
        return f"tf32: true has no effect on a {device.type}: it computes fp32 in full"
    reason = why_by_masks(device, dtype) if attention == "packed" else None
    return None if reason is None else f"attention: packed is sdpa here, as {reason}"
