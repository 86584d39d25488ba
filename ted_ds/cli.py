"""The command line: each verb's work, exit codes, and one clear message."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from ted_ds.config.environment import refuse_unknown_words
from ted_ds.errors import StoppedOnRequest, TedError
from ted_ds.launching.lasting_output import outlast_readers
from ted_ds.launching.own_log import open_log
from ted_ds.launching.records import LOG_DIR, log_folder
from ted_ds.output.wrapped import columns_of, hanging
from ted_ds.planning.phase import PHASES, phases_of_verb
from ted_ds.verbs.words import CHAT, parse

VERBS_OF_RANKS = ("run", *(phase.verb for phase in PHASES), "cache", "doctor")

# Each verb imports what it needs when it is asked for: torch and deepspeed only where they are.


def _refuse_at_once(options: argparse.Namespace) -> None:
    """Read the recipe of a process that is alone, before torch comes, which takes seconds; ranks read it together."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        from ted_ds.config.load import load_recipe

        load_recipe(options.recipe, options.overrides)


def _run(options: argparse.Namespace) -> int:
    _refuse_at_once(options)
    from ted_ds.verbs.run import run_phases

    run_phases(options.recipe, options.overrides, phases_of_verb(options.verb))
    return 0


def _cache(options: argparse.Namespace) -> int:
    _refuse_at_once(options)
    from ted_ds.verbs.run import fill_cache

    fill_cache(options.recipe, options.overrides)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    _refuse_at_once(options)
    from ted_ds.verbs.doctor import examine, repeat

    if options.replay is not None:
        repeat(options.recipe, options.overrides, options.replay)
        return 0
    return 0 if examine(options.recipe, options.overrides) else 1


def _study(options: argparse.Namespace) -> int:
    if options.array is not None:
        from ted_ds.verbs.study.array import write_array

        write_array(options.recipe, options.overrides, options.array)
        return 0
    from ted_ds.verbs.study.conduct import conduct

    return 0 if conduct(options.recipe, options.overrides) else 1


def _tokenizer(options: argparse.Namespace) -> int:
    from ted_ds.verbs.tokenizer import train_from_recipe

    train_from_recipe(options.recipe, options.overrides)
    return 0


def _supervise(options: argparse.Namespace) -> int:
    from ted_ds.launching.supervise import Settings, Supervisor

    settings = Settings(
        options.logs,
        options.restarts,
        options.grace,
        hostfile=options.hostfile,
        excluded=tuple(options.exclude),
        min_hosts=options.min_hosts,
        host_wait_s=options.host_wait,
        in_slurm=options.slurm,
    )
    return Supervisor(options.command, settings).run()


def _demo(options: argparse.Namespace) -> int:
    from ted_ds.verbs.demo import demo

    return demo(options.out, options.overrides, installs=options.install)


def _init(options: argparse.Namespace) -> int:
    from ted_ds.verbs.init.begin import Asked, begin

    missing = [f"--{name}" for name in ("teacher", "data") if getattr(options, name) is None]
    if missing and not (sys.stdin.isatty() and sys.stdout.isatty()):  # nobody can be asked
        options.refuse(f"the following arguments are required: {', '.join(missing)}")
    size = options.blocks if options.size is None else options.size
    place = (options.ranks, options.gpu, options.minutes)
    begin(Asked(options.teacher, options.data, size, options.method, options.out, *place, options.task))
    return 0


def _predict(options: argparse.Namespace) -> int:
    from ted_ds.verbs.predict import predict

    predict(options.folder, options.texts, options.teacher, max_new_tokens=options.tokens)
    return 0


def _chat(options: argparse.Namespace) -> int:
    from ted_ds.verbs.chat import chat

    chat(options.folder, options.teacher, max_new_tokens=options.tokens)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ted_ds.verbs.compare import compare

    compare(*options.folders, as_json=options.json)
    return 0


def _push(options: argparse.Namespace) -> int:
    from ted_ds.verbs.push import push

    push(options.folder, options.to, public=options.public, is_sure=options.yes, dry_run=options.dry_run)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from ted_ds.verbs.convert import convert

    convert(options.folder, options.out)
    return 0


def _report(options: argparse.Namespace) -> int:
    from ted_ds.verbs.report import report

    report(options.folders, options.out)
    return 0


def _families(options: argparse.Namespace) -> int:
    from ted_ds.verbs.families import show_families

    show_families(options.path, as_markdown=options.markdown)
    return 0


def _schema(_: argparse.Namespace) -> int:
    from ted_ds.config.recipe_schema import as_json

    print(as_json(), end="")
    return 0


def _check(options: argparse.Namespace) -> int:
    from ted_ds.verbs.check import check, show

    if options.show:
        show(options.recipe, options.overrides, num_ranks=options.ranks)
        return 0
    check(
        options.recipe,
        options.overrides,
        num_ranks=options.ranks,
        tflops=options.tflops,
        link_gbit=options.link_gbit,
    )
    return 0


WORK_OF_VERB: Mapping[str, Callable[[argparse.Namespace], int]] = {
    **dict.fromkeys(VERBS_OF_RANKS, _run),
    "cache": _cache,
    "doctor": _doctor,
    "study": _study,
    "tokenizer": _tokenizer,
    "supervise": _supervise,
    "demo": _demo,
    "init": _init,
    "predict": _predict,
    CHAT: _chat,
    "compare": _compare,
    "push": _push,
    "convert": _convert,
    "report": _report,
    "families": _families,
    "schema": _schema,
    "check": _check,
}
"""What each does; it returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    return _dispatch(parse(arguments))


def _dispatch(options: argparse.Namespace) -> int:
    try:
        refuse_unknown_words(os.environ)
        return WORK_OF_VERB[options.verb](options)
    except TedError as error:
        # one rank prints what all say, or each into a file of its own
        if os.environ.get("RANK", "0") == "0" or not error.agreed or log_folder(os.environ) is not None:
            kind = "" if isinstance(error, StoppedOnRequest) else "error:\n"
            said = f"ted-ds {options.verb}: {kind}{error}"
            print(hanging(said, columns_of(sys.stderr)), file=sys.stderr)
        return error.exit_code


def entry() -> None:
    """Run a verb and end the process.

    Ends it at once where torch was at work: the teardown of its threads aborts about one normal exit in ten.
    """
    outlast_readers()
    options = parse()
    try:
        log = open_log() if options.verb in VERBS_OF_RANKS else None
    except OSError as error:
        print(f"ted-ds {options.verb}: error:\n${LOG_DIR}: cannot be written: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        code = _dispatch(options)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception:
        traceback.print_exc()
        code = 1
    if log is not None:
        log.close(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if "torch" in sys.modules:
        os._exit(code)
    sys.exit(code)
