"""The chat template: which one it is, whether the tokenizer has what it names, and what of a rendering is completion.

Imports transformers only where something is rendered: ``ted-ds check`` looks at templates without.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ted_ds.config.shipped import CHAT_TEMPLATES, names_in
from ted_ds.data.conversations import Dialogue
from ted_ds.errors import ConfigError, counted
from ted_ds.models.tokenizer_settings import ROLES
from ted_ds.models.tokenizer_traits import TokenizerTraits

KEY = "task.chat_template"
MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Around what a model generates; a tag of transformers' own."""
TOKEN_OF_TEMPLATE = re.compile(r"<[|｜][^<>'\"\s{}]+[|｜]>|<(?:start|end)_of_turn>|</?s>")
"""What a template can only mean as one token."""
TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
"""Asks for the date, as Llama 3.2's does in its system prompt."""
DAY = datetime.date(2024, 7, 26)
"""What it is told, that of Llama 3.1: a run that goes on tomorrow has to read what it has read today."""
DEFAULT, WITH_TOOLS = "default", "tool_use"
"""Names of templates, where a tokenizer has several."""

Span = tuple[int, int]
"""The first, and that behind the last."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template, or several by name."""

    by_name: Mapping[str, str]
    where: str
    """Begins messages."""
    is_own: bool
    """Whether it is the tokenizer's."""

    def text(self, *, with_tools: bool = False) -> str:
        """The one to use, as transformers chooses."""
        return self.by_name[WITH_TOOLS if with_tools and WITH_TOOLS in self.by_name else DEFAULT]

    @property
    def has_marks(self) -> bool:
        """Whether it says itself what a model generates."""
        return MARK.search(self.text()) is not None

    @property
    def sha256(self) -> str:
        """Of all of it."""
        return hashlib.sha256(repr(sorted(self.by_name.items())).encode()).hexdigest()

    @property
    def in_words(self) -> str:
        """How conversations are written, for who starts a run."""
        name = "the chat template of the teacher's tokenizer" if self.is_own else self.where
        how = "its generation marks say" if self.has_marks else "renderings before and after each turn say"
        return f"written by {name}; {how} what is completion"


