"""The card of an exported model: what was distilled from what, how, to which scores, under which licence."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds import __version__
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.data.sources import names_hub
from ted_ds.errors import counted
from ted_ds.models.companions import CARD, Origins, cards_in, hub_name, licences_in
from ted_ds.models.licence import OTHER, Licence, licence_of
from ted_ds.output.results import STUDENT

Blocks = Sequence[int] | Mapping[str, Sequence[int]]
"""The numbers of blocks; of an encoder-decoder, those of each stack by its name."""
Scores = Mapping[str, Mapping[str, float]]
"""Of each evaluated model, by its name."""

PIPELINES = {
    "CausalLM": "text-generation",
    "MaskedLM": "fill-mask",
    "MultipleChoice": "multiple-choice",
    "QuestionAnswering": "question-answering",
    "Seq2SeqLM": "text2text-generation",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
}
"""The Hub's word for what a model is for, by what follows ``AutoModelFor``."""
OF_COUNTS = ("num_", "perf/")
"""Beginnings of numbers that are no scores."""
LIMITS = (
    "It was measured on the held-out examples that are named here and on nothing else: neither on other texts or "
    "languages, nor for what it says that is wrong, unfair or unsafe.",
    "It takes over what its teacher has wrong, and has lost what a smaller model cannot hold.",
)


