"""What goes with a model's weights: the tokenizer's files, licences, cards, and token ids that agree with all of these.

A folder that a run writes has the teacher's tokenizer, byte for byte, or that of a student which reads by its own: what
use leaves in a tokenizer in memory (truncation, padding, where it was loaded from) stays there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ted_ds.models.file_kinds import (
    CARD_PREFIXES,
    LICENCE,
    LICENCE_FOLDERS,
    PROGRAM_SUFFIXES,
    TEMPLATES_FOLDER,
    TOKENIZER_PATTERNS,
)
from ted_ds.models.files import GENERATION_CONFIG_FILE
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.found import family_of_config
from ted_ds.models.loading import read_tokenizer
from ted_ds.models.local_paths import without_local_paths
from ted_ds.models.sentencepiece_model import read_sentencepiece
from ted_ds.models.tokenizer_files import ADDED_TOKENS_FILE, SPECIAL_TOKENS_MAP_FILE, TOKENIZER_FILE
from ted_ds.models.tokenizer_settings import TOKENIZER_CONFIG_FILE

TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    ADDED_TOKENS_FILE,
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "tekken.json",
)
CARD = "README.md"
ROLES = ("bos", "eos", "pad", "sep", "cls", "mask", "unk")
ALWAYS_SAID = ("bos", "eos", "pad")


@dataclass(frozen=True)
class Origins:
    """The folders a run started from, which bring tokenizer, licences and cards along."""

    teacher: Path
    student: Path | None
    """None where the student is cut out of the teacher, or random."""
    student_has_tokenizer: bool = False
    """Whether the student reads by a tokenizer of its own; else by the teacher's."""

    def reader_of(self, side: str) -> Path:
        """The folder whose tokenizer, and what goes with that, a side's model has."""
        if side == "student" and self.student is not None and self.student_has_tokenizer:
            return self.student
        return self.teacher

    @property
    def by_name(self) -> dict[str, Path]:
        """Those there are."""
        is_other = self.student is not None and self.student.resolve() != self.teacher.resolve()
        return {"teacher": self.teacher, **({"student": self.student} if self.student and is_other else {})}


