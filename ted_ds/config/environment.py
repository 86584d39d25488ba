"""Variables of the environment that are switches: a word nobody knows must not be taken for the more open one.

The hub's own libraries take every word but a few for "no", so that ``HF_HUB_OFFLINE=offline`` goes online.
"""

from __future__ import annotations

from collections.abc import Mapping

from ted_ds.errors import raise_all

TRUE_WORDS, FALSE_WORDS = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
"""In capitals or not."""
SWITCHES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "WANDB_DISABLED",
)
ACCELERATORS = ("cuda", "cpu", "xpu", "npu", "mps", "hpu", "mlu", "sdaa", "supa", "klxpu")
"""What DeepSpeed knows by ``$DS_ACCELERATOR``; another word is a traceback of its own before anything can be said."""


def is_true(environment: Mapping[str, str], name: str) -> bool:
    """Whether a switch is on; its word is one of those that are known (:func:`refuse_unknown_words`)."""
    return environment.get(name, "").lower() in TRUE_WORDS


def refuse_unknown_words(environment: Mapping[str, str]) -> None:
    """Make sure that switches have words that mean one thing to everybody.

    Raises:
        ConfigError: They have not; lists all of them.
    """
    problems = [
        f"${name} is {environment[name]!r}: must be one of {', '.join(filter(None, (*TRUE_WORDS, *FALSE_WORDS)))}; set "
        "it anew, or unset it"
        for name in SWITCHES
        if environment.get(name, "").lower() not in (*TRUE_WORDS, *FALSE_WORDS)
    ]
    accelerator = environment.get("DS_ACCELERATOR")
    if accelerator is not None and accelerator not in ACCELERATORS:
        problems.append(
            f"$DS_ACCELERATOR is {accelerator!r}: must be one of {', '.join(ACCELERATORS)}; set it anew, or unset it"
        )
    raise_all(problems)
