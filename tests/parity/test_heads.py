"""The heads that families have for labels, answers and choices: new on a body, and as transformers computes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ted_ds.models.choices import choose_among_rows
from ted_ds.models.families import FAMILY_OF, KNOWN_TYPES, family_of
from ted_ds.models.heads import OwnOutput
from ted_ds.models.loading import LoadSettings, auto_class, load_model
from ted_ds.models.share import Share
from ted_ds.models.taps import TappedModel
from tests.parity.test_families import batch
from tests.tiny import write_model

HEADS = {"SequenceClassification": 3, "TokenClassification": 3, "QuestionAnswering": 2, "MultipleChoice": 1}
"""And their outputs."""
CASES = [
    (name, head)
    for name, family in FAMILY_OF.items()
    for head in HEADS
    if head not in family.lacks and not (head == "QuestionAnswering" and family.span_head is None)
]


@pytest.mark.parametrize(("model_type", "architecture"), CASES)
def test_a_head_starts_new_on_a_body_and_is_then_transformers_own(
    tmp_path: Path, model_type: str, architecture: str
) -> None:
    family, settings = family_of(model_type), LoadSettings(torch.float32)
    write_model(tmp_path, model_type, blocks=2)  # a body, or a causal LM
    head = {"id2label": {index: f"label {index}" for index in range(HEADS[architecture])}}
    model, fresh = load_model(tmp_path, settings, head=head, architecture=architecture, new_head_allowed=True)
    names = {name for name, _ in model.named_parameters()}
    heads = {name for name in names if name.startswith(family.label_head_prefixes)}
    assert fresh
    assert {*fresh} <= heads
    assert heads - {*fresh} <= {name for name in heads if "pooler" in name}  # which most bodies have
    model.save_pretrained(tmp_path / "trained")
    again, fresh = load_model(tmp_path / "trained", settings, head=head, architecture=architecture)
    assert fresh == []

    plain = auto_class(architecture).from_pretrained(tmp_path / "trained").eval()
    inputs = batch(family.row_of_padding(plain.config.to_dict()) or 0)
    if architecture == "MultipleChoice":
        choose_among_rows(again, 3)
        expected = plain(**{name: value[None] for name, value in inputs.items()}).logits
    elif architecture == "QuestionAnswering":
        output = plain(**inputs)
        expected = torch.stack([output.start_logits, output.end_logits], dim=1)
    elif family.pooled_token == "last" and architecture == "SequenceClassification":
        expected = torch.cat([plain(row[mask.bool()][None]).logits for row, mask in zip(*inputs.values(), strict=True)])
    else:
        expected = plain(**inputs).logits
    tapped = TappedModel(again.eval(), family, [0, 2], pooled=architecture == "SequenceClassification")
    with torch.no_grad():
        logits, _ = tapped(inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", KNOWN_TYPES)
def test_a_head_for_other_labels_starts_anew_and_the_body_does_not(tmp_path: Path, model_type: str) -> None:
    if "SequenceClassification" in family_of(model_type).lacks:
        return
    write_model(tmp_path, model_type, blocks=2, labels=("one", "two", "three"))
    head = {"id2label": {0: "negative", 1: "positive"}}
    architecture = "SequenceClassification"
    model, fresh = load_model(tmp_path, LoadSettings(torch.float32), head=head, new_head_allowed=True)
    matrix = f"{family_of(model_type).label_heads[0]}.weight"
    assert matrix in fresh
    assert model.get_parameter(matrix).shape[0] == 2
    before = dict(auto_class(architecture).from_pretrained(tmp_path).named_parameters())
    for name, parameter in model.named_parameters():
        assert name in fresh or torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        pytest.param(name, head, marks=[] if head == "SequenceClassification" or name == "bert" else pytest.mark.slow)
        for name, head in CASES
        if family_of(name).unstaged is None
    ],
)
def test_a_head_without_its_blocks_makes_the_models_logits_of_the_last_state(
    tmp_path: Path, model_type: str, architecture: str
) -> None:
    """By which filters that are solved are read."""
    family, settings = family_of(model_type), LoadSettings(torch.float32)
    write_model(tmp_path, model_type, blocks=2)
    head = {"id2label": {index: f"label {index}" for index in range(HEADS[architecture])}}
    is_choice = architecture == "MultipleChoice"

    def load(share: Share | None) -> TappedModel:
        torch.manual_seed(3)
        model, _ = load_model(
            tmp_path, settings, head=head, architecture=architecture, new_head_allowed=True, share=share
        )
        if is_choice:
            choose_among_rows(model, 3)
        pooled = architecture in ("SequenceClassification", "MultipleChoice")
        return TappedModel(model.eval(), family, (2,) if share is None else (), share=share, pooled=pooled)

    whole, output = load(None), load(Share(2, 2, has_embeddings=False, has_output=True))
    output.load_state_dict({name: weight for name, weight in whole.state_dict().items() if name in output.state_dict()})
    inputs = batch()
    logits, (state,) = whole(inputs)
    read = OwnOutput(output).train()
    torch.testing.assert_close(read(state, inputs), logits)
    assert not output.training, "nothing of it is dropped"
    assert not read(torch.zeros_like(state), inputs).allclose(logits)
    if family.pooled_token == "first" and architecture == "SequenceClassification":
        torch.testing.assert_close(read(state[:, 0], inputs), logits)
