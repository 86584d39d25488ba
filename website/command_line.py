"""The reference of the command line, made of its parser."""

from __future__ import annotations

import argparse

from ted_ds.verbs.words import build_parser
from website.markdown import cell

HEAD = """# Command line

`ted-ds VERB ...`, also `python -m ted_ds VERB ...`; made of the parser that reads it. Verbs that train are started by a
launcher where there are several ranks: `deepspeed --num_gpus 8 --module ted_ds run my_recipe.yaml`.

A recipe is a file, or the name of one that ships; after it, `a.b=value` changes a value. Exit codes: 0, done; 2, a
mistake that can be mended, which is said; 75 and 76,
[start the same command again](../docs/troubleshooting.md#exit-codes); 1, a check failed, or a defect, with its
traceback.

"""


def page() -> str:
    """The whole reference."""
    parser = build_parser()
    verbs = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    lines = ["| verb | |", "|---|---|"]
    lines += [f"| [`{verb}`](#{verb}) | {cell(one.description or '')} |" for verb, one in verbs.choices.items()]
    return HEAD + "\n".join([*lines, "", *map(_described, verbs.choices.items())])


def _described(verb_and_parser: tuple[str, argparse.ArgumentParser]) -> str:
    verb, parser = verb_and_parser
    said = parser.description or ""
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    lines = [f"## {verb} {{ #{verb} }}", "", f"{said[:1].upper()}{said[1:]}.", "", "```text", usage, "```", ""]
    shown = [one for one in parser._actions if one.help is not argparse.SUPPRESS and one.dest != "help"]
    lines += ["| | |", "|---|---|"] if shown else []
    for one in shown:
        name = ", ".join(f"`{word}`" for word in one.option_strings) or f"`{one.metavar or one.dest}`"
        choices = f"; one of {', '.join(f'`{choice}`' for choice in one.choices)}" if one.choices else ""
        needed = "; required" if one.required and one.option_strings else ""
        lines.append(f"| {name} | {cell(((one.help or '') % {}).strip() + choices + needed)} |")
    return "\n".join([*lines, ""])
