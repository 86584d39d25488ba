"""Models that say something of a text, by transformers alone and in fp32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError
from ted_ds.models.folder import CONFIG_FILE

Turn = dict[str, str]
"""``role`` and ``content``."""


def architecture_of(path: Path) -> str:
    """What a model's config calls it, for a message."""
    return ", ".join(_architectures(path)) or "a model without a named architecture"


def is_for(path: Path, architecture: str) -> bool:
    """Whether a model is one that transformers opens as ``AutoModelFor`` this: CausalLM or SequenceClassification."""
    from transformers.models.auto import modeling_auto

    known = {
        "CausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }[architecture]
    names = {name for one in known.values() for name in ([one] if isinstance(one, str) else one)}
    return not names.isdisjoint(_architectures(path))


def _architectures(path: Path) -> list[str]:
    return json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures") or []


def outputs_of(config: Any) -> list[str]:
    """The names of a head's outputs, in their order."""
    return [config.id2label[number] for number in sorted(config.id2label)]


def load_config(path: Path) -> Any:
    """A model's config, with what its file leaves to transformers."""
    import transformers

    return transformers.AutoConfig.from_pretrained(path)


def load_tokenizer(path: Path) -> Any:
    """A model's tokenizer."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(path)


def load(path: Path, architecture: str) -> tuple[Any, Any]:
    """A model, in eval mode, and its tokenizer.

    Args:
        path: Its folder.
        architecture: What follows ``AutoModelFor``.

    Raises:
        DataError: Its files lack weights, as those of a head that it was not trained with.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    opened = getattr(transformers, f"AutoModelFor{architecture}")
    model, report = opened.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise DataError(
            f"{path}: {architecture_of(path)} has no weights for {', '.join(missing[:3])}, so that what it says would "
            "be chance; give a model that was trained with them"
        )
    return model.eval(), load_tokenizer(path)


@dataclass(frozen=True)
class Writer:
    """A causal language model that goes on with a text, or answers, greedily."""

    path: Path
    model: Any
    tokenizer: Any
    max_new_tokens: int

    @classmethod
    def at(cls, path: Path, max_new_tokens: int) -> Writer:
        """That in a folder."""
        return cls(path, *load(path, "CausalLM"), max_new_tokens)

    @property
    def answers(self) -> bool:
        """Whether its tokenizer has a template for conversations."""
        return bool(self.tokenizer.chat_template)

    def go_on(self, text: str, *, shown: bool = False) -> str:
        """What it writes behind ``text``, which is also printed as it comes where it is to be ``shown``.

        Raises:
            DataError: The text leaves no room.
        """
        given = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        num_given, most = given["input_ids"].shape[1], self._longest
        if num_given == 0:
            raise DataError(f"{self.path}: of {text!r} its tokenizer makes no token; give it a text to go on with")
        if most is not None and num_given + self.max_new_tokens > most:
            raise DataError(
                f"{self.path}: {num_given} tokens and {self.max_new_tokens} more (--tokens) are beyond the model's "
                f"{most} positions; give a shorter text"
            )
        return self._write(given, shown=shown)

    def answer(self, turns: Sequence[Turn], *, shown: bool = False) -> tuple[str, int]:
        """What it answers to the last turn, and how many of the first ones were left out for want of positions.

        Raises:
            DataError: The last turn alone leaves no room.
        """
        left_out = 0
        while True:
            text = self.tokenizer.apply_chat_template([*turns[left_out:]], tokenize=False, add_generation_prompt=True)
            try:
                return self.go_on(text, shown=shown), left_out
            except DataError:
                if left_out + 2 >= len(turns):
                    raise
                left_out += 2

    @property
    def _longest(self) -> int | None:
        return getattr(self.model.config, "max_position_embeddings", None)

    def _write(self, given: Any, *, shown: bool) -> str:
        import torch
        from transformers import TextStreamer

        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if shown else None
        settings = {"pad_token_id": pad, "max_new_tokens": self.max_new_tokens, "do_sample": False}
        with torch.no_grad():
            written = self.model.generate(**given, **settings, streamer=streamer)
        return self.tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
