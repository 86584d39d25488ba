"""Files that Git LFS has left a pointer in the place of: a clone without ``git lfs`` holds these."""

from __future__ import annotations

BEGINNING = b"version https://git-lfs.github.com/spec/"
WHAT_TO_DO = "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"


def is_lfs_pointer(first_bytes: bytes) -> bool:
    """Whether a file that begins with ``first_bytes`` is a pointer to where its content is stored."""
    return first_bytes.startswith(BEGINNING)
