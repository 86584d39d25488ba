"""The verb ``chat``: a conversation with a run's student, or the model of any of its phases, beside the teacher."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ted_ds.errors import DataError
from ted_ds.models.folder import ADAPTER_FILE, CONFIG_FILE
from ted_ds.output.results import STUDENT, TEACHER
from ted_ds.output.run_folder import RUN_FILE
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.planning.phase import EVALUATE, FINETUNE_TEACHER
from ted_ds.reports.reading import read_run_record
from ted_ds.verbs.predict import models_of
from ted_ds.verbs.speakers import Turn, Writer

ANEW = "/new"


def chat(folder: Path, teacher: Path | None, *, max_new_tokens: int) -> None:
    """Answer what is typed, or once what the standard input has, by the model of ``folder`` and its teacher.

    Args:
        folder: A run's, of one of its phases, or a model's.
        teacher: A model folder; None for that of the run.
        max_new_tokens: Of each answer, at most.

    Raises:
        DataError: There is no model, or it is no causal language model; the text is empty or too long.
    """
    paths = _models(folder, teacher)
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
    print(f"type a text and press Enter; {ANEW} forgets the conversation, Ctrl-D ends")
    talks: dict[str, list[Turn]] = {name: [] for name in writers}
    for text in _typed():
        if text == ANEW:
            talks = {name: [] for name in writers}
            continue
        for name, writer in writers.items():
            print(f"\n{name}:")
            try:
                _reply(writer, talks[name], text)
            except DataError as error:  # the next one may be shorter
                print(f"WARN {error}")


def _reply(writer: Writer, talk: list[Turn], text: str) -> None:
    if not writer.answers:
        writer.go_on(text, shown=True)
        return
    asked: list[Turn] = [*talk, {"role": "user", "content": text}]
    said, left_out = writer.answer(asked, shown=True)
    if left_out:
        print(f"(without the first {left_out} turns: they are beyond its positions)")
    talk[:] = [*asked[left_out:], {"role": "assistant", "content": said}]


def _typed() -> Iterator[str]:
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return
        if text:
            yield text


def _models(folder: Path, teacher: Path | None) -> dict[str, Path]:
    """The teacher, where there is one, and the student, by name."""
    if (folder / RUN_FILE).is_file():
        found = models_of(read_run_record(folder))
        found = {name: found[name] for name in (TEACHER, STUDENT) if name in found}
    else:
        student = _model_in(folder)
        of_run = _teacher_of_run(folder)
        is_itself = of_run is not None and of_run.resolve() == student.resolve()
        found = {} if of_run is None or is_itself else {TEACHER: of_run}
        found[folder.resolve().name] = student
    return found if teacher is None else {**found, TEACHER: _model_in(teacher)}


def _model_in(folder: Path) -> Path:
    for place in (folder, folder / MODEL_FOLDER):
        if (place / CONFIG_FILE).is_file():
            return place
        if (place / ADAPTER_FILE).is_file():
            raise DataError(
                f"{place}: an adapter without its model; give the whole model, as distill/model of a run is"
            )
    raise DataError(
        f"{folder}: no run began in this folder (it has no {RUN_FILE}), and there is no model in it (no {CONFIG_FILE}, "
        f"nor in a folder {MODEL_FOLDER}); give the output_dir of a run, one of its phases, or a model folder"
    )


def _teacher_of_run(folder: Path) -> Path | None:
    """That of the run which a folder is in, as far as it is known and seen from here."""
    run = next((one for one in folder.resolve().parents[:2] if (one / RUN_FILE).is_file()), None)
    if run is None:
        return None
    scored = read_run_record(run).finished(EVALUATE.name)
    if scored is not None and TEACHER in scored.inputs["models"]:
        path = Path(scored.inputs["models"][TEACHER]["path"])
    else:
        path = run / FINETUNE_TEACHER.name / MODEL_FOLDER
    return path if (path / CONFIG_FILE).is_file() else None


def _refuse_others(path: Path) -> None:
    """Make sure that a folder's model writes texts.

    Raises:
        DataError: It is no causal language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = {
        name for one in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in ([one] if isinstance(one, str) else one)
    }
    named = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures") or []
    if known.isdisjoint(named):
        raise DataError(
            f"{path}: {', '.join(named) or 'a model without a named architecture'} is no causal language model and "
            f"writes no text; what a run's models make of texts is shown by: ted-ds predict RUN 'a text'"
        )
