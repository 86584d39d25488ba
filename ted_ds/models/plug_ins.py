"""What installed packages add to ted_ds, by Python's entry points: found by name, and loaded when it is asked for.

A recipe names data and never code. So code comes from what was installed on purpose, and from nowhere else.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from ted_ds.errors import OwnCodeError

FAMILIES, TERMS = "ted_ds.families", "ted_ds.terms"
Kind = TypeVar("Kind")


@functools.cache
def _of_group(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for one in entry_points(group=group):
        found.setdefault(one.name, []).append(one)
    return found


def names_of_plug_ins(group: str) -> list[str]:
    """The names that installed packages have in a group."""
    return sorted(_of_group(group))


def load_plug_in(group: str, name: str, kind: type[Kind]) -> Kind | None:
    """What a package has under a name, which must be of a ``kind``; None where none has it.

    Raises:
        OwnCodeError: It cannot be imported, is something else, or several packages have it.
    """
    found = _of_group(group).get(name)
    if not found:
        return None
    if len(found) > 1:
        packages = ", ".join(sorted(map(_package, found)))
        raise OwnCodeError(f"{group}: {name}: given by several packages ({packages}); uninstall all but one of them")
    (point,) = found
    try:
        value = point.load()
    except Exception as error:  # whatever a package does as it is imported
        raise OwnCodeError(f"{_package(point)}: its {group}: {name}: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise OwnCodeError(f"{_package(point)}: its {group}: {name}: {value!r:.100} is no {kind.__name__}")
    return value


def _package(point: EntryPoint) -> str:
    return "a package without a name" if point.dist is None else f"{point.dist.name} {point.dist.version}"
