"""The hosts of a hostfile: which of them answer, what they are told of the environment, how ranks there are ended."""

from __future__ import annotations

import concurrent.futures
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ted_ds.errors import ConfigError, TopologyError, counted
from ted_ds.launching.records import LOG_DIR

SSH = ("ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5")
SSH_TIMEOUT_S = 20.0
AT_ONCE = 32
ASK_AGAIN_S = 5.0
PASSED_ON = re.compile(
    r"(TED_DS|HF|TRANSFORMERS|TOKENIZERS|OMP|MKL|MALLOC|DS|TORCH\w*|PYTORCH|TRITON|CUDA|CUBLAS|CUDNN|NVIDIA|NCCL|GLOO|"
    r"FI|OFI|UCX|SHARP|WANDB|TRACKIO)_\w+|PATH|LD_LIBRARY_PATH|TMPDIR|LANG"
)
"""Variables that reach the ranks of other hosts."""
OF_ONE_HOST = re.compile(r"(CUDA|NVIDIA)_VISIBLE_DEVICES")
"""Those that do not, as they count the GPUs of this one."""
SECRET = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|TRACKIO_SERVER_URL")  # which may hold a token
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
            if is_over():
                return there
            if len(there) < at_least:
                raise TopologyError(
                    f"{len(there)} of {counted(len(hosts), 'host')} answer over ssh, at least {at_least} must "
                    f"({said}); mend or "
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
        if PASSED_ON.fullmatch(name)
        and not OF_ONE_HOST.fullmatch(name)
        and not SECRET.search(name)
        and "\n" not in value
    ]
    for own in (Path.home() / OWN_FILE, own_folder / OWN_FILE):
        if own.is_file():  # deepspeed fails on a line without =
            lines += [line for line in own.read_text(encoding="utf-8").splitlines() if "=" in line]
    file.touch(mode=0o600)  # the user's own file may hold what others should not read
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _quoted(value: str) -> str:
    """As it must be between the double quotes that ``deepspeed`` puts around it."""
    return re.sub(r'([\\"$`])', r"\\\1", value)


def end_ranks(hosts: Sequence[str], folder: Path, *, grace_s: float, say: Callable[[str], None]) -> None:
    """Wait for what is left of an attempt's ranks, then kill it, on this host and on others; nothing else is hit.

    Args:
        hosts: The others, as ssh knows them.
        folder: The attempt's, which its processes have in their environment.
        grace_s: How long they may still save and end.
        say: Takes messages.
    """
    until = time.monotonic() + grace_s
    places = [None, *hosts]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        while time.monotonic() < until and any(number for number in pool.map(lambda one: _find(one, folder), places)):
            time.sleep(1.0)
        for host, number in zip(places, pool.map(lambda one: _find(one, folder, kill=True), places), strict=True):
            if number is None:
                say(f"WARN {host}: does not answer: ranks may be left there")
            elif number:
                say(f"{host or 'this host'}: killed {counted(number, 'process')} that the attempt left")


def _find(host: str | None, folder: Path, *, kill: bool = False) -> int | None:
    """The number of an attempt's processes on a host, None for this one; None where that cannot be told."""
    mark = shlex.quote(f"{LOG_DIR}={folder}")
    script = (
        "n=0; for e in /proc/[0-9]*/environ; do "
        f"if tr '\\0' '\\n' < $e 2>/dev/null | grep -qxF {mark}; then n=$((n + 1)); "
        + ("p=${e#/proc/}; kill -9 ${p%/environ}; " if kill else "")
        + "fi; done; echo $n"
    )
    # whatever the user's shell there is
    command = ["bash", "-c", script] if host is None else [*SSH, host, f"bash -c {shlex.quote(script)}"]
    try:
        done = subprocess.run(  # noqa: S603 - a path that is quoted
            command, capture_output=True, text=True, timeout=SSH_TIMEOUT_S, check=False
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
