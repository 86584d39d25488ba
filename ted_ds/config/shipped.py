"""What ships beside the modules: recipes, DeepSpeed files, chat templates, launchers.

In a checkout they stand in the repository's root, and in an installed package in its folder ``shipped``
(``setup.py`` copies them there).
"""

from __future__ import annotations

from pathlib import Path

RECIPES, DEEPSPEED, CHAT_TEMPLATES = "ds_configs/recipes", "ds_configs/deepspeed", "ds_configs/chat_templates"
AUTO = Path("auto")
"""In the place of a DeepSpeed file's name: that one of those that ship is chosen once models and free memory are known
(:mod:`ted_ds.planning.deepspeed_choice`)."""
PACKAGE = Path(__file__).parent.parent
ROOT = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent


def shipped(name: str) -> Path:
    """A file or folder that ships, by its name below the root; as seen from the folder a program is in, if below it."""
    place = ROOT / name
    try:
        return place.relative_to(Path.cwd())
    except ValueError:
        return place


def named(value: str, folder: str, ending: str) -> str | Path:
    """What a user calls by the name of a file in a folder that ships, without its ending; anything else as it is.

    A file of that very name, where the program is, is meant before one that ships.
    """
    place = ROOT / folder / f"{value}{ending}"
    is_name = not Path(value).is_absolute() and ".." not in value and place.is_file() and not Path(value).exists()
    return shipped(f"{folder}/{value}{ending}") if is_name else value


def names_in(folder: str, ending: str) -> list[str]:
    """The names that :func:`named` knows of a folder."""
    place = ROOT / folder
    files = place.rglob(f"*{ending}")
    return sorted(str(file.relative_to(place)).removesuffix(ending) for file in files)