def accompany(folder: Path, origins: Origins, side: str = "student") -> None:
    """Put beside the weights and config in ``folder`` what belongs to them; whatever tokenizer is there is replaced.

    They are those of the ``teacher`` or the ``student``.
    """
    for file in _tokenizer_files(folder):
        file.unlink()
    reader = origins.reader_of(side)
    copy_tokenizer(reader, folder)
    _take_over_ids(folder, reader)
    copy_papers(origins, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """A model folder's tokenizer files, byte for byte.

    Where all it has is a SentencePiece model, the conversion that was used comes beside it: transformers alone might
    read other ids out of it (:mod:`ted_ds.models.sentencepiece_model`).
    """
    if not (source / TOKENIZER_FILE).is_file() and read_sentencepiece(source) is not None:
        read_tokenizer(source).save_pretrained(folder)
    for file in _tokenizer_files(source):
        target = folder / file.relative_to(source)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def copy_papers(origins: Origins, folder: Path) -> None:
    """Licences and cards of the models a folder's weights come from.

    A licence keeps its name; where both models bring another file of that name, the student's gets ``.student`` before
    its ending. A card gets ``.teacher`` or ``.student``, as the new model is neither.
    """
    for name, origin in origins.by_name.items():
        for file in sorted(origin.iterdir()):
            if _is_card(file):
                shutil.copyfile(file, folder / f"{file.stem}.{name}{file.suffix}")
        for licence in licences_in(origin):
            file, target = origin / licence, folder / licence
            target.parent.mkdir(exist_ok=True)
            while target.exists() and target.read_bytes() != file.read_bytes():
                target = target.with_name(f"{target.stem}.{name}{target.suffix}")
            shutil.copyfile(file, target)


def cards_in(folder: Path) -> list[str]:
    """Names of the model cards in a folder."""
    return sorted(file.name for file in folder.iterdir() if _is_card(file))


def licences_in(folder: Path) -> list[str]:
    """Names of the licences and notices in a folder, and in those of its folders that are for them."""
    own = [file for file in folder.iterdir() if _is_licence(file) and not _is_card(file)]
    first, *others = LICENCE_FOLDERS
    own += [file for file in folder.glob(f"{first}/*") if _is_paper(file)]
    own += [file for other in others for file in folder.glob(f"{other}/*") if _is_licence(file)]
    return sorted(file.relative_to(folder).as_posix() for file in own)


def _is_paper(file: Path) -> bool:
    return file.is_file() and file.suffix not in PROGRAM_SUFFIXES


def _is_card(file: Path) -> bool:
    return _is_paper(file) and file.name.lower().startswith(CARD_PREFIXES)


def _is_licence(file: Path) -> bool:
    return _is_paper(file) and LICENCE.search(file.name.lower()) is not None


def hub_name(folder: Path) -> str | None:
    """The hub's name of a model that came from its cache; None for any other folder."""
    repository = folder.parent.parent.name
    is_cached = folder.parent.name == "snapshots" and repository.startswith("models--")
    return repository.removeprefix("models--").replace("--", "/") if is_cached else None


def _tokenizer_files(folder: Path) -> list[Path]:
    own = [file for file in sorted(folder.iterdir()) if _is_of_tokenizer(file)]
    return [*own, *sorted((folder / TEMPLATES_FOLDER).glob("*.jinja"))]


def _is_of_tokenizer(file: Path) -> bool:
    named = file.name in TOKENIZER_FILES or any(fnmatchcase(file.name, pattern) for pattern in TOKENIZER_PATTERNS)
    return named and file.is_file()


def _take_over_ids(folder: Path, reader: Path) -> None:
    """Let the folder's configs mean the special tokens of the model it reads by: a student may have come with others.

    What the configs of that ``reader`` say is kept where its tokenizer does not say otherwise; and an id behind which a
    model's positions begin stays that by which it was trained.
    """
    tokenizer = read_tokenizer(reader)
    own = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    config, of_reader = _read(folder / CONFIG_FILE), _read(reader / CONFIG_FILE)
    is_classifier = any("SequenceClassification" in name for name in config.get("architectures") or ())
    of_positions = family_of_config(config, folder / CONFIG_FILE).padding_row_key
    for role in ROLES:
        key = f"{role}_token_id"
        if key != of_positions and (role in ALWAYS_SAID or key in config):
            found = _agreed(role, own, of_reader.get(key))
            if role == "pad" and found is None and is_classifier:  # a decoder finds the last token by it
                found = config.get(key)
            config[key] = found
    _write(folder / CONFIG_FILE, without_local_paths(config))
    if (folder / GENERATION_CONFIG_FILE).is_file():  # else it predicts no tokens
        _agree_in_generation(folder, reader, own, config)


def _agree_in_generation(folder: Path, reader: Path, own: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """The way of generating of the model it reads by; where that says nothing, only what the config says."""
    target, source = folder / GENERATION_CONFIG_FILE, reader / GENERATION_CONFIG_FILE
    if not source.is_file():
        written = _read(target)
        said = {f"{role}_token_id": config[f"{role}_token_id"] for role in ALWAYS_SAID}
        kept = {key: written[key] for key in ("_from_model_config", "transformers_version") if key in written}
        _write(target, {**kept, **{key: value for key, value in said.items() if value is not None}})
        return
    generation = without_local_paths(_read(source))
    for role in ALWAYS_SAID:
        key = f"{role}_token_id"
        if generation.get(key) is not None or role == "eos":
            found = _agreed(role, own, generation.get(key))
            if found != generation.get(key):
                generation[key] = found
    if generation == _read(source):
        shutil.copyfile(source, target)
    else:
        _write(target, generation)


def _agreed(role: str, own: Mapping[str, Any], said: Any) -> Any:
    """The ids of a role: the tokenizer's own, or what a config says besides."""
    ids = said if isinstance(said, list) else [said]
    if own[role] is None or own[role] in ids:
        return said
    if role == "eos" and said is not None:  # it may end in more than one way
        return [own[role], *ids]
    # an embedding of padding is never trained by those who load it: the end token's must be
    if role == "pad" and said is None and own["pad"] == own["eos"]:
        return None
    return own[role]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.unlink(missing_ok=True)  # a copy may be read-only, as what it is a copy of
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