def find_template(file: Path | None, own: Any) -> ChatTemplate:
    """The template of a recipe.

    Args:
        file: The recipe's.
        own: What the tokenizer has: a template, several by name, or none.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    if file is None:
        by_name = {DEFAULT: own} if isinstance(own, str) else dict(own or {})
        if not by_name.get(DEFAULT):
            raise ConfigError(
                f"{KEY}: the teacher's tokenizer has no chat template; name a file with one, or "
                f"one that ships: {', '.join(names_in(CHAT_TEMPLATES, '.jinja'))}"
            )
        return ChatTemplate(by_name, "the chat template of the teacher's tokenizer", is_own=True)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{KEY}: {file}: cannot be read ({reason}); give a file with a template in Jinja") from error
    if not text.strip():
        raise ConfigError(f"{KEY}: {file}: is empty; give a file with a template in Jinja")
    return ChatTemplate({DEFAULT: text}, f"{KEY}: {file}", is_own=False)


def vet_template(template: ChatTemplate, tokenizer: TokenizerTraits) -> list[str]:
    """What is doubtful in a tokenizer's own template, which its model may have been trained with all the same.

    Raises:
        ConfigError: A template cannot be read, or the recipe's names a token that the tokenizer has not.
    """
    missing = list(_missing_tokens(template, tokenizer))
    if missing and not template.is_own:
        raise ConfigError(
            f"{template.where}: names {', '.join(missing)}, which the teacher's tokenizer has not; use a template "
            "made for it, or add the tokens to tokenizer and models first"
        )
    return [f"its chat template names {', '.join(missing)}, which its tokenizer does not have"] if missing else []


def _missing_tokens(template: ChatTemplate, tokenizer: TokenizerTraits) -> Iterator[str]:
    import jinja2
    from jinja2 import meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 - nothing is rendered
    text = template.text()
    try:
        variables = meta.find_undeclared_variables(environment.parse(MARK.sub("", text)))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{template.where}: line {error.lineno}: {error.message}; correct the template") from error
    yield from sorted(one for one in variables if one in ROLES and one not in tokenizer.roles)
    yield from dict.fromkeys(one for one in TOKEN_OF_TEMPLATE.findall(text) if one not in tokenizer.vocabulary)


class Renderer:
    """Writes conversations by a template, and says which characters are completions."""

    def __init__(self, template: ChatTemplate, tokenizer: Any, *, last_alone: bool) -> None:
        """Write for a loaded tokenizer; ``last_alone``: of several completions the last alone is one."""
        self._template, self._last_alone = template, last_alone
        self._tokens: dict[str, Any] = {
            role: str(token) for role in ROLES if (token := getattr(tokenizer, role, None)) is not None
        }
        self._specials = tuple(str(one) for one in tokenizer.added_tokens_decoder.values() if one.special)

    def render(self, dialogue: Dialogue) -> tuple[str, list[Span]]:
        """The text of a conversation, and the characters of its completions.

        Raises:
            UnclearError: The template refuses the conversation, or does not tell its completions.
        """
        text = _on_one_day(self._template.text(with_tools=dialogue.tools is not None))
        answers = dialogue.answers[-1:] if self._last_alone else dialogue.answers
        try:
            if MARK.search(text):
                return self._by_marks(text, dialogue, answers)
            return self._by_parts(text, dialogue, answers)
        except UnclearError:
            raise
        except Exception as error:  # jinja2's errors, and whatever an expression of the template raises
            raise UnclearError(f"the chat template cannot write it: {' '.join(str(error).split())[:200]}") from error

    def _by_marks(self, template: str, dialogue: Dialogue, answers: Sequence[int]) -> tuple[str, list[Span]]:
        whole, (spans,) = self._write(template, dialogue, return_assistant_tokens_mask=True)
        turns = [place for place, one in enumerate(dialogue.messages) if one["role"] == "assistant"]
        if len(spans) != len(turns):
            raise UnclearError(
                f"the chat template marks {counted(len(spans), 'completion')}, and the assistant has "
                f"{counted(len(turns), 'turn')}"
            )
        return whole, [(first, behind) for turn, (first, behind) in zip(turns, spans, strict=True) if turn in answers]

    def _by_parts(self, template: str, dialogue: Dialogue, answers: Sequence[int]) -> tuple[str, list[Span]]:
        """By what is added to the text before each completion, ready for it, until behind it.

        Both must be beginnings of the whole: then the parts put together are the whole.
        """
        whole, _ = self._write(template, dialogue)
        spans: list[Span] = []
        for place in answers:
            before, _ = self._write(template, dialogue, place, add_generation_prompt=True)
            behind, _ = self._write(template, dialogue, place + 1)
            if not (whole.startswith(behind) and behind.startswith(before)):
                other = "" if self._last_alone else ", or set task.completions: last"
                raise UnclearError(
                    f"the chat template writes what comes until message {place + 1} in another way once more follows, "
                    "so it is unclear what is completion; mark it in the template with {% generation %} and "
                    f"{{% endgeneration %}}{other}"
                )
            spans.append((len(before), len(before) + len(self._until_end_of_turn(behind[len(before) :]))))
        return whole, spans

    def _write(
        self, template: str, dialogue: Dialogue, count: int | None = None, **settings: Any
    ) -> tuple[str, list[list[Span]]]:
        """The first ``count`` messages, and what is marked in them."""
        from transformers.utils.chat_template_utils import render_jinja_template

        made: Any = render_jinja_template(
            conversations=[[dict(one) for one in dialogue.messages[:count]]],
            tools=dialogue.tools,
            chat_template=template,
            **settings,
            **self._tokens,
        )
        (text,), spans = made
        return text, spans

    def _until_end_of_turn(self, completion: str) -> str:
        """Without the white space behind a token that ends it: no model is asked for that."""
        stripped = completion.rstrip()
        return stripped if stripped.endswith(self._specials) else completion


@functools.lru_cache
def _on_one_day(template: str) -> str:
    return TODAY.sub(lambda call: repr(DAY.strftime(call[2])), template)


class UnclearError(ValueError):
    """What of a conversation is completion cannot be told."""


def spans_of_tokens(spans: Sequence[Span], offsets: Sequence[Span]) -> list[int]:
    """The tokens of completions: of each its first, and that behind its last, one after the other.

    A token is of a completion if it has a character of it: one that has some of what is before, too, has to be
    predicted all the same.

    Args:
        spans: The characters of completions, in their order.
        offsets: The characters of each token; none where it is white space, which some tokenizers leave out of them.
    """
    ends = np.asarray([behind for _, behind in offsets], dtype=np.int64)
    starts = np.asarray([first for first, _ in offsets], dtype=np.int64)
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    starts = np.where(starts == ends, np.minimum(before, starts), starts)
    found: list[int] = []
    for first, behind in spans:
        (places,) = np.nonzero((starts < behind) & (ends > first))
        if len(places):
            found += [int(places[0]), int(places[-1]) + 1]
    return found


def cut_to(spans: Sequence[int], length: int) -> list[int]:
    """What is left of the tokens of completions within the first ``length``, where something stands before them."""
    pairs = zip(spans[::2], spans[1::2], strict=True)
    kept = [(max(first, 1), min(behind, length)) for first, behind in pairs]
    return [place for first, behind in kept if first < behind for place in (first, behind)]
