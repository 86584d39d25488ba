"""What the recipe and the environment say of Weights & Biases: whether numbers leave this machine, and their names.

A word that is not known is refused: no guess may send away what somebody meant to keep.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ted_ds.config.environment import is_true
from ted_ds.errors import ConfigError

MODE_VARIABLE, DISABLED_VARIABLE = "WANDB_MODE", "WANDB_DISABLED"
MODE_OF_WORD = {
    "online": "online",
    "run": "online",
    "shared": "shared",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""W&B's own words for ``$WANDB_MODE``, older ones included, and what they mean."""
SENDING = ("online", "shared")
"""The modes in which numbers leave this machine; they need an account."""
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""W&B's own, one of which a login is for unless ``$WANDB_BASE_URL`` names another."""
LONGEST_NAME = 128
NOT_IN_NAMES = "/\\#?%:"


def wandb_mode(wanted: str, environment: Mapping[str, str]) -> str:
    """The mode that ``tracking.wandb`` comes to: ``online``, ``shared``, ``offline`` or ``disabled``.

    ``auto`` is ``$WANDB_DISABLED``, then ``$WANDB_MODE``, else online with an account and offline without one; another
    word of the recipe counts before ``$WANDB_MODE``, as an argument does for W&B, but sends nothing against its word.

    Raises:
        ConfigError: A variable has a word that W&B does not know, or contradicts the recipe.
    """
    is_disabled = is_true(environment, DISABLED_VARIABLE)
    told = environment.get(MODE_VARIABLE)
    if told is not None and told not in MODE_OF_WORD:
        raise ConfigError(
            f"${MODE_VARIABLE} is {told!r}: must be one of {', '.join(MODE_OF_WORD)}, in small letters; set it anew, "
            "or unset it"
        )
    if is_disabled and wanted == "online":
        raise ConfigError(
            f"tracking.wandb: online, but ${DISABLED_VARIABLE} is {environment[DISABLED_VARIABLE]}: change one of them"
        )
    if wanted == "online" and told is not None and MODE_OF_WORD[told] not in SENDING:
        raise ConfigError(f"tracking.wandb: online, but ${MODE_VARIABLE} is {told}: change one of them")
    if wanted != "auto":
        return wanted
    if is_disabled:
        return "disabled"
    if told is not None:
        return MODE_OF_WORD[told]
    return "online" if has_account(environment) else "offline"


def refuse_missing_account(wanted: str, environment: Mapping[str, str]) -> None:
    """Make sure that there is an account where numbers are to be sent to W&B.

    Raises:
        ConfigError: There is none, or :func:`wandb_mode` says so.
    """
    if wandb_mode(wanted, environment) in SENDING and not has_account(environment):
        by = "tracking.wandb" if wanted == "online" else f"${MODE_VARIABLE}"
        raise ConfigError(
            f"{by}: {wanted if wanted == 'online' else environment[MODE_VARIABLE]} needs an account, and neither "
            "$WANDB_API_KEY nor a login in ~/.netrc is there; run wandb login, or use offline"
        )


def has_account(environment: Mapping[str, str]) -> bool:
    """Whether there is a key or a login, right or wrong."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = urlsplit(environment.get("WANDB_BASE_URL", "")).netloc
    for file in _netrc_files(environment):
        try:
            logins = netrc.netrc(file)
        except (OSError, netrc.NetrcParseError):  # W&B would not read it either
            continue
        return any(logins.authenticators(host) for host in ((own,) if own else HOSTS))
    return False


def refuse_bad_project(name: str) -> str:
    """The name of a W&B project, as W&B takes it.

    Raises:
        ValueError: It would not.
    """
    found = sorted({character for character in name if character in NOT_IN_NAMES})
    if found:
        raise ValueError(f"W&B takes no project with {' '.join(found)} in its name (none of {' '.join(NOT_IN_NAMES)})")
    if not name.strip() or len(name) > LONGEST_NAME:
        raise ValueError(f"W&B takes project names of 1 to {LONGEST_NAME} characters")
    return name


def _netrc_files(environment: Mapping[str, str]) -> list[Path]:
    named = environment.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return [file for file in files if os.access(file, os.R_OK)]
