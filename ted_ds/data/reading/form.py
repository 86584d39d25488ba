"""How rows stand in the files of a source, as far as the files do not say it themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

from ted_ds.config.data import KIND_OF_SETTING, Source
from ted_ds.errors import DataError


class Form(NamedTuple):
    """What a source's settings say of its files; most say nothing."""

    delimiter: str | None = None
    """CSV: what is between values."""
    has_quotes: bool = True
    """CSV: whether a value that begins with a quotation mark goes on to the next."""
    columns: tuple[str, ...] = ()
    """CSV: the names of a row's values; none where the first row has them."""
    field: str | None = None
    """JSON: the dotted path of keys to the list of rows."""

    def identity(self) -> list[Any]:
        """What decides the rows that are read; empty where it says nothing."""
        return [] if self == AS_IT_IS else list(self)


AS_IT_IS = Form()
"""Of files that say all of it themselves."""


def form_of(source: Source, kind: str) -> Form:
    """The form of a source whose files are of a format.

    Raises:
        DataError: It says something of files of another format.
    """
    for key, of_kind in KIND_OF_SETTING.items():
        if kind != of_kind and getattr(source, key) is not None:
            raise DataError(
                f"{source.path}: {key}: {getattr(source, key)!r} would have no effect, as its files are {kind}; leave "
                f"{key} out, or set format: {of_kind} if that is what they are"
            )
    return Form(source.delimiter, source.quoting != "none", tuple(source.columns or ()), source.field)
