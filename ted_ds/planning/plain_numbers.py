"""Numbers as people write them: 5,900 and no 5.9e+03, and sizes in the unit that suits them."""

from __future__ import annotations

from ted_ds.errors import counted


def plainly(number: float, *, digits: int = 3) -> str:
    """A number of so many digits, with commas between thousands: 2.5, 5,900."""
    return f"{float(f'{number:.{digits}g}'):,.15g}"


def in_bytes(size: int) -> str:
    """Bytes in words, as such below a million."""
    if size < 1e6:
        return counted(size, "byte")
    return f"{plainly(size / 1e6)} MB" if size < 1e9 else f"{plainly(size / 1e9)} GB"
