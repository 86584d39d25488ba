"""The verb ``convert``: an exported model in another format, by the library that has it, and held against the model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from ted_ds.errors import ConfigError, DataError
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.output.screen import Screen
from ted_ds.verbs.exported import export_in

ONNX = "onnx"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
EXPORTERS = "transformers.exporters"
TRACED = ("the first text", "another text, which is longer than the first one")
COMPARED = ("one text that is neither of these", "short", "three texts are read together")
"""Of other lengths and another number than what the graph is traced with."""
LARGEST_DIFFERENCE = 1e-3
"""Of logits, beside the largest of them: two ways to compute in fp32 differ by about 1e-6, in every block anew."""


def convert(folder: Path, out: Path | None) -> None:
    """Write the export in ``folder`` as an ONNX graph, in fp32, with its tokenizer beside it.

    Args:
        folder: A run's, or an exported model's.
        out: A new folder; None: one beside the export.

    Raises:
        ConfigError: A library is missing, or ``out`` is there.
        DataError: There is no whole model, the library cannot convert one of its kind, or makes another one of it.
    """
    place = export_in(folder)
    if not (place / CONFIG_FILE).is_file():
        raise DataError(
            f"{place}: is an adapter, and no whole model; merge it into its base with peft and convert that"
        )
    out = place.with_name(f"{place.name}-{ONNX}") if out is None else out
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; give another name, or remove it")
    _refuse_missing()
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        difference = _write(place, unfinished)
        unfinished.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}; give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    screen = Screen(shown=True)
    screen.say(f"written     {out} ({size:,.1f} MB)")
    screen.say(
        f"compared    {len(COMPARED)} texts by onnxruntime and by transformers: outputs differ by at most "
        f"{difference:.1e} of the largest"
    )


def _refuse_missing() -> None:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--to {ONNX}: needs {', '.join(missing)}; install what is missing: pip install 'ted_ds[onnx]'"
        )
    if importlib.util.find_spec(EXPORTERS) is None:
        raise ConfigError(f"--to {ONNX}: needs a transformers with {EXPORTERS}; install a newer one, such as 5.23")


def _write(place: Path, folder: Path) -> float:
    """Write all files; returns how far the graph's outputs are from the model's."""
    import torch
    import transformers
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    config = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))
    if config.get("is_encoder_decoder"):
        raise DataError(
            f"{place}: is an encoder-decoder, which takes more than one graph; only models of one stack are converted"
        )
    kind = (config.get("architectures") or ["a model without a named architecture"])[0]
    if not hasattr(transformers, kind):
        raise DataError(f"{place}: {kind} is none that transformers has; give an export, or a folder that it wrote")
    try:
        model = getattr(transformers, kind).from_pretrained(place, dtype=torch.float32, local_files_only=True).eval()
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{place}: does not load: {' '.join(str(error).split())[:300]}") from error
    model.config.use_cache = False
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    traced, compared = ({**tokenizer([*texts], padding=True, return_tensors="pt")} for texts in (TRACED, COMPARED))
    try:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that no language model has
        with contextlib.redirect_stdout(io.StringIO()):  # its stages, with ticks
            exported = OnnxExporter().export(model, traced, OnnxConfig(dynamic=True))
        exported.save_pretrained(folder)
        with torch.no_grad():
            wanted = model(**compared)
        # read from the files, as whoever gets them does
        found = _run(folder / "model.onnx", compared)
    except OSError:
        raise
    except Exception as error:  # torch, onnxscript and onnxruntime raise their own types
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"{place}: transformers {transformers.__version__} cannot write a {kind} as ONNX "
            f"({type(error).__name__}: {said}); the export itself is whole"
        ) from error
    difference = max(
        float((torch.from_numpy(found[name]) - value).abs().max() / value.abs().max())
        for name, value in wanted.items()
        if name in found
    )
    if not difference <= LARGEST_DIFFERENCE:
        raise DataError(
            f"{place}: as ONNX this {kind} says something else: outputs differ by {difference:.2g} of the largest, of "
            f"{LARGEST_DIFFERENCE:g} that may be; nothing was written"
        )
    tokenizer.save_pretrained(folder)
    return difference


def _run(file: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a graph makes of a batch, by the names of its outputs."""
    import onnxruntime  # pyright: ignore[reportMissingImports] - an extra

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]
    found = session.run(None, {name: inputs[name].numpy() for name in wanted})
    return {one.name: value for one, value in zip(session.get_outputs(), found, strict=True)}
