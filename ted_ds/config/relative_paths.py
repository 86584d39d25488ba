"""Relative paths in a recipe: from the folder of the file that says them, or from the working directory.

One that begins with ``./`` or ``../`` is from the folder of the recipe in whose file it stands. Any other is from the
working directory; what is read and not there, and is in the recipe's folder, is meant there. What stands on the command
line is from the working directory.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ted_ds.config.extends import Chain

READ = re.compile(
    r"(teacher|student|student\.from_config|data\..+\[\d+\]|evaluation\..+\[\d+\])\.path|deepspeed|task\.chat_template"
    r"|data\.glue_folder|evaluation\.lm_eval\[\d+\]|teacher\.cache\.rows\.compression"
)
"""Places of files and folders that a run reads; names of the hub and of what ships may stand there, too."""
WRITTEN = re.compile(r"output_dir|shared_phases|teacher\.(cache\.dir|offload_dir)")
"""Of folders that it writes."""
OF_ARM = re.compile(r"study\.arms\.[^.]+\.")
OWN = ("./", "../")


def follow_recipe(values: Any, chain: Chain) -> None:
    """Put paths that are from a recipe's folder as they are from the working directory, and note which they are.

    Args:
        values: The recipe's raw values, which are changed.
        chain: Its files.
    """
    for holder, key, place in [*_texts(values, "")]:
        key_of_recipe = OF_ARM.sub("", place)  # an arm's keys are those of the recipe
        is_read = READ.fullmatch(key_of_recipe) is not None
        value = holder[key]
        if not is_read and not WRITTEN.fullmatch(key_of_recipe):
            continue
        if chain.is_from_command_line(place) or "://" in value or Path(value).is_absolute():
            continue
        moved, is_own = _from(chain.file_of(place).parent, value), value.startswith(OWN)
        if is_own or (is_read and not _is_there(value) and _is_there(moved)):
            holder[key] = moved
            chain.followed[place] = value
        if is_own and is_read and not _is_there(moved) and _is_there(value):
            chain.missing[place] = (
                f"{value} is in the working directory, but what begins with ./ or ../ is from the folder of the recipe"
            )
        elif not is_own and is_read and not _is_there(value) and not _is_there(moved):
            chain.missing[place] = f"nor {moved}, in the folder of the recipe"


def _texts(values: Any, place: str) -> Iterator[tuple[Any, Any, str]]:
    """Every text in some values: what holds it, by which key, and its place."""
    if isinstance(values, dict):
        items = [(key, f"{place}.{key}".lstrip(".")) for key in values]
    elif isinstance(values, list):
        items = [(index, f"{place}[{index}]") for index in range(len(values))]
    else:
        return
    for key, own in items:
        if isinstance(values[key], str):
            yield values, key, own
        else:
            yield from _texts(values[key], own)


def _from(folder: Path, value: str) -> str:
    """A path as seen from the working directory: no name of the hub, as that has no ``./``."""
    path = folder / value
    return str(path) if path.is_absolute() or path.parts[:1] == ("..",) else f"./{path}"


def _is_there(path: str) -> bool:
    return Path(path).exists() or bool(glob.glob(path, recursive=True))
