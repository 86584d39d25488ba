"""Conversations and instructions: which tokens of a row are completions, and which terms run over these alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ted_ds.config.data import Data
from ted_ds.config.tasks import Chat
from ted_ds.data.chat_template import (
    ChatTemplate,
    Renderer,
    UnclearError,
    cut_to,
    find_template,
    spans_of_tokens,
    vet_template,
)
from ted_ds.data.conversations import NAMES, Dialogue, read_dialogue
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.samples import Example, Label, Sample
from ted_ds.data.token_rows import SAID_BY, TokenRow, read_tokens, sample_of
from ted_ds.models.tokenizer_traits import refuse_without_places
from ted_ds.tasks.causal_lm import CausalLmKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ted_ds.data.chat_data import ChatData
    from ted_ds.numerics.task_terms import TaskTerms


class ChatKind(CausalLmKind):
    """See :class:`ted_ds.config.tasks.Chat`: a causal LM's task on rows of a set."""

    are_labelled = True
    counted_as = "read as"

    def __init__(self, task: Chat) -> None:
        self.chat = task
        self._renderer: tuple[Any, Renderer] | None = None
        super().__init__(task)  # type: ignore[arg-type] - what it asks of its section, this one has

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """All of a row: rows are of several forms."""
        return []

    @property
    def num_texts(self) -> int:
        """None where rows are tokens."""
        return 0 if self.chat.reads_tokens else super().num_texts

    def read(
        self,
        row: Mapping[str, Any],
        *,
        where: str,  # noqa: ARG002 - as others do
        declared: Mapping[str, Sequence[str]],  # noqa: ARG002 - as others do
    ) -> Sequence[Example]:
        """The conversation in a row, or its tokens."""
        return [read_tokens(row) if self.chat.reads_tokens else read_dialogue(row)]

    def counted(self, label: Label | None) -> list[str]:
        """The form of its row, or what says which of its tokens are learned."""
        assert isinstance(label, int)
        return [(SAID_BY if self.chat.reads_tokens else NAMES)[label]]

    def template(self, tokenizer: Any) -> ChatTemplate:
        """The one that conversations are written by.

        Raises:
            CheckpointError: The tokenizer does not say where its tokens come from.
            ConfigError: There is none, or it names what the tokenizer has not.
        """
        from ted_ds.data.tokenizers import traits_of

        refuse_without_places(tokenizer, self.chat.kind)
        template = find_template(self.chat.chat_template, tokenizer.chat_template)
        vet_template(template, traits_of(tokenizer))
        return template

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> list[list[Sample] | str]:
        """Conversations as the template writes them, with nothing around, or tokens; cut to the longest allowed."""
        if self.chat.reads_tokens:
            return [*self._of_tokens(tokenizer, examples)]
        renderer = self._renderer_for(tokenizer)
        made: list[tuple[str, Any] | str] = []
        for example in examples:
            assert isinstance(example, Dialogue)
            try:
                made.append(renderer.render(example))
            except UnclearError as error:
                made.append(str(error))
        texts = [one[0] for one in made if isinstance(one, tuple)]
        settings = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        encoded = tokenizer(texts, **settings) if texts else {"input_ids": [], "offset_mapping": []}
        tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [one if isinstance(one, str) else self._samples(one[1], *next(tokens)) for one in made]

    def _of_tokens(self, tokenizer: Any, examples: Sequence[Example]) -> Iterator[list[Sample] | str]:
        num_ids = max(tokenizer.get_vocab().values()) + 1
        padding = None if tokenizer.pad_token_id == tokenizer.eos_token_id else tokenizer.pad_token_id
        for example in examples:
            assert isinstance(example, TokenRow)
            yield sample_of(example, num_ids=num_ids, padding=padding, length=self.chat.max_length)

    def _renderer_for(self, tokenizer: Any) -> Renderer:
        if self._renderer is None or self._renderer[0] is not tokenizer:
            renderer = Renderer(self.template(tokenizer), tokenizer, last_alone=self.chat.completions == "last")
            self._renderer = (tokenizer, renderer)
        return self._renderer[1]

    def _samples(self, spans: Sequence[Any], ids: Sequence[int], offsets: Sequence[Any]) -> list[Sample]:
        """A conversation that something is left to learn of; nothing for another."""
        length = min(len(ids), self.chat.max_length)
        completions = cut_to(spans_of_tokens(spans, offsets), length)
        # an array, as it holds a token in a tenth of what a list takes
        return [Sample(array("i", ids[:length]), completions, document_lengths=[length])] if completions else []

    def open_data(  # type: ignore[override] - a set, where its likes have a corpus
        self, data: Data, tokenizer: PreTrainedTokenizerBase, listing: DataListing, *, max_heldout: int
    ) -> ChatData:
        """A set of conversations."""
        from ted_ds.data.chat_data import ChatData

        template = None if self.chat.reads_tokens else self.template(tokenizer)
        return ChatData(data, self, tokenizer, listing, max_heldout=max_heldout, task=self.chat, template=template)

    def _collator_settings(self) -> dict[str, Any]:
        from ted_ds.data.loader import OfCompletions

        chosen = (self.chat.task_on, self.chat.kl_on, self.chat.feature_on)
        alone = OfCompletions(*(one == "completion" for one in chosen))
        return {"isolate_documents": self.chat.pack, "of_completions": alone}

    def beginning(self, sample: Sample) -> Sequence[int]:
        """All before its first completion."""
        assert isinstance(sample.label, Sequence)
        return sample.input_ids[: int(sample.label[0])]

    # --- numbers ----------------------------------------------------------------------------------------------------

    @property
    def terms(self) -> TaskTerms:
        """Those of a causal LM, with a count each where they run over different tokens."""
        terms = super().terms
        return terms if self.chat.kl_on == self.chat.task_on else replace(terms, counts_apart=True)
