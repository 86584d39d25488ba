"""Encoder-decoders: taps of both stacks, logits, losses and cuts against the plain transformers forward."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.execution import checkpoint_activations
from ted_ds.models.families import family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.heads import load_lm_output
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import blocks_of, logit_rule_of, stacks_of
from ted_ds.models.predictions import LossWeights
from ted_ds.models.readers import seq2seq_probes
from ted_ds.models.taps import TappedModel
from ted_ds.models.two_stacks import shifted
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.losses import cross_entropy_sum, divergence_sum, kept_labels
from ted_ds.numerics.task_terms import CAUSAL_LM
from tests.plain import logits_of
from tests.tiny import ENCODER_DECODERS, OF_TWO_STACKS, VOCAB_SIZE, write_model

LAYERS = ("decoder.2", "encoder.0", "encoder.4", "encoder.1", "decoder.3")
BLOCKS = {stack.removesuffix("_blocks"): blocks for stack, blocks in OF_TWO_STACKS.items()}


SETTINGS = LoadSettings(torch.float32)


def load(folder, model_type, *, dtype=torch.float32, bias=None, **config):
    write_model(folder, model_type, **config)
    if bias is not None:
        with_bias = AutoModelForSeq2SeqLM.from_pretrained(folder)
        with_bias.final_logits_bias[:] = bias
        with_bias.save_pretrained(folder)
    return load_model(folder, LoadSettings(dtype), head=None, architecture="Seq2SeqLM")[0].eval()


def batch(sources=(7, 4, 9), targets=(3, 6, 2)):
    generator = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist()

    return Collator(0, "targets")([Sample(ids(one), ids(other)) for one, other in zip(sources, targets, strict=True)])


def plainly(model, given, **more):
    return model(
        input_ids=given.input_ids, attention_mask=given.attention_mask, labels=given.labels, use_cache=False, **more
    )


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_taps_are_the_hidden_states_of_both_stacks_and_leave_the_logits_alone(tmp_path, model_type):
    model, given = load(tmp_path, model_type), batch()
    with torch.no_grad():
        plain = plainly(model, given, output_hidden_states=True)
        tapped = TappedModel(model, family_of(model_type), LAYERS)
        logits, states = tapped(given.inputs)
        kept = given.kept_targets  # behind a target transformers puts its padding id, and the data may have another
        assert torch.equal(logits[kept], plain.logits[kept])
        for layer, state in zip(LAYERS, states, strict=True):
            stack, _, number = layer.partition(".")
            of_stack = plain.encoder_hidden_states if stack == "encoder" else plain.decoder_hidden_states
            if int(number) == len(of_stack) - 1:  # transformers' last hidden state comes after the final norm
                index = ("encoder", "decoder").index(stack)
                norms = ("final_layer_norm", "layer_norm")
                module = stacks_of(model, family_of(model_type))[index]
                norm = next((getattr(module, name) for name in norms if hasattr(module, name)), torch.nn.Identity())
                state = norm(state)
            kept = given.kept_tokens if stack == "encoder" else given.kept_targets
            assert torch.equal(state[kept], of_stack[int(number)][kept]), layer


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_the_loss_is_transformers_own(tmp_path, model_type):
    model, given = load(tmp_path, model_type), batch()
    expected = plainly(model, given).loss
    losses = TappedModel(model, family_of(model_type))(given.inputs, lambda own, _: own).losses(
        CAUSAL_LM, given, LossWeights()
    )
    torch.testing.assert_close(losses.task / given.kept_targets.sum(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [None, 0.3])
@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_losses_from_states_and_their_gradients_are_those_of_all_logits_in_fp64(tmp_path, model_type, bias):
    if bias is not None and family_of(model_type).logits_bias_path is None:
        pytest.skip("it has no such bias")
    added = None if bias is None else bias * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    given = batch()
    student = TappedModel(load(tmp_path / "student", model_type, bias=added).double(), family_of(model_type))
    teacher = TappedModel(load(tmp_path / "teacher", model_type, seed=1).double(), family_of(model_type))
    teacher.requires_grad_(False)
    found = []
    for chunked in (True, False):
        student.zero_grad()
        if chunked:
            of_student, of_teacher = (one(given.inputs, lambda own, _: own) for one in (student, teacher))
            losses = of_student.losses(CAUSAL_LM, given, LossWeights(0.7, 2.5, temperature=2.0), of_teacher)
            task, divergence, weighted = losses.task, losses.prediction, losses.weighted
        else:
            logits, others = (one(given.inputs)[0] for one in (student, teacher))  # transformers' own
            task = cross_entropy_sum(logits, given.labels)
            divergence = divergence_sum(logits, others, keep=kept_labels(given.labels), temperature=2.0)
            weighted = 0.7 * task + 2.5 * divergence
        weighted.backward()
        found.append([task.detach(), divergence.detach(), *(one.grad for one in student.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            atol = 1e-6 * max(float(other.abs().max()), 1e-3)
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-6, atol=atol)  # sums of losses are in fp32


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_the_head_read_from_files_is_the_models_own(tmp_path, model_type):
    bias = torch.linspace(-1, 1, VOCAB_SIZE) if family_of(model_type).logits_bias_path else None
    model, given = load(tmp_path, model_type, bias=bias), batch()
    before, head = load_lm_output(tmp_path, torch.float32)
    with torch.no_grad():
        logits, (last,) = TappedModel(model, family_of(model_type), ["decoder.3"])(given.inputs)
        own = head.rule(torch.nn.functional.linear(before(last), head.weight)) + (0 if head.bias is None else head.bias)
        torch.testing.assert_close(own, logits, rtol=1e-6, atol=1e-6)
    assert head.rule == logit_rule_of(model.config, family_of(model_type))


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_neither_padding_nor_what_is_beside_a_row_changes_it(tmp_path, model_type):
    tapped = TappedModel(load(tmp_path, model_type), family_of(model_type), LAYERS)
    together = batch()
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(*(torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in pair))
        for pair in ((7, 3), (4, 6), (9, 2))
    ]
    with torch.no_grad():
        _, states = tapped(together.inputs)
        for row, sample in enumerate(samples):
            alone = Collator(0, "targets")([sample])
            assert alone.target_ids.tolist() == [sample.label]
            for layer, own, state in zip(LAYERS, tapped(alone.inputs)[1], states, strict=True):
                kept = together.kept_tokens if layer.startswith("encoder") else together.kept_targets
                torch.testing.assert_close(state[row][kept[row]], own[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_facts_and_parameters_are_those_of_the_model(tmp_path, model_type):
    model = load(tmp_path, model_type)
    facts = read_model_facts(tmp_path)
    assert (facts.blocks_of_stacks, facts.num_blocks) == ({"encoder": 4, "decoder": 3}, 7)
    assert facts.decoder_start_id == model.config.decoder_start_token_id
    assert facts.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    counted = [sum(math.prod(shape) for shape in block) for block in facts.parameters.of_blocks]
    blocks = blocks_of(model, family_of(model_type))
    assert counted == [sum(one.numel() for one in block.parameters()) for block in blocks]


def numbered(chosen, depth):
    """The numbers of blocks of an encoder of so many, and of a decoder behind it."""
    return [*chosen["encoder"], *(depth + block for block in chosen["decoder"])]


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
@pytest.mark.parametrize("chosen", [BLOCKS, {"encoder": [2, 0, 0], "decoder": [0, 0, 2, 1]}])
def test_a_cut_has_the_chosen_blocks_of_each_stack_and_they_do_what_they_did(tmp_path, model_type, chosen):
    teacher = load(tmp_path / "teacher", model_type)
    family = family_of(model_type)
    cut(
        tmp_path / "teacher",
        tmp_path / "student",
        blocks=chosen,
        family=family,
        origins=Origins(tmp_path / "teacher", tmp_path / "teacher"),
    )
    facts = read_model_facts(tmp_path / "student")
    assert facts.blocks_of_stacks == {key: len(own) for key, own in chosen.items()}
    counted = [sorted(block) for block in facts.parameters.of_blocks]
    planned = read_model_facts(tmp_path / "teacher").parameters.cut(numbered(chosen, 4))
    again = planned.cut(range(len(planned.of_blocks)))
    for one in (planned, again):
        assert [sorted(block) for block in one.of_blocks] == counted
        assert one.total == facts.parameters.total
    student, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    # the teacher with its other blocks taken out in place, which leaves what its first blocks compute for the others
    for stack, own in zip(stacks_of(teacher, family), chosen.values(), strict=True):
        blocks = stack.block if hasattr(stack, "block") else stack.layers
        if family.parts_of_first_block:
            first = blocks[own[0]].layer[0].SelfAttention
            first.relative_attention_bias = blocks[0].layer[0].SelfAttention.relative_attention_bias
            first.has_relative_attention_bias = True
        kept = [blocks[number] for number in own]
        del blocks[:]
        blocks.extend(kept)
    given = batch()
    with torch.no_grad():
        assert torch.equal(plainly(student.eval(), given).logits, plainly(teacher, given).logits)


def test_a_reader_sees_the_source_through_the_filter_and_the_target_up_to_the_token_before(tmp_path):
    load(tmp_path, "t5")
    bank = FilterBank(["encoder.2", "decoder.2"], 16, 12)
    probes = seq2seq_probes(bank, dim=12, model_path=tmp_path, kind="frozen", dtype=torch.float32)
    given = batch()
    state = torch.randn(3, given.input_ids.shape[1], 16, generator=torch.Generator().manual_seed(2))
    features = probes.features(0, state, given.inputs)
    reader = probes.readers[0]
    for row in range(3):
        own = bank.filters[0](state[row, given.kept_tokens[row]])
        asked = shifted(given.target_ids, 0)[row]
        for place, token in enumerate(asked.tolist()):
            query = reader.query(reader.embeddings.weight[token])
            weights = torch.softmax(own @ query / 12**0.5, 0)
            torch.testing.assert_close(features[row, place], weights @ own, rtol=1e-4, atol=1e-5)
    assert not any(one.requires_grad for one in reader.embeddings.parameters())
    probes.predict(0, state, given.inputs).losses(CAUSAL_LM, given, LossWeights()).weighted.backward()
    assert bank.filters[0].layers()[0][0].grad.abs().sum() > 0
    trained = [name for name, one in probes.named_parameters() if one.requires_grad]
    assert {name.split(".")[0] for name in trained} == {"bank", "heads", "readers"}


@pytest.mark.parametrize(("model_type", "is_tied", "divisor"), [("t5", True, 4), ("t5", False, 1), ("mt5", False, 1)])
def test_logits_of_a_t5_are_divided_where_its_files_tie_its_head_and_those_of_an_mt5_never(
    tmp_path, model_type, is_tied, divisor
):
    write_model(tmp_path, model_type, tie_word_embeddings=is_tied)
    tapped = TappedModel(load_model(tmp_path, SETTINGS, head=None, architecture="Seq2SeqLM")[0], family_of(model_type))
    assert logit_rule_of(tapped.model.config, family_of(model_type)).divisor == divisor
    with torch.no_grad():
        logits, _ = tapped(batch().inputs)
        torch.testing.assert_close(tapped(batch().inputs, lambda own, _: logits_of(own)), logits, rtol=0, atol=0)


def test_an_lm_head_of_its_own_is_read_whatever_the_config_says(tmp_path):
    write_model(tmp_path, "t5")
    file = tmp_path / "model.safetensors"
    head = torch.randn(VOCAB_SIZE, 16, generator=torch.Generator().manual_seed(3))
    save_file({**load_file(file), "lm_head.weight": head}, file, metadata={"format": "pt"})
    model = load_model(tmp_path, SETTINGS, head=None, architecture="Seq2SeqLM")[0]
    facts = read_model_facts(tmp_path)
    assert facts.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert (facts.is_tied, facts.parameters.lm_head) == (False, VOCAB_SIZE * 16)
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(load_lm_output(tmp_path, torch.float32)[1].weight, head)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_taps_fire_once_and_gradients_are_right_under_activation_checkpointing(tmp_path, model_type):
    given, found = batch(), []
    for checkpointing in (False, True):
        model = load(tmp_path, model_type).double().train()
        if checkpointing:
            checkpoint_activations(model, family_of(model_type))
        tapped, taken = TappedModel(model, family_of(model_type), LAYERS), []
        losses = tapped(given.inputs, lambda own, _: own, on_state=lambda *one, taken=taken: taken.append(one)).losses(
            CAUSAL_LM, given, LossWeights()
        )
        (losses.weighted + sum(state.square().sum() for _, state in taken)).backward()
        assert [place for place, _ in taken] == [1, 3, 2, 0, 4]
        found.append([one.grad for one in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
