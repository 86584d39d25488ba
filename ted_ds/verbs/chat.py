"""The verb ``chat``: a conversation with a run's student, or the model of any of its phases, beside the teacher."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ted_ds.errors import DataError, counted
from ted_ds.verbs.asked_models import asked_models
from ted_ds.verbs.speakers import Turn, Writer, architecture_of, is_for

ANEW = "/new"
COMMANDS = f"{ANEW} forgets the conversation, Ctrl-D ends"
COMMAND = re.compile(r"/[A-Za-z][\w-]*(\s|$)")
"""What a text begins with that is a command, and no path."""


def chat(folder: Path, teacher: Path | None, *, max_new_tokens: int) -> None:
    """Answer what is typed, or once what the standard input has, by the model of ``folder`` and its teacher.

    Args:
        folder: A run's, of one of its phases, or a model's.
        teacher: A model folder; None for that of the run.
        max_new_tokens: Of each answer, at most.

    Raises:
        DataError: There is no model, or it is no causal language model; the text is empty or too long.
    """
    paths = asked_models(folder, teacher).paths
    for path in paths.values():
        _refuse_others(path)
    text = None if sys.stdin.isatty() else sys.stdin.read().strip()
    if text == "":
        raise DataError("the standard input has no text; give one, or start this in a terminal")
    writers = {name: Writer.at(path, max_new_tokens) for name, path in paths.items()}
    if text is not None:
        for name, writer in writers.items():
            said = writer.answer([{"role": "user", "content": text}])[0] if writer.answers else writer.go_on(text)
            print(f"{name}:\n{said}\n")
        return
    _converse(writers)


def _converse(writers: dict[str, Writer]) -> None:
    for name, writer in writers.items():
        what = "answers" if writer.answers else "has no chat template: it goes on with each text by itself"
        print(f"{name} ({writer.path}) {what}")
    print(f"type a text and press Enter; {COMMANDS}")
    talks: dict[str, list[Turn]] = {name: [] for name in writers}
    for text in _typed():
        if text == ANEW:
            talks = {name: [] for name in writers}
            continue
        if COMMAND.match(text):
            print(f"there is no {text.split()[0]}; {COMMANDS}; a text that begins so is sent with a blank before it")
            continue
        for name, writer in writers.items():
            print(f"\n{name}:")
            try:
                _reply(writer, talks[name], text.strip())
            except DataError as error:  # the next one may be shorter
                print(f"WARN {error}")


def _reply(writer: Writer, talk: list[Turn], text: str) -> None:
    if not writer.answers:
        writer.go_on(text, shown=True)
        return
    asked: list[Turn] = [*talk, {"role": "user", "content": text}]
    said, left_out = writer.answer(asked, shown=True)
    if left_out:
        print(f"(without the first {counted(left_out, 'turn')}: beyond its positions)")
    talk[:] = [*asked[left_out:], {"role": "assistant", "content": said}]


def _typed() -> Iterator[str]:
    while True:
        try:
            text = input("\n> ").rstrip()
        except EOFError:
            print()
            return
        if text.strip():
            yield text


def _refuse_others(path: Path) -> None:
    """Make sure that a folder's model writes texts.

    Raises:
        DataError: It is no causal language model.
    """
    if not is_for(path, "CausalLM"):
        raise DataError(
            f"{path}: {architecture_of(path)} is no causal language model and writes no text; what a run's models make "
            "of texts is shown by: ted-ds predict RUN 'a text'"
        )
