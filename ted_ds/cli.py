"""The verbs: parsing and dispatch, nothing else."""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ted_ds import __version__
from ted_ds.config.environment import refuse_unknown_words
from ted_ds.config.methods import METHODS
from ted_ds.config.shipped import RECIPES, named
from ted_ds.errors import StoppedOnRequest, TedError
from ted_ds.launching.lasting_output import outlast_readers
from ted_ds.launching.own_log import open_log
from ted_ds.launching.records import LOG_DIR, log_folder
from ted_ds.planning.phase import PHASES, phases_of_verb

VERBS_OF_RANKS = ("run", *(phase.verb for phase in PHASES), "doctor")
CHAT = "chat"
"""The verb; a kind of task is called so, too."""
HELP_OF_VERB = {
    "run": "all phases; those already complete are skipped",
    "finetune": "Stage 0: train teacher and student on the task, cut the student out of the teacher",
    "filters": "Stage I: train the filters of teacher and student",
    "distill": "Stage II: train the student",
    "evaluate": "score teacher and student on held-out data",
    "export": "write the student as a plain transformers folder",
    "lm_eval": "run the tasks of evaluation.lm_eval on the exported student",
    "study": "compare ways to train over several seeds: tables with intervals, and what they allow to say",
    "doctor": "is this pair sane? Looks at weights, labels, tokens, filters and one real step; exit code 1 if not",
    "tokenizer": "train a tokenizer on the training documents; needs no GPU and no teacher",
    "supervise": "start a launcher's command again until its run is complete; rank by rank logs, no rank left behind",
    "demo": "a small real run from start to end, in minutes and without a GPU, and what it changed",
    "init": "write a first recipe for a teacher and data, from what can be found out about them",
    "predict": "what a run's student says of texts, beside its teacher",
    CHAT: "talk with a run's student, or the model of any of its phases, beside the teacher",
    "compare": "in what two runs differ: settings and results",
    "push": "upload an exported model to the Hugging Face Hub, private by default, after asking",
    "report": "one page of what a run came to: verdict, figures, tables; several runs beside each other",
    "families": "the models that can be used, and what for; of a model folder, what is found of it",
    "check": "every mistake in the recipe at once, and the plan; needs no GPU and no torch",
}


