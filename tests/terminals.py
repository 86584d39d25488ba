"""Programs on a terminal: what they write there, and what a person types."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

LONGEST_END_S = 60
"""How long a program may take to end once it has closed the terminal."""


def on_terminal(command: Sequence[str], environment: Mapping[str, str], *, typed: str = "", columns: int = 80) -> str:
    """All that a command that succeeds writes to a terminal of that width, where ``typed`` is waiting for it."""
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    own_size = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=own_size)
    os.close(its)
    os.write(own, typed.encode())
    found = b""
    try:
        while chunk := os.read(own, 1 << 16):
            found += chunk
    except OSError:  # the other end is closed
        pass
    os.close(own)
    assert process.wait(LONGEST_END_S) == 0, found.decode()
    return found.decode()
