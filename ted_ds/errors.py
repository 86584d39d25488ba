"""The errors a run can end with.

    TedError                 exit code 2, one message, no traceback
    ├── ConfigError          the recipe or the DeepSpeed JSON is wrong
    ├── TopologyError        ranks, batch sizes and sharding do not fit together
    ├── DataError            a data file or a row of it is wrong
    ├── CheckpointError      a model, filter, checkpoint or phase folder is missing, damaged or of another run
    │   └── OtherVersionError    a checkpoint is whole, and of a version of its files that is not read here
    ├── NumericsError        a loss became NaN or infinite
    ├── StoreError           what is kept at an object store cannot be written, read or found whole
    ├── OwnCodeError         Python code that was given to a run, or a plug-in, failed
    ├── StoppedOnRequest     exit code 75: a signal or the wall-clock budget; start the same command to go on
    └── RankLostError        exit code 76: another rank died or hangs; start the same command to go on
        └── DeviceFaultError exit code 76: hardware of a rank failed; start the same command to go on

Each message says where the mistake is, what was given, the rule, and what to do:
``recipe.yaml: layer_map.pairs[3]: teacher block 33 does not exist (the model has 32 blocks); use 1..32``.
Anything else that is raised is a defect of ted_ds and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: float, noun: str, several: str | None = None) -> str:
    """So many of something: ``1 rank``, ``2 ranks``, ``1,000 steps``, ``0.5 epochs``.

    Args:
        number: How many.
        noun: What one is called.
        several: What others are, where that is not by ``s`` or ``es``.
    """
    plural = several or noun + ("es" if noun.endswith(("s", "x", "tch")) else "s")
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural}"


class TedError(Exception):
    """The command line prints it without a traceback and exits with its code: 2 where the user can mend something."""

    exit_code = 2
    agreed = False
    """Whether every rank raises this error with this text, so that one of them need print it."""


class ConfigError(TedError):
    """The recipe or the DeepSpeed JSON is wrong."""


class TopologyError(TedError):
    """Ranks, batch sizes and sharding do not fit together."""


class DataError(TedError):
    """A data file, or a row of it, is wrong."""


class CheckpointError(TedError):
    """A model, filter, checkpoint or phase folder is missing, damaged, or belongs to another run."""


class OtherVersionError(CheckpointError):
    """A checkpoint is whole, but its files are of another version than those that this ted_ds reads."""


class NumericsError(TedError):
    """A loss became NaN or infinite."""


class StoreError(TedError):
    """A store that keeps checkpoints beside the local disk does not do what is asked of it."""


class OwnCodeError(TedError):
    """Python code that was given to a run, or a package that adds to ted_ds, failed; its own error is the cause."""


class StoppedOnRequest(TedError):
    """All ranks agreed to stop, and what they had is saved: no mistake, and to be started again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
    agreed = True


class RankLostError(TedError):
    """Another rank no longer answers."""

    exit_code = 76  # EX_PROTOCOL of sysexits.h: the other side broke off


class DeviceFaultError(RankLostError):
    """A GPU, or NCCL on it, failed, or a rank's machine does not compute the same twice: it is lost to the others."""


def raise_all(messages: Sequence[str], kind: type[TedError] = ConfigError) -> None:
    """Raise one ``kind`` that lists every message, so that a user mends all mistakes in one go.

    Does nothing when ``messages`` is empty.
    """
    if messages:
        raise kind("\n".join(messages))
