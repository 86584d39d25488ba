"""The recipe's ``evaluation`` section: how much is scored, when, and on what tests of language models."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ted_ds.config.data import Source
from ted_ds.config.section import Section, rule

LM_EVAL = "lm-eval"
TEST_NAME = re.compile(r"[\w.-]+")


class LanguageTest(Section):
    """Texts that a language model is tested on, one by one."""

    sources: list[Source] = Field(min_length=1)
    """Each document, in ``task.text_column`` (of a chat: ``text``), is read alone; of a text file, ``documents`` says
    what one is."""
    window: int | None = Field(default=None, gt=1)
    """Most tokens the model sees at once; unset: ``task.sequence_length``."""


class StridedPerplexity(LanguageTest):
    """Perplexity of whole texts: a window moves over each, and every token is scored once, with what is before it."""

    stride: int | None = Field(default=None, gt=0)
    """How far the window moves; so many tokens at its end are scored. Unset: half of it."""
    detokenizer: Literal["none", "wikitext"] = "none"
    """How texts are written before the model reads them: ``wikitext`` undoes the spaces and ``@-@`` of WikiText. Words
    are counted in the texts as they are."""


class LastWord(LanguageTest):
    """The last word of each text from all before it, as in LAMBADA."""


def is_task_file(task: str) -> bool:
    """Whether a task of lm-eval is given by its file."""
    return task.endswith(".yaml")


class Evaluation(Section):
    """How much is scored, and when."""

    every_steps: int | None = Field(default=None, gt=0)
    """Also during training, after every so many steps; unset: when a phase is over."""

    max_examples: int = Field(default=1000, gt=0)
    """Held-out examples, or packed sequences, that are scored."""
    micro_batch_size: int = Field(default=8, gt=0)
    """Examples per rank and forward pass."""
    models: Literal["all", "student"] = "all"
    """What is scored at the end: teacher, and the student at each stage of its training; or the ``student`` that comes
    out alone."""
    outcomes: bool = False
    """Keep what each example came to at the end, in ``evaluate/outcomes``: a loss, and what the headline metric is
    made of."""
    samples: int = Field(default=4, ge=0)
    """Keep a few held-out texts for the report, in ``evaluate/samples.json``: so many of each kind of changed
    prediction, or beginnings that teacher and student go on from. 0: none, as where texts must not be copied."""
    perplexity: dict[str, StridedPerplexity] | None = None
    """Causal LMs and chats: tests by a name of your own; by the phase ``evaluate``, as ``NAME/token_perplexity`` and so
    on."""
    last_word: dict[str, LastWord] | None = None
    """Causal LMs and chats: the same, as ``NAME/accuracy`` and ``NAME/perplexity``."""
    lm_eval: list[str] | None = Field(default=None, min_length=1)
    """Causal LMs and chats: tasks that lm-eval runs on the exported student, by their names; or YAML files (``*.yaml``)
    of tasks of your own. Needs ``pip install 'ted_ds[lm_eval]'``."""

    @property
    def tests(self) -> Iterator[tuple[str, str, LanguageTest]]:
        """The place of each test in this section, its name, and itself."""
        for key in ("perplexity", "last_word"):
            yield from ((f"{key}.{name}", name, test) for name, test in (getattr(self, key) or {}).items())

    @rule
    def _tasks_are_distinct(self) -> Iterator[str]:
        tasks = self.lm_eval or []
        if len({*tasks}) < len(tasks):
            yield f"lm_eval: {tasks} has a task twice; name each once"

    @rule
    def _tests_have_names_of_their_own(self) -> Iterator[str]:
        names = [name for _, name, _ in self.tests]
        for place, name, _ in self.tests:
            if not TEST_NAME.fullmatch(name):
                yield f"{place}: {name!r}: use letters, digits, '_', '.' and '-'; metrics are called by it"
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"perplexity and last_word: both have a test {name!r}; give each a name of its own"


def lm_eval_mistakes(tasks: Sequence[str] | None) -> list[str]:
    """What is missing here to run tasks of lm-eval: the package, or a task's file."""
    found = []
    if tasks and importlib.util.find_spec("lm_eval") is None:
        found.append(
            f"the package {LM_EVAL}, which runs these tasks, is not installed here: pip install 'ted_ds[lm_eval]'; or "
            "remove them"
        )
    found += [f"{task}: no such task file" for task in tasks or () if is_task_file(task) and not Path(task).is_file()]
    return found
