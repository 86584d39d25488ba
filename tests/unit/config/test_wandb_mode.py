"""Whether numbers leave this machine: every word that W&B knows, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.wandb import MODE_OF_WORD, refuse_bad_project, refuse_missing_account, wandb_mode
from ted_ds.errors import ConfigError
from tests.tiny import write_run
from tests.unit.test_cli import ted_ds

WITH_KEY = {"WANDB_API_KEY": "x"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a login."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "word"), [("online", "run"), ("online", "shared"), ("offline", "online"), ("disabled", "offline")]
)
def test_a_mode_that_is_given_counts(mode: str, word: str) -> None:
    assert wandb_mode(mode, {**WITH_KEY, "WANDB_MODE": word}) == mode


@pytest.mark.parametrize("word", ["offline", "dryrun", "disabled"])
def test_nothing_is_sent_against_the_environments_word(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^tracking.wandb: online, but \$WANDB_MODE is {word}: change one of them$"):
        wandb_mode("online", {**WITH_KEY, "WANDB_MODE": word})


@pytest.mark.parametrize(("word", "mode"), MODE_OF_WORD.items())
def test_auto_follows_the_environments_word_before_its_key(word: str, mode: str) -> None:
    assert wandb_mode("auto", {**WITH_KEY, "WANDB_MODE": word}) == mode


def test_w_and_bs_own_words_are_all_known() -> None:
    import typing

    import wandb

    words = typing.get_args(wandb.Settings.model_fields["mode"].annotation)
    assert set(words) == MODE_OF_WORD.keys()
    assert {MODE_OF_WORD[word] for word in ("dryrun", "offline")} == {"offline"}


@pytest.mark.parametrize("word", ["OFFLINE", "Disabled", "off", "no", "", "online ", "local"])
@pytest.mark.parametrize("wanted", ["auto", "offline"])
def test_an_unknown_word_is_refused(word: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"\$WANDB_MODE is '.*': must be one of online, .*, in small letters"):
        wandb_mode(wanted, {**WITH_KEY, "WANDB_MODE": word})


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on"])
def test_disabled_is_disabled(word: str) -> None:
    assert wandb_mode("auto", {**WITH_KEY, "WANDB_DISABLED": word, "WANDB_MODE": "online"}) == "disabled"
    assert wandb_mode("offline", {"WANDB_DISABLED": word}) == "offline"
    with pytest.raises(ConfigError, match=rf"tracking.wandb: online, but \$WANDB_DISABLED is {word}: change one"):
        wandb_mode("online", {**WITH_KEY, "WANDB_DISABLED": word})


@pytest.mark.parametrize("word", ["false", "0", ""])
def test_not_disabled_is_as_if_it_were_not_there(word: str) -> None:
    assert wandb_mode("auto", {**WITH_KEY, "WANDB_DISABLED": word}) == "online"
    assert wandb_mode("online", {"WANDB_DISABLED": word}) == "online"


def test_auto_is_offline_without_an_account_and_online_with_a_key() -> None:
    assert wandb_mode("auto", {}) == "offline"
    assert wandb_mode("auto", WITH_KEY) == "online"
    assert wandb_mode("auto", {"WANDB_API_KEY": ""}) == "offline"


@pytest.mark.parametrize(
    ("content", "base_url", "mode"),
    [
        ("machine api.wandb.ai login user password x\n", None, "online"),
        ("machine api.forge.coreweave.com login user password x\n", None, "online"),
        ("machine wandb.example.org login user password x\n", "https://wandb.example.org", "online"),
        ("machine api.wandb.ai login user password x\n", "https://wandb.example.org", "offline"),
        ("machine example.org login user password x\n", None, "offline"),
        ("no netrc at all\n", None, "offline"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_auto_is_online_with_a_login_in_netrc(
    home: Path, content: str, base_url: str | None, mode: str, named: bool
) -> None:
    netrc = home / ("logins" if named else ".netrc")
    netrc.write_text(content, encoding="utf-8")
    netrc.chmod(0o600)
    environment = {"NETRC": str(netrc)} if named else {}
    assert wandb_mode("auto", environment | ({"WANDB_BASE_URL": base_url} if base_url else {})) == mode


@pytest.mark.parametrize(
    ("wanted", "environment", "said"),
    [
        ("online", {"WANDB_MODE": "online"}, "tracking.wandb: online needs an account"),
        ("auto", {"WANDB_MODE": "online"}, r"\$WANDB_MODE: online needs an account"),
        ("auto", {"WANDB_MODE": "run"}, r"\$WANDB_MODE: run needs an account"),
        ("auto", {"WANDB_MODE": "shared"}, r"\$WANDB_MODE: shared needs an account"),
    ],
)
def test_sending_needs_an_account(wanted: str, environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}, and neither .* run wandb login, or use offline"):
        refuse_missing_account(wanted, environment)
    refuse_missing_account(wanted, environment | WITH_KEY)


def test_what_stays_here_needs_none() -> None:
    for wanted, environment in (("auto", {}), ("offline", {}), ("auto", {"WANDB_MODE": "dryrun"})):
        refuse_missing_account(wanted, environment)


@pytest.mark.parametrize("name", ["a/b", "a\\b", "50%", "#1", "a:b", "why?", "", "  ", "x" * 129])
def test_names_that_w_and_b_would_refuse(name: str) -> None:
    import wandb

    with pytest.raises(ValueError, match="W&B takes "):
        refuse_bad_project(name)
    if name.strip():  # it takes blanks, and then has nothing to show
        with pytest.raises(wandb.errors.UsageError):
            wandb.Settings(project=name)


@pytest.mark.parametrize("name", ["ted_ds", "my project", "x" * 128, "größe-1.2"])
def test_names_that_it_takes(name: str) -> None:
    assert refuse_bad_project(name) == name


def test_check_says_so_of_the_project_the_mode_and_the_account(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path))
    done = ted_ds("check", recipe, "tracking.project=team/ted")
    assert done.returncode == 2
    assert f"{recipe}: tracking.project: 'team/ted': W&B takes no project with / in its name" in done.stderr
    done = ted_ds("check", recipe, "tracking.wandb=online", WANDB_API_KEY="", WANDB_MODE="online")
    assert done.returncode == 2
    assert f"{recipe}: tracking.wandb: online needs an account" in done.stderr
    done = ted_ds("check", recipe, WANDB_MODE="Offline")
    assert done.returncode == 2
    assert f"{recipe}: $WANDB_MODE is 'Offline': must be one of online" in done.stderr
