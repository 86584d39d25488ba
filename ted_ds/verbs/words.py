"""What can be said on the command line: the verbs, and the words behind each."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ted_ds import __version__
from ted_ds.config.methods import METHODS
from ted_ds.config.shipped import RECIPES, named
from ted_ds.verbs.init.kinds import KINDS

CHAT = "chat"
"""The verb; a kind of task is called so, too."""
HELP_OF_VERB: Mapping[str, str] = {
    "run": "all phases; those already complete are skipped",
    "finetune": "Stage 0: train teacher and student on the task, cut the student out of the teacher",
    "filters": "Stage I: train the filters of teacher and student",
    "cache": "what comes before Stage II, and what the teacher says in it kept on a disk (teacher.cache)",
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
    "predict": "what a run's student, or the model of any of its phases, says of texts, beside the teacher",
    CHAT: "talk with a run's student, or the model of any of its phases, beside the teacher",
    "compare": "in what two runs differ: settings and results",
    "push": "upload an exported model to the Hugging Face Hub, private by default, after asking",
    "convert": "write an exported model in another format, and compare what both say",
    "report": "one page of what a run came to: verdict, figures, tables; several runs beside each other",
    "families": "the models that can be used, and what for; of a model folder, what is found of it",
    "schema": "the JSON schema of recipes, by which editors complete and explain their keys",
    "check": "every mistake in the recipe at once, and the plan; needs no GPU and no torch",
}


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their words, for the command line and for its reference."""
    parser = argparse.ArgumentParser(prog="ted-ds", description="Distil language models on DeepSpeed.")
    parser.add_argument("--version", action="version", version=f"ted_ds {__version__}")
    # the deepspeed launcher puts it before everything else; the environment says the same
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, help_text in HELP_OF_VERB.items():
        WORDS_OF_VERB.get(verb, _of_a_recipe)(verbs.add_parser(verb, help=help_text, description=help_text))
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = build_parser()
    # argparse closes a list, of overrides or texts, at the first option: what follows one comes back as unknown
    options, rest = parser.parse_known_args(arguments)
    if "command" in options:
        if rest:
            parser.error(f"unknown arguments: {' '.join(rest)}; the launcher's command goes after --")
        return options
    takes_overrides = "overrides" in options
    takes_texts = "texts" in options
    unknown = [word for word in rest if word.startswith("-") or not (takes_texts or (takes_overrides and "=" in word))]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if takes_overrides:
        options.overrides = [*options.overrides, *rest]
    if takes_texts:
        options.texts = [*options.texts, *rest]
    return options


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
_percent = _number(
    lambda text: float(text.removesuffix("%")),
    lambda value: 0 < value < 100,
    "more than 0 and less than 100 percent, such as 50%",
)


def share(text: str) -> float:
    """A part of a whole, given in percent, such as ``50%``."""
    return _percent(text) / 100


_speed = _number(float, lambda value: value > 0, "more than 0")


def _recipe(word: str) -> str:
    return str(named(word, RECIPES, ".yaml"))


def _of_a_recipe(one: argparse.ArgumentParser) -> None:
    one.add_argument("recipe", type=_recipe, help="a YAML recipe, or the name of one that ships")
    one.add_argument("overrides", nargs="*", default=[], metavar="a.b=value", help="change a value of the recipe")


def _of_tokenizer(one: argparse.ArgumentParser) -> None:
    one.add_argument("action", choices=["train"], help="what to do")
    _of_a_recipe(one)


def _of_doctor(one: argparse.ArgumentParser) -> None:
    _of_a_recipe(one)
    one.add_argument(
        "--replay",
        type=_positive,
        metavar="N",
        help="instead, compute one step's gradients N times again on every rank, and name a rank whose bits differ",
    )


def _of_study(one: argparse.ArgumentParser) -> None:
    _of_a_recipe(one)
    one.add_argument(
        "--array", type=Path, metavar="DIR", help="write its runs there, a line each, for an array of batch jobs"
    )


def _of_check(one: argparse.ArgumentParser) -> None:
    _of_a_recipe(one)
    one.add_argument("--ranks", type=_positive, default=1, help="ranks the batches must divide over")
    one.add_argument(
        "--show", action="store_true", help="print the whole recipe as it will run, with where values are from"
    )
    one.add_argument("--link-gbit", type=_speed, help="of each rank to other hosts: what a step sends, in Gbit/s")
    one.add_argument(
        "--tflops", type=_speed, default=400.0, help="what each rank computes a second, in 10^12 operations (400)"
    )


