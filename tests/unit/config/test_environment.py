"""Switches of the environment: every word is known, or refused before anything happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.environment import ACCELERATORS, FALSE_WORDS, SWITCHES, TRUE_WORDS, is_true, refuse_unknown_words
from ted_ds.errors import ConfigError
from tests.unit.test_cli import ted_ds


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("word", ["offline", "enabled", "t", "2", "true "])
def test_an_unknown_word_is_refused(name: str, word: str) -> None:
    with pytest.raises(ConfigError, match=rf"\${name} is '{word}': must be one of 1, true, .*, off; set it anew"):
        refuse_unknown_words({name: word})


@pytest.mark.parametrize("word", [*TRUE_WORDS, *FALSE_WORDS, "TRUE", "Off"])
def test_known_words_mean_what_they_mean_to_the_hubs_library(word: str) -> None:
    from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

    environment = dict.fromkeys(SWITCHES, word)
    refuse_unknown_words(environment)
    assert is_true(environment, "HF_HUB_OFFLINE") == (word.upper() in ENV_VARS_TRUE_VALUES)


def test_deepspeeds_accelerators_are_known() -> None:
    from deepspeed.accelerator.real_accelerator import SUPPORTED_ACCELERATOR_LIST

    assert set(SUPPORTED_ACCELERATOR_LIST) == set(ACCELERATORS)


@pytest.mark.parametrize("verb", ["check", "run", "tokenizer"])
def test_all_of_them_are_said_before_anything_is_loaded(lm_run: Path, verb: str) -> None:
    words = [verb, *(["train"] if verb == "tokenizer" else []), str(lm_run / "recipe.yaml")]
    done = ted_ds(*words, HF_HUB_OFFLINE="offline", DS_ACCELERATOR="gpu")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "$HF_HUB_OFFLINE is 'offline': must be one of 1, true, yes, on, 0, false, no, off; set it anew, or unset it",
        f"$DS_ACCELERATOR is 'gpu': must be one of {', '.join(ACCELERATORS)}; set it anew, or unset it",
    ]
