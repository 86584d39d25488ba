"""ted_ds itself, as a training run uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.contenders import Spec
from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import CausalLm
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.step_division import StepDivision
from ted_ds.data.stream.corpus_stream import CorpusStream

PACKAGES = ("tokenizers", "torch")
TIMEOUT_S = 300


def open_data(spec: Spec) -> CorpusData:
    """The corpus, checked as at the start of a run."""
    data = Data(train=[Source(path=spec.file)], shuffle_mib=spec.shuffle_mib)
    task = CausalLm(kind="causal_lm", sequence_length=spec.sequence_length)
    backend = Tokenizer.from_file(str(Path(spec.tokenizer) / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=backend.id_to_token(spec.end_id))
    return CorpusData(data, task, tokenizer, list_data(data), max_heldout=1)


def open_stream(data: CorpusData, spec: Spec, state: Mapping[str, Any] | None = None) -> CorpusStream:
    """The training stream of one rank that makes the whole batch."""
    return data.stream(
        Collator(spec.end_id, "tokens", isolate_documents=True),
        StepDivision(spec.batch_size, spec.batch_size),
        seed=1,
        num_workers=spec.num_workers,
        timeout_s=TIMEOUT_S,
        state=state,
    )


def batches(spec: Spec) -> Iterator[list[Batch]]:
    """Batches with labels, positions and masks."""
    return open_stream(open_data(spec), spec)
