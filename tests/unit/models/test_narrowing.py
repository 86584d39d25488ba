"""A student narrower than its teacher: a twin of a teacher that does not use the units that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.companions import Origins
from ted_ds.models.cut_config import refuse_other_widths
from ted_ds.models.cutting import cut
from ted_ds.models.families import FAMILY_OF, family_of
from ted_ds.models.family import Family
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.models.narrowing import KeptUnits, choose_units, narrowed
from ted_ds.models.taps import TappedModel
from ted_ds.models.unit_scores import UnitScores
from ted_ds.models.units import HEADS, HIDDEN, INNER, KEY_VALUE_HEADS, Widths, axes_of, widths_of
from ted_ds.planning.width_facts import KIND_OF_KEY, narrow_facts
from tests.tiny import CAUSAL_LM_TYPES, LABELS, write_model

IDS = torch.tensor([[3, 10, 20, 30, 4, 9], [3, 50, 60, 4, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
NARROW = tuple(name for name, family in FAMILY_OF.items() if family.units_of_maps)
DECODERS = tuple(name for name in NARROW if name in CAUSAL_LM_TYPES)
EPS = dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"), 1e-12)
"""The root of a narrower mean square is of another size, and what is added to it is not: here it is next to nothing."""
LEFT_OUT = {HIDDEN: (1, 6, 7, 13), INNER: (0, 5, 17), HEADS: (2,), KEY_VALUE_HEADS: (1,)}


def heads_of(family: Family) -> dict[str, int]:
    return {"num_attention_heads": 4} | ({"num_key_value_heads": 2} if family.shares_keys else {})


def write_teacher(folder: Path, name: str, *, labels: bool = False, **changes: Any) -> Path:
    family = family_of(name)
    own = {"n_head": 4} if name == "gpt2" else heads_of(family)
    return write_model(folder, name, labels=LABELS if labels else None, **{**own, **EPS, **changes})


def known_widths(folder: Path) -> Widths:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = read_model_facts(folder)
    return widths_of(facts.parameters.maps[0], config, facts.family)


def kept_widths(before: Widths, family: Family, kinds: tuple[str, ...]) -> Widths:
    """Without those of :data:`LEFT_OUT`; a head of keys and values goes with all that read it."""
    changes = {kind: before.number(kind) - len(LEFT_OUT[kind]) for kind in kinds if kind in (HIDDEN, INNER)}
    if HEADS in kinds:
        changes |= {HEADS: 2, KEY_VALUE_HEADS: 1} if family.shares_keys else {HEADS: 3, KEY_VALUE_HEADS: 3}
    return replace(before, **changes)


def unused(before: Widths, family: Family, kind: str) -> tuple[int, ...]:
    if kind in (HEADS, KEY_VALUE_HEADS) and family.shares_keys:
        return {HEADS: (2, 3), KEY_VALUE_HEADS: (1,)}[kind]
    return LEFT_OUT[HEADS if kind == KEY_VALUE_HEADS else kind]


def leave_unused(folder: Path, kinds: tuple[str, ...]) -> None:
    """Let the teacher have zeros for units that are left out, and kept channels have no mean where a norm takes it."""
    facts, before = read_model_facts(folder), known_widths(folder)
    family, weights = facts.family, load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        for axis, of_axis in enumerate(axes_of(name, tuple(weight.shape), family)):
            start = 0
            for kind in of_axis:
                width = before.width(kind)
                for unit in unused(before, family, kind) if kind in kinds else ():
                    weight.narrow(axis, start + unit * width, width).zero_()
                start += before.number(kind) * width
            if HIDDEN in kinds and of_axis == (HIDDEN,) and has_mean(name, axis, weight, family):
                without_mean(weight, axis, before, family)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def has_mean(name: str, axis: int, weight: Tensor, family: Family) -> bool:
    """Whether what a parameter puts out, or adds, is a state or a part of one from which a norm takes its mean."""
    if "rotary" in family.positions:
        return False  # these norms divide by the root of the mean square alone
    if family.block_number(name) is None:
        is_table = "embeddings." in name and "Norm" not in name
        return is_table or "wte" in name or "wpe" in name or name.endswith("LayerNorm.bias")
    module = family.name_in_block(name).rpartition(".")[0]
    if module in family.norms_of_blocks:
        return name.endswith(".bias") and family.final_norm_path is None  # what a norm puts out is the state
    return weight.dim() == 1 or axis == (1 if family.maps_are_transposed else 0)


def without_mean(weight: Tensor, axis: int, before: Widths, family: Family) -> None:
    kept = [unit for unit in range(before.hidden) if unit not in unused(before, family, HIDDEN)]
    part = weight.index_select(axis, torch.tensor(kept))
    weight.index_copy_(axis, torch.tensor(kept), part - part.mean(axis, keepdim=True))


def sums_of(model: PreTrainedModel, family: Family, before: Widths) -> tuple[dict[Any, list[float]], int]:
    scores = UnitScores(model, family, before)
    tapped = TappedModel(model, family)
    with torch.no_grad(), scores.listening(MASK.bool()):
        tapped({"input_ids": IDS, "attention_mask": MASK}, lambda *_: None)
    return {key: one.tolist() for key, one in scores.sums.items()}, int(MASK.sum())


def narrow(folder: Path, auto: Any, after: Widths, blocks: list[int], student: Path) -> KeptUnits:
    """Cut a student in width and depth by what its teacher does with the ids here."""
    facts, before = read_model_facts(folder), known_widths(folder)
    sums, count = sums_of(auto.from_pretrained(folder).eval(), facts.family, before)
    units = choose_units(sums, before, after, blocks=blocks, num_tokens=count)
    cut(folder, student, blocks=blocks, family=facts.family, origins=Origins(folder, None), units=units)
    return units


def logits_of(folder: Path, auto: Any) -> Tensor:
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    with torch.no_grad():
        logits: Tensor = model.eval()(IDS, attention_mask=MASK).logits
    return logits[MASK.bool()] if logits.shape[:2] == IDS.shape else logits


def kinds_of(family: Family) -> tuple[str, ...]:
    return tuple(kind for kind in (HIDDEN, INNER, HEADS, KEY_VALUE_HEADS) if kind not in family.fixed_widths)


@pytest.mark.parametrize(("name", "tied"), [*((name, False) for name in DECODERS), ("llama", True), ("gpt2", True)])
def test_a_decoder_is_cut_to_the_units_it_uses(tmp_path: Path, name: str, *, tied: bool) -> None:
    assert_is_twin(tmp_path, name, AutoModelForCausalLM, tie_word_embeddings=tied)


@pytest.mark.parametrize("name", [name for name in NARROW if name not in DECODERS])
def test_an_encoder_is_cut_to_the_units_it_uses(tmp_path: Path, name: str) -> None:
    assert_is_twin(tmp_path, name, AutoModelForSequenceClassification, labels=True)


def assert_is_twin(folder: Path, name: str, auto: Any, **changes: Any) -> None:
    """The student has the teacher's logits, and the units that do something."""
    teacher = write_teacher(folder / "teacher", name, **changes)
    family, before = family_of(name), known_widths(teacher)
    kinds = kinds_of(family)
    with_random_vectors(teacher)
    leave_unused(teacher, kinds)
    after = kept_widths(before, family, kinds)
    units = narrow(teacher, auto, after, [0, 1, 2, 3], folder / "student")
    assert read_model_facts(folder / "student").parameters == planned(teacher, after).parameters
    for kind in kinds:
        left_out = unused(before, family, kind)
        for block in range(4):
            assert [*units.of(kind, block)] == [one for one in range(before.number(kind)) if one not in left_out]
    assert known_widths(folder / "student") == after
    of_teacher, of_student = (logits_of(one, auto) for one in (teacher, folder / "student"))
    torch.testing.assert_close(of_student, of_teacher, rtol=2e-6, atol=2e-6)
    assert of_teacher.std() > 1e-3