def _recipe(word: str) -> str:
    return str(named(word, RECIPES, ".yaml"))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="ted-ds", description="Distil language models on DeepSpeed.")
    parser.add_argument("--version", action="version", version=f"ted_ds {__version__}")
    # the deepspeed launcher puts it before everything else; the environment says the same
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, help_text in HELP_OF_VERB.items():
        one = verbs.add_parser(verb, help=help_text, description=help_text)
        if verb == "supervise":
            _add_supervise(one)
            continue
        if verb == "families":
            one.add_argument("path", nargs="?", type=Path, help="a model folder")
            one.add_argument("--markdown", action="store_true", help="the table as docs/families.md has it")
            continue
        if verb == "demo":
            one.add_argument("--out", type=Path, default=Path("ted_ds_demo"), help="a folder for it (ted_ds_demo)")
            one.add_argument("overrides", nargs="*", metavar="a.b=value", help="change a value of its recipe")
            continue
        if verb == "init":
            _add_init(one)
            continue
        if verb == "predict":
            one.add_argument("folder", type=Path, metavar="DIR", help="the output_dir of a run")
            one.add_argument("texts", nargs="*", help="what to read; none: the lines of the standard input")
            one.add_argument("--tokens", type=_positive, default=40, help="a language model writes at most (40)")
            continue
        if verb == CHAT:
            one.add_argument("folder", type=Path, metavar="DIR", help="of a run, one of its phases, or a model")
            one.add_argument("--teacher", type=Path, metavar="DIR", help="a model folder (default: that of the run)")
            one.add_argument("--tokens", type=_positive, default=100, help="an answer has at most (100)")
            continue
        if verb == "push":
            one.add_argument("folder", type=Path, metavar="DIR", help="the output_dir of a run, or an export")
            one.add_argument("--to", required=True, metavar="ORG/NAME", help="the model on the Hub")
            one.add_argument("--public", action="store_true", help="a new model is seen by everybody")
            one.add_argument("--yes", action="store_true", help="do not ask")
            one.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and stop")
            continue
        if verb == "compare":
            one.add_argument("folders", nargs=2, type=Path, metavar="DIR", help="the output_dir of a run")
            one.add_argument("--json", action="store_true", help="as JSON, for programs")
            continue
        if verb == "report":
            one.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the output_dir of a run")
            one.add_argument("--out", type=Path, help="the page to write (default: report.html in the run's folder)")
            continue
        if verb == "tokenizer":
            one.add_argument("action", choices=["train"], help="what to do")
        one.add_argument("recipe", type=_recipe, help="a YAML recipe, or the name of one that ships")
        one.add_argument("overrides", nargs="*", metavar="a.b=value", help="change a value of the recipe")
        if verb == "check":
            one.add_argument("--ranks", type=_positive, default=1, help="ranks the batches must divide over")
            one.add_argument(
                "--link-gbit", type=_speed, help="of each rank to other hosts: what a step sends, in Gbit/s"
            )
            one.add_argument(
                "--tflops",
                type=_speed,
                default=400.0,
                help="what each rank computes a second, in 10^12 operations (400)",
            )
    # argparse closes the list of overrides at the first option: what follows one comes back as unknown
    options, rest = parser.parse_known_args(arguments)
    if options.verb == "supervise":
        if rest:
            parser.error(f"unknown arguments: {' '.join(rest)}; the launcher's command goes after --")
        return options
    takes_overrides = "overrides" in options
    unknown = [word for word in rest if not takes_overrides or word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if takes_overrides:
        options.overrides += rest
    return options


def _add_init(one: argparse.ArgumentParser) -> None:
    one.add_argument("--teacher", required=True, help="a model folder")
    one.add_argument("--data", required=True, help="a local file or folder with texts, labelled or not, or chats")
    size = one.add_mutually_exclusive_group()
    size.add_argument("--blocks", type=_positive, help="of the student (default: half of the teacher's)")
    size.add_argument("--size", type=_share, help="share of the teacher's blocks, such as 50%%")
    one.add_argument("--method", choices=METHODS, default="kd", help="of Stage II (default: kd)")
    one.add_argument("--ranks", type=_positive, default=1, help="it is to be started on (default: 1)")
    one.add_argument("--out", type=Path, default=Path("recipe.yaml"), help="the file to write (default: recipe.yaml)")


def _add_supervise(one: argparse.ArgumentParser) -> None:
    one.add_argument("--logs", type=Path, default=Path("logs"), help="a folder that all hosts see (default: logs)")
    one.add_argument("--restarts", type=_count, default=100, help="at most so many (default: 100)")
    one.add_argument(
        "--grace", type=_seconds, default=30.0, metavar="S", help="how long others may go on once a rank ended (30 s)"
    )
    one.add_argument("--hostfile", type=Path, help="of a launcher over ssh; {hostfile} in its command becomes a copy")
    one.add_argument("--exclude", action="append", default=[], metavar="HOST", help="of the hostfile, to leave out")
    one.add_argument("--min-hosts", type=_positive, help="so many of them will do (default: all)")
    one.add_argument(
        "--host-wait", type=_seconds, default=300.0, metavar="S", help="how long to wait for the others (300 s)"
    )
    one.add_argument("--slurm", action="store_true", help="as the script of a Slurm job, which it requeues")
    one.add_argument("command", nargs="+", help="a launcher's command, after --")


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


def _number(kind: Callable[[str], float], holds: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text}: use {rule}")
        return value

    return read


_count = _number(int, lambda value: value >= 0, "a whole number, 0 or more")
_positive = _number(int, lambda value: value >= 1, "a whole number, 1 or more")
_seconds = _number(float, lambda value: value >= 0, "0 or more seconds")
_percent = _number(float, lambda value: 0 < value < 100, "more than 0 and less than 100 percent, such as 50%")


def _share(text: str) -> float:
    return _percent(text.removesuffix("%")) / 100


_speed = _number(float, lambda value: value > 0, "more than 0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    return _dispatch(parse(arguments))


def _dispatch(options: argparse.Namespace) -> int:
    try:
        refuse_unknown_words(os.environ)
        if options.verb == "supervise":
            return _supervise(options)
        if options.verb == "families":
            from ted_ds.verbs.families import show_families

            show_families(options.path, as_markdown=options.markdown)
        elif options.verb == "demo":
            from ted_ds.verbs.demo import demo

            return demo(options.out, options.overrides)
        elif options.verb == "init":
            from ted_ds.verbs.init.begin import Asked, begin

            size = {"blocks": options.blocks, "size": options.size, "method": options.method}
            begin(Asked(options.teacher, options.data, **size, out=options.out, num_ranks=options.ranks))
        elif options.verb == "predict":
            from ted_ds.verbs.predict import predict

            predict(options.folder, options.texts, max_new_tokens=options.tokens)
        elif options.verb == CHAT:
            from ted_ds.verbs.chat import chat

            chat(options.folder, options.teacher, max_new_tokens=options.tokens)
        elif options.verb == "compare":
            from ted_ds.verbs.compare import compare

            compare(*options.folders, as_json=options.json)
        elif options.verb == "push":
            from ted_ds.verbs.push import push

            how = {"public": options.public, "is_sure": options.yes, "dry_run": options.dry_run}
            push(options.folder, options.to, **how)
        elif options.verb == "report":
            from ted_ds.verbs.report import report

            report(options.folders, options.out)
        elif options.verb == "check":
            from ted_ds.verbs.check import check

            given = {"num_ranks": options.ranks, "tflops": options.tflops, "link_gbit": options.link_gbit}
            check(options.recipe, options.overrides, **given)
        elif options.verb == "study":
            from ted_ds.verbs.study.conduct import conduct  # runs are processes of their own

            return 0 if conduct(options.recipe, options.overrides) else 1
        elif options.verb == "tokenizer":
            from ted_ds.verbs.tokenizer import train_from_recipe  # neither torch nor deepspeed is needed

            train_from_recipe(options.recipe, options.overrides)
        else:
            from ted_ds.verbs.doctor import examine  # torch and deepspeed only where they are needed
            from ted_ds.verbs.run import run_phases

            if options.verb == "doctor":
                return 0 if examine(options.recipe, options.overrides) else 1
            run_phases(options.recipe, options.overrides, phases_of_verb(options.verb))
    except TedError as error:
        # one rank prints what all say, or each into a file of its own
        if os.environ.get("RANK", "0") == "0" or not error.agreed or log_folder(os.environ) is not None:
            kind = "" if isinstance(error, StoppedOnRequest) else "error:\n"
            print(f"ted-ds {options.verb}: {kind}{error}", file=sys.stderr)
        return error.exit_code
    return 0


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
