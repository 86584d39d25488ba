"""The hosts of a hostfile: which of them answer, what they are told of the environment, how ranks there are ended."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ted_ds.errors import ConfigError, TopologyError
from ted_ds.launching.records import LOG_DIR, RankRecord

SSH = ("ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5")
SSH_TIMEOUT_S = 20.0
AT_ONCE = 32
ASK_AGAIN_S = 5.0
PASSED_ON = re.compile(
    r"(TED_DS|HF|TRANSFORMERS|TOKENIZERS|OMP|MKL|MALLOC|DS|TORCH|NCCL|GLOO|FI|UCX|WANDB)_\w+|PATH|LD_LIBRARY_PATH|LANG"
)
"""Variables that reach the ranks of other hosts."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
"""Those that do not: a command line, which every user of a host can read, is how they would travel."""
OWN_FILE = ".deepspeed_env"


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    line: str


def read_hostfile(file: Path) -> list[Host]:
    """The hosts of DeepSpeed's hostfile: a name and ``slots=N`` on each line.

    Raises:
        ConfigError: It cannot be read, or a line is another.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read as a hostfile: {error}") from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not re.fullmatch(r"[\w.:-]+\s+slots=[1-9]\d*", text):
            raise ConfigError(f"{file}:{number}: {line!r}: must be a host and its processes, such as node1 slots=8")
        name = text.split()[0]
        if name in [host.name for host in hosts]:
            raise ConfigError(f"{file}:{number}: {name} is there twice; give each host one line")
        hosts.append(Host(name, text))
    if not hosts:
        raise ConfigError(f"{file}: names no host; give lines such as node1 slots=8")
    return hosts


def wait_for_hosts(
    hosts: Sequence[Host], *, at_least: int, wait_s: float, say: Callable[[str], None], is_over: Callable[[], bool]
) -> list[Host]:
    """Those that answer: all of them, or, once ``wait_s`` have passed, at least so many.

    Raises:
        TopologyError: They are too few.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            reasons = dict(zip(hosts, pool.map(_why_silent, hosts), strict=True))
        there = [host for host in hosts if reasons[host] is None]
        silent = {host.name: reason for host, reason in reasons.items() if reason is not None}
        if not silent:
            return there
        if time.monotonic() >= deadline or is_over():
            said = "; ".join(f"{name}: {reason}" for name, reason in silent.items())
            if len(there) < at_least:
                raise TopologyError(
                    f"{len(there)} of {len(hosts)} hosts answer over ssh, at least {at_least} must ({said}); mend or "
                    "replace them in the hostfile, or allow fewer"
                )
            say(f"going on without {', '.join(silent)} ({said})")
            return there
        time.sleep(min(ASK_AGAIN_S, max(deadline - time.monotonic(), 0.1)))


def _why_silent(host: Host) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - no shell here
            [*SSH, host.name, "true"], capture_output=True, text=True, timeout=SSH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SSH_TIMEOUT_S:g} s"
    except OSError as error:
        raise TopologyError(f"ssh cannot be started: {error}; install it") from error
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def write_environment(file: Path, environment: Mapping[str, str], own_folder: Path) -> None:
    """Write what ``deepspeed`` tells all hosts; lines of the user's own ``.deepspeed_env`` come last, and win.

    Args:
        file: To write; ``$DS_ENV_FILE`` names it to ``deepspeed``.
        environment: Of this process.
        own_folder: Where the user's own file may be.
    """
    lines = [
        f"{name}={_quoted(value)}"
        for name, value in sorted(environment.items())
        if PASSED_ON.fullmatch(name) and not SECRET.search(name) and "\n" not in value
    ]
    for own in (Path.home() / OWN_FILE, own_folder / OWN_FILE):
        if own.is_file():  # deepspeed fails on a line without =
            lines += [line for line in own.read_text(encoding="utf-8").splitlines() if "=" in line]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _quoted(value: str) -> str:
    """As it must be between the double quotes that ``deepspeed`` puts around it."""
    return re.sub(r'([\\"$`])', r"\\\1", value)


def end_ranks(records: Sequence[RankRecord], folder: Path, own_host: str, say: Callable[[str], None]) -> None:
    """Kill what is left of an attempt's ranks, on every host; a process of another is never hit."""
    left: dict[str, list[RankRecord]] = {}
    for record in records:
        if record.ended is None:
            left.setdefault(record.host, []).append(record)
    if not left:
        return
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda host: _end_on(host, left[host], folder, is_here=host == own_host), left)
    for host, failure in zip(left, results, strict=True):
        if failure:
            say(f"WARN {host}: ranks may be left there: {failure}")


def _end_on(host: str, records: Sequence[RankRecord], folder: Path, *, is_here: bool) -> str | None:
    mark = shlex.quote(f"{LOG_DIR}={folder}")
    is_ours = "tr '\\0' '\\n' < /proc/{0}/environ 2>/dev/null | grep -qxF {1}"
    script = "; ".join(f"if {is_ours.format(one.process, mark)}; then kill -9 {one.process}; fi" for one in records)
    command = ["bash", "-c", script] if is_here else [*SSH, host, script]
    try:
        done = subprocess.run(  # noqa: S603 - numbers, and a path that is quoted
            command, capture_output=True, text=True, timeout=SSH_TIMEOUT_S, check=False, env=dict(os.environ)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