def planned(teacher: Path, after: Widths) -> ModelFacts:
    """What a plan says of a model of these widths."""
    family = family_of_config(teacher)
    keys = {
        key: after.number(kind)
        for key, kind in KIND_OF_KEY.items()
        if kind not in family.fixed_widths and (family.shares_keys or kind != KEY_VALUE_HEADS)
    }
    return narrow_facts(keys, read_model_facts(teacher), teacher)


def with_random_vectors(folder: Path) -> None:
    """Biases and norms that are not those of a model that has yet to learn."""
    family, weights = family_of_config(folder), load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        # where what a norm puts out is the state itself, one number times a centred state is centred
        if weight.dim() == 1 and (name.endswith(".bias") or family.final_norm_path is not None):
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def family_of_config(folder: Path) -> Family:
    return family_of(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_plain_sums_in_fp64(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path, "llama", blocks=2)
    with_random_vectors(teacher)
    family, before = family_of("llama"), known_widths(teacher)
    sums, _ = sums_of(AutoModelForCausalLM.from_pretrained(teacher).eval(), family, before)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64).eval()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, given, put_out, name=name: seen.update({name: (given[0], put_out)}) if given else None
        )
    with torch.no_grad():
        model(IDS, attention_mask=MASK, use_cache=False)
    kept = MASK.bool()
    assert {*sums} == {
        *((kind, (block, name)) for kind in (HIDDEN, "shares") for block in (0, 1) for name in family.norms_of_blocks),
        *((INNER, (block, "mlp.down_proj")) for block in (0, 1)),
        *((HEADS, (block, "self_attn.o_proj")) for block in (0, 1)),
        (HIDDEN, (None, "model.norm")),
        ("shares", (None, "model.norm")),
    }
    for (kind, (block, name)), found in sums.items():
        given, put_out = seen[name if block is None else f"model.layers.{block}.{name}"]
        plain = {
            HIDDEN: lambda g, p: p[kept].abs().sum(0),
            INNER: lambda g, p: g[kept].abs().sum(0),
            HEADS: lambda g, p: torch.stack(
                [part.square().sum(1).sqrt().sum() for part in g[kept].split(before.head_dim, dim=1)]
            ),
            "shares": lambda g, p: (g[kept].square() / g[kept].square().sum(1, keepdim=True)).sum(0),
        }[kind](given, put_out)
        assert found == pytest.approx(plain.tolist(), rel=1e-5)


