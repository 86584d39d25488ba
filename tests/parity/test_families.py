"""Each family's parts, and the taps, against the plain transformers forward of a tiny random model."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from ted_ds.data.loader import Batch
from ted_ds.models.execution import checkpoint_activations
from ted_ds.models.families import family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.heads import lm_probes, load_lm_output
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import (
    before_lm_head_of,
    behind_blocks_of,
    blocks_of,
    embeddings_of,
    lm_head_of,
    logit_rule_of,
)
from ted_ds.models.predictions import LossWeights
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.losses import IGNORED_LABEL, cross_entropy_sum, divergence_sum, kept_labels
from ted_ds.numerics.task_terms import CAUSAL_LM
from tests.plain import logits_of, probe_logits
from tests.tiny import LABELS, ONE_STACK_TYPES, TYPES_WITH_LABELS, VOCAB_SIZE, write_model

NUM_BLOCKS = 4
OTHER_OPTS = [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 16}]
"""As the one of 350M parameters, without a norm behind its blocks, and as all others, without maps to embeddings."""
OTHER_HEAD = {"legacy": False}
"""A DeBERTa whose LM head is no module, as DeBERTa v3 was trained with."""
LANGUAGE_MODELS = [*((name, {}) for name in ONE_STACK_TYPES), ("deberta-v2", OTHER_HEAD)]
LANGUAGE_MODELS += [("opt", changes) for changes in OTHER_OPTS]


def load(folder, model_type, *, classify=False, dtype=torch.float32, share=None, **config):
    labels = [*LABELS] if classify else None
    architecture = "SequenceClassification" if classify else family_of(model_type).language_model
    write_model(folder, model_type, blocks=NUM_BLOCKS, labels=labels, architecture=architecture, **config)
    head = {"num_labels": len(LABELS)} if classify else None
    model, _ = load_model(folder, LoadSettings(dtype), head=head, architecture=architecture, share=share)
    return model.eval()


def batch(pad_id=0):
    input_ids = torch.randint(5, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    input_ids[1, 6:] = pad_id
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.mark.parametrize(
    ("model_type", "classify", "config"),
    [
        *((name, True, {}) for name in TYPES_WITH_LABELS),
        *((name, False, {}) for name in ONE_STACK_TYPES),
        ("deberta-v2", True, {"conv_kernel_size": 3}),  # puts out layer 1 in the place of the first block
        ("deberta-v2", True, {"conv_kernel_size": 5, "conv_act": "gelu"}),
        *(("opt", False, changes) for changes in OTHER_OPTS),
        ("gpt_neox", False, {"use_parallel_residual": False}),
        ("electra", True, {"embedding_size": 16}),  # needs no map to the width of its blocks
        ("albert", True, {"num_hidden_groups": 2}),
        ("modernbert", True, {"classifier_pooling": "mean"}),
        ("deberta-v2", False, OTHER_HEAD),
    ],
)
def test_taps_are_the_hidden_states_and_leave_the_logits_alone(tmp_path, model_type, classify, config):
    model = load(tmp_path, model_type, classify=classify, **config)
    family = family_of(model_type)
    model.config.use_cache = False  # else sliding blocks read keys out of a cache, in products of another shape
    with torch.no_grad():
        inputs = batch(family.row_of_padding(model.config.to_dict()) or 0)
        plain = model(**inputs, output_hidden_states=True)
        layers = (3, 0, 1, NUM_BLOCKS)
        logits, states = TappedModel(model, family, layers)(inputs)
        assert torch.equal(logits, plain.logits)
        hidden = [*plain.hidden_states]
        for layer, state in zip(layers, states, strict=True):
            # transformers' last hidden state comes after the final norm, a tap before it
            if layer == NUM_BLOCKS:
                state = torch.nn.Sequential(*behind_blocks_of(model, family))(state)
            torch.testing.assert_close(state, hidden[layer], rtol=0, atol=0)


@pytest.mark.parametrize(("model_type", "config"), LANGUAGE_MODELS)
def test_head_of_what_stands_before_it_of_the_last_block_is_the_logits(tmp_path, model_type, config):
    model = load(tmp_path, model_type, **config)
    family = family_of(model_type).as_configured(config)
    with torch.no_grad():
        logits, (last,) = TappedModel(model, family, [NUM_BLOCKS])(batch())
        before = torch.nn.Sequential(*before_lm_head_of(model, family))
        rule = logit_rule_of(model.config, family)
        torch.testing.assert_close(rule(lm_head_of(model, family)(before(last))), logits, rtol=0, atol=0)


@pytest.mark.parametrize(("model_type", "config"), LANGUAGE_MODELS)
def test_the_head_of_the_predictions_gives_the_logits(tmp_path, model_type, config):
    # a family whose forward does more than that between its last hidden states and its logits would fail this
    tapped = TappedModel(load(tmp_path, model_type, **config), family_of(model_type))
    with torch.no_grad():
        logits, _ = tapped(batch())
        torch.testing.assert_close(tapped(batch(), lambda own, _: logits_of(own)), logits, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_losses_from_states_and_their_gradients_are_those_of_all_logits(tmp_path, model_type):
    architecture = family_of(model_type).language_model
    taught_by = {"MaskedLM": "bert", "CausalLM": "granite" if model_type == "gemma2" else "gemma2"}[architecture]
    student = TappedModel(load(tmp_path / "student", model_type), family_of(model_type))
    teacher = TappedModel(load(tmp_path / "teacher", taught_by), family_of(taught_by)).requires_grad_(False)
    mask = batch()["attention_mask"]
    labels = torch.where(mask.bool(), batch()["input_ids"].roll(-1, 1), IGNORED_LABEL)
    given = Batch(batch()["input_ids"], mask, labels, mask.bool())
    found = []
    for chunked in (True, False):
        student.zero_grad()
        of_student, of_teacher = (one(batch(), lambda own, _: own) for one in (student, teacher))
        if chunked:
            losses = of_student.losses(CAUSAL_LM, given, LossWeights(0.7, 2.5, temperature=2.0), of_teacher)
            task, divergence, weighted = losses.task, losses.prediction, losses.weighted
        else:
            logits, others = logits_of(of_student), logits_of(of_teacher)
            task = cross_entropy_sum(logits, labels)
            divergence = divergence_sum(logits, others, keep=kept_labels(labels), temperature=2.0)
            weighted = 0.7 * task + 2.5 * divergence
        weighted.backward()
        found.append([task.detach(), divergence.detach(), *(one.grad for one in student.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(float(other.abs().max()), 1e-3))


@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_states_are_handed_over_in_the_order_of_the_blocks_and_not_kept(tmp_path, model_type):
    tapped = TappedModel(load(tmp_path, model_type, classify=True), family_of(model_type), [3, 1, 3])
    taken = []
    with torch.no_grad():
        _, expected = tapped(batch())
        states = tapped(batch(), lambda _, states: states, on_state=lambda *one: taken.append(one))
    assert states == ()
    assert [place for place, _ in taken] == [1, 0, 2]
    assert all(torch.equal(state, expected[place]) for place, state in taken)
    assert tapped._on_state is None


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_embeddings_then_blocks_are_what_the_model_runs(tmp_path, model_type):
    model = load(tmp_path, model_type, classify=model_type in TYPES_WITH_LABELS)
    family = family_of(model_type)
    called = []
    embeddings_of(model, family).register_forward_hook(lambda *_: called.append("embed"))
    for index, block in enumerate(blocks_of(model, family)):
        block.register_forward_hook(lambda *_, index=index: called.append(index))
    with torch.no_grad():
        model(**batch())
    assert called == ["embed", *family.block_of_layers(model.config.to_dict())]


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_only_mapped_layers_are_kept_and_none_after_the_forward(tmp_path, model_type):
    classify = model_type in TYPES_WITH_LABELS
    tapped = TappedModel(load(tmp_path, model_type, classify=classify), family_of(model_type), [2])
    with torch.no_grad():
        states = tapped(batch(), lambda _, states: states, with_predictions=False)
    assert len(states) == 1
    assert tapped._captured == {}


@pytest.mark.parametrize("with_predictions", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_states_are_the_same_without_predictions(tmp_path, model_type, with_predictions):
    tapped = TappedModel(load(tmp_path, model_type, classify=True), family_of(model_type), [1, NUM_BLOCKS])
    with torch.no_grad():
        _, expected = tapped(batch())
        predictions, states = tapped(batch(), lambda *both: both, with_predictions=with_predictions)
    assert (predictions is not None) == with_predictions
    for one, other in zip(states, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "mixtral", "bert", "deberta-v2", "mpnet", "albert"])
def test_a_tap_fires_once_and_gives_right_gradients_under_activation_checkpointing(tmp_path, model_type):
    gradients, times = [], []
    for checkpointing in (False, True):
        model = load(tmp_path, model_type, classify=True)
        if checkpointing:
            checkpoint_activations(model, family_of(model_type))
        ran = []
        inside = blocks_of(model, family_of(model_type))[0].modules()
        linear = next(one for one in inside if isinstance(one, torch.nn.Linear | Conv1D))
        linear.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        tapped = TappedModel(model.train(), family_of(model_type), [0, 2])
        fired = []
        tapped.named_layers()["layer_02"].register_forward_hook(lambda *_, fired=fired: fired.append(1))
        logits, states = tapped(batch())
        sum((one.square().sum() for one in states), start=logits.square().sum()).backward()
        assert len(fired) == 1
        times.append(len(ran))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert times[1] == 2 * times[0] > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("model_type", "config"), LANGUAGE_MODELS)
def test_lm_output_read_from_files_is_the_models_own(tmp_path, model_type, config, tied):
    model = load(tmp_path, model_type, tie_word_embeddings=tied, **config)
    family = family_of(model_type).as_configured(config)
    biases = [one for name, one in model.named_parameters() if one.shape == (VOCAB_SIZE,)]
    for bias in biases:  # which start at 0, and would not be missed
        torch.nn.init.normal_(bias)
    if biases:
        model.save_pretrained(tmp_path)
    norm, head = load_lm_output(tmp_path, torch.float32)
    assert (head.bias is not None) == bool(biases)
    with torch.no_grad():
        logits, (last,) = TappedModel(model, family, [NUM_BLOCKS])(batch())
        torch.testing.assert_close(head.rule(head(norm(last))), logits, rtol=0, atol=0)


def test_lm_output_is_read_by_the_names_of_early_files(tmp_path):
    model = load(tmp_path, "bert")
    norm, _ = load_lm_output(tmp_path, torch.float32)
    torch.nn.init.normal_(model.cls.predictions.transform.LayerNorm.weight)
    weights = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): one for name, one in model.state_dict().items()}
    weights = {name.replace("LayerNorm.bias", "LayerNorm.beta"): one.clone() for name, one in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    norm, _ = load_lm_output(tmp_path, torch.float32)
    assert torch.equal(norm.LayerNorm.weight, model.cls.predictions.transform.LayerNorm.weight)
    assert read_model_facts(tmp_path).has_lm_head


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite", "opt"])
def test_identity_filters_on_the_last_layer_with_the_frozen_head_are_the_model_itself(tmp_path, model_type):
    model = load(tmp_path, model_type)
    bank = FilterBank([NUM_BLOCKS], 16, 16, initialisation="identity")
    probes = lm_probes(bank, dim=16, model_path=tmp_path, kind="frozen", dtype=torch.float32)
    with torch.no_grad():
        logits, states = TappedModel(model, family_of(model_type), [NUM_BLOCKS])(batch())
        (probed,) = probe_logits(probes, states, batch())
    torch.testing.assert_close(probed, logits, rtol=1e-6, atol=1e-6)


def test_the_frozen_head_trains_nothing_of_the_model(tmp_path):
    write_model(tmp_path, "llama")
    probes = lm_probes(FilterBank([1, 2], 16, 24), dim=24, model_path=tmp_path, kind="frozen", dtype=torch.float32)
    trainable = {name for name, p in probes.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"bank", "heads"}
    assert all(name.startswith("bank.") or ".to_hidden." in name for name in trainable)


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_parameters_are_counted_without_torch(tmp_path, model_type):
    model, facts = load(tmp_path, model_type), read_model_facts(tmp_path)
    assert facts.as_language_model.total == sum(parameter.numel() for parameter in model.parameters())
    of_blocks = [sum(one.numel() for one in block.parameters()) for block in blocks_of(model, family_of(model_type))]
    assert [sum(map(math.prod, block)) for block in facts.parameters.of_blocks] == of_blocks
    experts = [one.shape[0] for one in model.parameters() if one.dim() == 3]
    counted = [shape[0] for block in facts.parameters.of_blocks for shape in block if len(shape) == 3]
    assert {*experts} == {*counted} == {facts.num_experts} - {0}


@pytest.mark.parametrize("model_type", TYPES_WITH_LABELS)
def test_facts_read_without_torch_are_those_of_the_loaded_model(tmp_path, model_type):
    model = load(tmp_path, model_type, classify=True)
    facts = read_model_facts(tmp_path)
    assert facts.num_blocks == NUM_BLOCKS == len(model(**batch(), output_hidden_states=True).hidden_states) - 1
    family = family_of(model_type)
    assert len(facts.parameters.of_blocks) == len(blocks_of(model, family))
    assert facts.embedding_width == model.get_input_embeddings().embedding_dim
    assert facts.hidden_size == model.config.hidden_size
    assert facts.vocab_size == model.config.vocab_size
    assert facts.labels == LABELS