@dataclass(frozen=True)
class Card:
    """All that the card of one export says."""

    recipe: Recipe
    origins: Origins
    folder: Path
    """The export, with everything but the card in it."""
    blocks: Blocks | None
    """Those of the teacher that the student was cut out as; None where it was not."""
    scores: Scores
    """Empty where nothing was scored."""
    is_adapter: bool = False

    @property
    def doubts(self) -> list[str]:
        """What to know of licences before the model is passed on."""
        found = (licence.doubt(f"the {side}") for side, licence in self._licences.items())
        return [doubt for doubt in found if doubt is not None]

    def text(self, what: str, remarks: Sequence[str]) -> str:
        """The file; ``what`` the model is, in a sentence, and what else is to be known of it."""
        names = self._names
        lines = [
            f"# {self.recipe.name}",
            "",
            f"{what} It is neither of the models it was made from.",
            "",
            f"- Teacher: `{names['teacher']}`. {self._whose_tokenizer()}",
            f"- The student began as {self._start()}.",
            f"- Recipe `{self.recipe.name}`, SHA-256 `{hash_of(self.recipe, names)}` (of its values, but for the "
            f"output's folder), run by ted_ds {__version__}: {self._training()}.",
            f"- Data: {', '.join(self._data())}.",
            *self._papers(),
            *(f"- {remark}." for remark in remarks),
            *self._score_table(),
            "",
            "## Limits",
            "",
            *(f"- {limit}" for limit in LIMITS),
        ]
        return f"---\n{self._front_matter()}\n---\n\n" + "\n".join(lines) + "\n"

    # --- what the Hub reads -----------------------------------------------------------------------------------------

    def _front_matter(self) -> str:
        from huggingface_hub import EvalResult, ModelCardData  # slow to import

        known = [name for origin in self.origins.by_name.values() if (name := hub_name(origin)) is not None]
        pipeline = PIPELINES.get(self.recipe.task.architecture)
        results = [
            EvalResult(
                task_type=pipeline or self.recipe.task.kind,
                dataset_type=self._scored_on,
                dataset_name=self._scored_on,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in self._own_scores().items()
        ]
        licence = self._licence()
        data = ModelCardData(
            license=licence.name,
            license_name=licence.own_name,
            license_link=licence.link,
            base_model=known or None,
            base_model_relation=("adapter" if self.is_adapter else "finetune") if known else None,
            library_name="peft" if self.is_adapter else "transformers",
            pipeline_tag=pipeline,
            datasets=[source.path for source in self.recipe.data.train if names_hub(source)] or None,
            metrics=[*self._own_scores()] or None,
            model_name=self.recipe.name,
            eval_results=results or None,
            tags=["distillation", "ted_ds"],
        )
        if not results:
            data.model_name = None  # which only names results
        return data.to_yaml().strip()

    def _licence(self) -> Licence:
        """That of the front matter: none where the licence of a model is not known."""
        licences = {*self._licences.values()}
        if any(one.name is None for one in licences):
            return Licence(None)
        return licences.pop() if len(licences) == 1 else Licence(OTHER, "several", CARD)

    def _own_scores(self) -> dict[str, float]:
        """Those of the student, by names that the Hub's metrics have."""
        found = self.scores.get(STUDENT, {})
        return {key: value for key, value in found.items() if not key.startswith(OF_COUNTS) and math.isfinite(value)}

    # --- what people read -------------------------------------------------------------------------------------------

    @property
    def _licences(self) -> dict[str, Licence]:
        return {side: licence_of(origin) for side, origin in self.origins.by_name.items()}

    @property
    def _names(self) -> dict[str, str]:
        return {side: hub_name(origin) or origin.resolve().name for side, origin in self.origins.by_name.items()}

    @property
    def _scored_on(self) -> str:
        return f"held out of {', '.join(self._data())}"

    def _data(self) -> list[str]:
        """Names of the training data, without places on this machine."""
        sources = self.recipe.data.train
        return [without_secrets(one.path) if names_hub(one) else Path(one.path).name for one in sources]

    def _training(self) -> str:
        plan = self.recipe.distill
        steps = f"{counted(plan.steps, 'step')} of {plan.global_batch_size}"
        return f"method `{plan.method}`, task `{self.recipe.task.kind}`, {steps} at a rate of {plan.learning_rate:g}"

    def _whose_tokenizer(self) -> str:
        whose = "teacher's" if not self.origins.student_has_tokenizer else "student's own"
        if self.recipe.task.template_file is None:
            return f"Tokenizer, chat template and how text is generated are the {whose}."
        return (
            f"Tokenizer and how text is generated are the {whose}; the chat template is the one it was distilled with."
        )

    def _start(self) -> str:
        """What the student began as, in words."""
        if self.blocks is not None:
            of_stacks = self.blocks.items() if isinstance(self.blocks, Mapping) else [("", self.blocks)]
            return f"{' and '.join(f'{stack} blocks {own}'.strip() for stack, own in of_stacks)} of the teacher"
        if self.recipe.student.from_config is not None:
            return "random weights"
        return f"`{self._names.get('student', self._names['teacher'])}`"

    def _papers(self) -> Iterator[str]:
        cards, files = cards_in(self.folder), licences_in(self.folder)
        if cards:
            yield f"- Cards of the models it was made from: {', '.join(f'`{name}`' for name in cards)}."
        said = ", ".join(f"{one.own_name or one.name or 'unknown'} ({side})" for side, one in self._licences.items())
        yield f"- Licence: {said}."
        if files:
            yield (
                f"- Licences and notices that came with them: {', '.join(f'`{name}`' for name in files)}. They bind "
                "whoever uses this model or passes it on."
            )
        else:
            yield "- No licence file came with them; whoever passes this model on has to look up theirs."
        yield from (f"- **Before it is passed on:** {doubt}." for doubt in self.doubts)

    def _score_table(self) -> Iterator[str]:
        if not self.scores:
            return
        metrics = list(
            dict.fromkeys(key for one in self.scores.values() for key in one if not key.startswith(OF_COUNTS))
        )
        yield from ("", f"## Scores ({self._scored_on})", "")
        yield f"| model | parameters | {' | '.join(metrics)} |"
        yield f"|---|{'---|' * (len(metrics) + 1)}"
        for model, one in self.scores.items():
            cells = [f"{one[metric]:.4g}" if metric in one else "–" for metric in metrics]
            yield f"| {model} | {one['num_parameters'] / 1e6:,.1f} M | {' | '.join(cells)} |"


def hash_of(recipe: Recipe, names: Mapping[str, str]) -> str:
    """The SHA-256 of a recipe's values, but for the output's folder, and with models' names in the place of theirs."""
    values: dict[str, Any] = without_secrets(recipe.model_dump(mode="json"))
    del values["output_dir"]
    for side, name in names.items():
        values[side]["path"] = name
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
