"""Models cut into shares, run one after the other, against the whole model: states, predictions, gradients, names."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from ted_ds.data.loader import Batch
from ted_ds.errors import CheckpointError
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import blocks_of
from ted_ds.models.predictions import LossWeights
from ted_ds.models.share import Share
from ted_ds.models.taps import TappedModel
from tests.parity.test_families import NUM_BLOCKS, OTHER_HEAD, OTHER_OPTS, batch, load
from tests.task_kinds import TASK_TERMS, labelled
from tests.tiny import ENCODERS, IN_ALL_WAYS, LABELS, ONE_STACK_TYPES, write_model

EVERYWHERE = [1, 2, 3]
CUTS = ([2], [1, 3], EVERYWHERE, [4], [0])
SOME_CUTS = ([1, 3], [0])
OTHERS = [
    *(
        (one, classify, {})
        for one in ONE_STACK_TYPES
        if one not in IN_ALL_WAYS and family_of(one).unstaged is None
        for classify in ((True, False) if one in ENCODERS else (False,))
    ),
    *(("opt", False, changes) for changes in OTHER_OPTS),
    ("deberta-v2", False, OTHER_HEAD),
    ("electra", False, {"embedding_size": 16}),  # needs no map to its blocks' width
]
OF_TYPES = [
    *((one, True, {}) for one in IN_ALL_WAYS),
    *((one, False, {}) for one in IN_ALL_WAYS),
    ("deberta-v2", True, {"conv_kernel_size": 3}),  # as its larger versions have it
]


def shares_of(cuts):
    borders = [0, *cuts, NUM_BLOCKS]
    last = len(borders) - 2
    return [
        Share(start, stop, has_embeddings=index == 0, has_output=index == last)
        for index, (start, stop) in enumerate(itertools.pairwise(borders))
    ]


def run_through(parts, inputs, taken):
    state = None
    for part in parts:
        if state is not None:
            part.arrive(state)
        taps = {}
        predictions = part(inputs, lambda predictions, _: predictions, on_state=taps.__setitem__)
        taken.update(taps)
        state = part.leave()
    return predictions


def loss_of(predictions, labels):
    terms = TASK_TERMS["causal_lm" if labels.dim() == 2 else "sequence_classification"]
    ids = torch.zeros(labels.shape if labels.dim() == 2 else (len(labels), 1), dtype=torch.long)
    return predictions.losses(terms, Batch(ids, ids, labels, ids == 0), LossWeights()).weighted


@pytest.mark.parametrize(
    ("model_type", "classify", "config", "cuts"),
    [
        *((*one, cuts) for one in OF_TYPES for cuts in CUTS),
        *((*one, cuts) for one in OTHERS for cuts in SOME_CUTS),
    ],
    ids=str,
)
def test_shares_in_a_row_are_the_whole_model(tmp_path, model_type, classify, config, cuts):
    family, layers = family_of(model_type), [0, 1, 2, NUM_BLOCKS]
    whole = TappedModel(load(tmp_path, model_type, classify=classify, **config), family, layers)
    labels = torch.zeros(3, dtype=torch.long) if classify else batch()["input_ids"].clone()
    for part in (whole.model, inputs := batch()):
        if isinstance(part, torch.nn.Module):
            part.config.pad_token_id = 0
    expected_states = {}
    expected = whole(inputs, lambda predictions, _: predictions, on_state=expected_states.__setitem__)
    loss_of(expected, labels).backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}

    parts = []
    for share in shares_of(cuts):
        here = [
            place
            for place, layer in enumerate(layers)
            if share.start < layer <= share.stop or (layer == 0 and share.has_embeddings)
        ]
        model = load(tmp_path, model_type, classify=classify, share=share, **config)
        model.config.pad_token_id = 0
        parts.append(TappedModel(model, family, layers, share=share, places=here))
    states = {}
    predictions = run_through(parts, inputs, states)
    assert states.keys() == expected_states.keys()
    for place, state in states.items():
        torch.testing.assert_close(state, expected_states[place], rtol=0, atol=0)
    torch.testing.assert_close(
        predictions.outputs(labelled(labels)), expected.outputs(labelled(labels)), rtol=0, atol=0
    )

    loss_of(predictions, labels).backward()
    found = {}
    for part in parts:
        for name, parameter in part.named_parameters():
            if parameter.grad is not None:
                name = part.aliases.get(name, name)
                found[name] = found.get(name, 0) + parameter.grad
    assert found.keys() == {name for name, gradient in gradients.items() if gradient is not None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-5, atol=1e-6 * float(gradients[name].abs().max()))


@pytest.mark.parametrize(("model_type", "classify"), [("gpt2", False), ("deberta-v2", True)])
def test_blocks_of_other_stages_are_not_read(tmp_path, model_type, classify):
    family = family_of(model_type)
    whole = load(tmp_path, model_type, classify=classify)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if f"{family.blocks_path.rpartition('.')[2]}.2." in name)
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, {"format": "pt"})

    def load_share(share):
        head = {"num_labels": len(LABELS)} if classify else None
        return load_model(tmp_path, LoadSettings(torch.float32), head=head, share=share)[0]

    share = Share(0, 2, has_embeddings=True, has_output=False)
    part = load_share(share)
    assert type(part) is type(whole)
    assert sum("absent" in type(block).__name__.lower() for block in blocks_of(part, family)) == NUM_BLOCKS - 2
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"the files lack 1 weight"):
        load_share(Share(2, 4, has_embeddings=False, has_output=True))


@pytest.mark.parametrize("share", [*shares_of([2]), None], ids=["first", "last", "whole"])
def test_a_new_head_starts_the_same_on_every_stage(tmp_path, share):
    write_model(tmp_path, "llama", blocks=NUM_BLOCKS)
    heads = []
    for one in (share, None):
        torch.manual_seed(5)
        head = {"num_labels": len(LABELS)}
        model, fresh = load_model(tmp_path, LoadSettings(torch.float32), head=head, new_head_allowed=True, share=one)
        assert fresh == ["score.weight"]
        heads.append(model.score.weight)
    torch.testing.assert_close(*heads, rtol=0, atol=0)


def test_a_share_without_embeddings_taps_the_state_that_arrives(tmp_path):
    part = TappedModel(load(tmp_path, "gpt2"), family_of("gpt2"), [1, 2], share=Share(2, 3, False, False), places=[1])
    arriving, taken = torch.randn(3, 9, part.model.config.n_embd), {}
    part.arrive(arriving)
    part(batch(), lambda *_: None, on_state=taken.__setitem__)
    assert taken.keys() == {1}
    torch.testing.assert_close(taken[1], arriving, rtol=0, atol=0)
    leaving = part.leave()
    assert part.leave() is None
    assert leaving.shape == arriving.shape
    assert not torch.equal(leaving, arriving)
    assert [*part.named_layers()] == ["layer_03"]
    assert all(".h.2." in name for name, _ in part.named_parameters())


def test_a_share_keeps_only_its_own_parameters(tmp_path):
    whole = load(tmp_path, "deberta-v2", classify=True)
    first_names = {name for name, _ in whole.named_parameters()}
    names = []
    for share in shares_of([1, 3]):
        part = TappedModel(load(tmp_path, "deberta-v2", classify=True), family_of("deberta-v2"), share=share)
        names.append({name.removeprefix("model.") for name, _ in part.named_parameters()})
    shared = {"deberta.encoder.rel_embeddings.weight", "deberta.encoder.LayerNorm.weight"}
    assert set.union(*names) == first_names
    assert {name for one, other in ((0, 1), (1, 2), (0, 2)) for name in names[one] & names[other]} >= shared
    assert not any(".layer.0." in name for name in names[1] | names[2])