def test_padding_moves_no_score(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path, "bert", blocks=1, labels=True)
    family, before = family_of("bert"), known_widths(teacher)
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    whole, _ = sums_of(model, family, before)
    scores, tapped = UnitScores(model, family, before), TappedModel(model, family)
    for ids in (IDS[:1], IDS[1:, :4]):
        with torch.no_grad(), scores.listening(torch.ones_like(ids).bool()):
            tapped({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, lambda *_: None)
    for key, one in scores.sums.items():
        assert one.tolist() == pytest.approx(whole[key], rel=1e-5), key


def test_some_heads_of_each_group_are_kept(tmp_path: Path) -> None:
    """Those that nothing reads are left out: of each head of keys and values, one that reads it."""
    teacher = write_teacher(tmp_path / "teacher", "qwen2")
    with_random_vectors(teacher)
    before, family = known_widths(teacher), family_of("qwen2")
    weights, width = load_file(teacher / "model.safetensors"), before.head_dim
    kept = {block: ([0, 2], [1, 3], [0, 3], [1, 2])[block] for block in range(4)}
    for block, heads in kept.items():
        for head in {*range(4)} - {*heads}:
            weights[f"model.layers.{block}.self_attn.o_proj.weight"][:, width * head : width * (head + 1)] = 0
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    every = {INNER: range(before.inner), KEY_VALUE_HEADS: [0, 1]}
    units = KeptUnits(
        before,
        replace(before, heads=2),
        range(before.hidden),
        {block: {**every, HEADS: heads} for block, heads in kept.items()},
    )
    cut(teacher, tmp_path / "student", blocks=[0, 1, 2, 3], family=family, origins=Origins(teacher, None), units=units)
    of_teacher, of_student = (logits_of(one, AutoModelForCausalLM) for one in (teacher, tmp_path / "student"))
    torch.testing.assert_close(of_student, of_teacher, rtol=2e-6, atol=2e-6)


def test_blocks_and_their_units_are_cut_together(tmp_path: Path) -> None:
    """What is kept of a block is chosen by what that block does, whatever its number in the student."""
    teacher = write_teacher(tmp_path / "teacher", "gpt2")
    before = known_widths(teacher)
    units = narrow(teacher, AutoModelForCausalLM, replace(before, inner=7), [1, 3], tmp_path / "student")
    assert {*units.of_blocks} == {1, 3}
    of_teacher, of_student = (load_file(one / "model.safetensors") for one in (teacher, tmp_path / "student"))
    for new, old in enumerate([1, 3]):
        wide = of_teacher[f"transformer.h.{old}.mlp.c_fc.weight"]
        own = of_student[f"transformer.h.{new}.mlp.c_fc.weight"]
        assert torch.equal(own, wide[:, list(units.of(INNER, old))])


def test_a_bare_body_is_cut_in_width(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", "bert")
    before = known_widths(teacher)
    after = replace(before, hidden=8, heads=2, key_value_heads=2, inner=9)
    narrow(teacher, AutoModelForSequenceClassification, after, [0, 3], tmp_path / "student")  # with a head that is new
    model, report = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert (model.config.hidden_size, model.config.intermediate_size, model.config.num_attention_heads) == (8, 9, 2)


def test_matrices_of_another_size_than_the_configs_are_refused(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", "llama")
    weights = load_file(teacher / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    weights[name] = weights[name][:30].clone()
    before = known_widths(teacher)
    units = KeptUnits(before, before, range(16), {2: {INNER: range(32)}})
    with pytest.raises(CheckpointError, match=rf"{name} has 30 entries along axis 0, and not 32 \(inner\), as the"):
        narrowed(name, weights[name], units, family_of("llama"))


def test_widths_that_the_config_does_not_come_to_are_refused(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    shapes = {"model.layers.0.mlp.up_proj.weight": (5, 8)}
    with pytest.raises(CheckpointError, match=r"up_proj.weight would be \[5, 8\] in the student, where this llama has"):
        refuse_other_widths({**config, "num_hidden_layers": 1, "num_attention_heads": 2}, shapes, tmp_path)
