"""Models that say something of a text, by transformers alone and in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError

Turn = dict[str, str]
"""``role`` and ``content``."""


def load(path: Path, architecture: str) -> tuple[Any, Any]:
    """A model, in eval mode, and its tokenizer.

    Args:
        path: Its folder.
        architecture: What follows ``AutoModelFor``.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = getattr(transformers, f"AutoModelFor{architecture}").from_pretrained(path, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path)


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