def _of_families(one: argparse.ArgumentParser) -> None:
    one.add_argument("path", nargs="?", type=Path, help="a model folder")
    one.add_argument("--markdown", action="store_true", help="the table as docs/families.md has it")


def _of_demo(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", type=Path, default=Path("ted_ds_demo"), help="a folder for it (ted_ds_demo)")
    one.add_argument("--install", action="store_true", help="let pip install the model and texts first, 97 MB, pinned")
    one.add_argument("overrides", nargs="*", default=[], metavar="a.b=value", help="change a value of its recipe")


def _of_init(one: argparse.ArgumentParser) -> None:
    one.add_argument("--teacher", help="a model folder (asked for in a terminal)")
    one.add_argument("--data", help="a local file or folder with texts, labelled or not, or chats (asked for, too)")
    task = "what to learn of the data (default: as their columns are)"
    one.add_argument("--task", choices=KINDS, metavar="KIND", help=f"{task}: {', '.join(KINDS)}")
    size = one.add_mutually_exclusive_group()
    size.add_argument("--blocks", type=_positive, help="of the student (default: half of the teacher's)")
    size.add_argument("--size", type=share, help="share of the teacher's blocks, such as 50%%")
    one.add_argument("--method", choices=METHODS, default="kd", help="of Stage II (default: kd)")
    one.add_argument("--ranks", type=_positive, help="it is to be started on (default: the GPUs here, or 1)")
    one.add_argument("--gpu", type=_speed, metavar="GIB", help="memory of each rank's GPU, where it is elsewhere")
    minutes = "of training at most (default: without a GPU 30, else as long as passes over the data take)"
    one.add_argument("--minutes", type=_speed, metavar="N", help=minutes)
    one.add_argument("--out", type=Path, default=Path("recipe.yaml"), help="the file to write (default: recipe.yaml)")
    one.set_defaults(refuse=one.error)


def _of_predict(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, metavar="DIR", help="of a run, one of its phases, or a model")
    one.add_argument("texts", nargs="*", default=[], help="what to read; none: the lines of the standard input")
    one.add_argument("--teacher", type=Path, metavar="DIR", help="a model folder (default: that of the run)")
    one.add_argument("--tokens", type=_positive, default=40, help="a language model writes at most (40)")


def _of_chat(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, metavar="DIR", help="of a run, one of its phases, or a model")
    one.add_argument("--teacher", type=Path, metavar="DIR", help="a model folder (default: that of the run)")
    one.add_argument("--tokens", type=_positive, default=100, help="an answer has at most (100)")


def _of_compare(one: argparse.ArgumentParser) -> None:
    one.add_argument("folders", nargs=2, type=Path, metavar="DIR", help="the output_dir of a run")
    one.add_argument("--json", action="store_true", help="as JSON, for programs")


def _of_push(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, metavar="DIR", help="the output_dir of a run, or an export")
    one.add_argument("--to", required=True, metavar="ORG/NAME", help="the model on the Hub")
    one.add_argument("--public", action="store_true", help="a new model is seen by everybody")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and stop")


def _of_convert(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, metavar="DIR", help="the output_dir of a run, or an export")
    one.add_argument("--to", required=True, choices=["onnx"], help="the format; it needs ted_ds[onnx]")
    one.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: beside the export)")


def _of_report(one: argparse.ArgumentParser) -> None:
    one.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the output_dir of a run")
    one.add_argument("--out", type=Path, help="the page to write (default: report.html in the run's folder)")


def _of_supervise(one: argparse.ArgumentParser) -> None:
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


def _of_nothing(_: argparse.ArgumentParser) -> None:
    pass


WORDS_OF_VERB: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "doctor": _of_doctor,
    "study": _of_study,
    "tokenizer": _of_tokenizer,
    "supervise": _of_supervise,
    "demo": _of_demo,
    "init": _of_init,
    "predict": _of_predict,
    CHAT: _of_chat,
    "compare": _of_compare,
    "push": _of_push,
    "convert": _of_convert,
    "report": _of_report,
    "families": _of_families,
    "schema": _of_nothing,
    "check": _of_check,
}
"""Of the verbs with more behind them than a recipe, or something else."""
