"""Predictions for the tokens of conversations, by the LM head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from ted_ds.config.section import rule
from ted_ds.config.shipped import CHAT_TEMPLATES, named
from ted_ds.config.tasks.base import TaskSection

Where = Literal["completion", "all"]


class Chat(TaskSection):
    """Conversations and instructions: next-token prediction of what the chat template makes of them."""

    architecture: ClassVar[str] = "CausalLM"
    has_lm_head: ClassVar[bool] = True
    predicts_next_token: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 3e-4
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("pooling",)
    of_distillation: ClassVar[tuple[str, ...]] = ("kl_on", "feature_on")
    why_no_transfer: ClassVar[str | None] = (
        "what a chat learns from is written as conversations; give these as another source of data.train"
    )
    kind: Literal["chat"]
    form: Literal["conversations", "tokens"] = "conversations"
    """What a row is: a conversation in one of the usual columns; or tokens in ``input_ids``, of which those are
    completions that ``labels`` has, too (-100 elsewhere), or else all that ``attention_mask`` has."""
    max_length: int = Field(default=2048, gt=1)
    """Longest conversation in tokens; longer ones are cut, and left out where nothing to learn is left."""
    chat_template: Path | None = None
    """A file with a template in Jinja that conversations are written by, or the name of one that ships (``chatml``);
    unset: that of the teacher's tokenizer. It goes into the exported model."""
    completions: Literal["all", "last"] = "all"
    """Whether every turn of the assistant is a completion, or the last one alone: for templates that write a turn in
    another way once others follow."""
    task_on: Where = "completion"
    """Which tokens the task term runs over: those of completions, or all."""
    kl_on: Where = "completion"
    """The same of the prediction term."""
    feature_on: Where = "completion"
    """The same of layer-wise terms: states from which a token of a completion is predicted, or all states."""
    pack: bool = False
    """Whether conversations share sequences of up to ``max_length`` tokens, each kept apart from the others."""

    @rule
    def _tokens_are_written_already(self) -> Iterator[str]:
        for key in ("chat_template", "completions") if self.reads_tokens else ():
            if key in self.model_fields_set:
                yield f"{key}: is for conversations, and rows are tokens already (form: tokens); remove it"

    @model_serializer(mode="wrap")
    def _said_by_silence(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What rows are is said where they are no conversations, as runs from before there was another form do."""
        found: dict[str, Any] = values(self)
        if not self.reads_tokens:
            found.pop("form", None)
        return found

    @property
    def has_template(self) -> bool:
        """Whether conversations are yet to be written."""
        return not self.reads_tokens

    @property
    def reads_tokens(self) -> bool:
        """Whether they are."""
        return self.form == "tokens"

    @property
    def sequence_length(self) -> int:
        """Longest sequence the models will see, in tokens."""
        return self.max_length

    @property
    def sequences(self) -> Literal["one", "more", "fewer"]:
        """Fewer than conversations, where they are put together."""
        return "fewer" if self.pack else "one"

    @field_validator("chat_template", mode="before")
    @classmethod
    def _may_be_the_name_of_one_that_ships(cls, file: Any) -> Any:
        return named(file, CHAT_TEMPLATES, ".jinja") if isinstance(file, str) else file

    @property
    def isolates_documents(self) -> bool:
        """Whether conversations that share a sequence are kept apart, as they always are."""
        return self.pack

    @property
    def place_of_isolation(self) -> str:
        """The key of the recipe that lets them."""
        return "task.pack"

    @property
    def without_isolation(self) -> str:
        """What to do where that cannot be."""
        return "set it to false"

    @property
    def template_file(self) -> Path | None:
        """The template, where it is not the tokenizer's own."""
        return self.chat_template
