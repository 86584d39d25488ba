"""Healing against brute force: blocks solved one by one from whole passes of plain transformers models, in fp64."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pytorch_utils import Conv1D

from ted_ds.assembly.calibration import Calibration, CalibrationBatch
from ted_ds.assembly.healing import Healed, Healer
from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.errors import NumericsError
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.families import FAMILY_OF, family_of
from ted_ds.models.output_maps import output_map_of
from ted_ds.models.taps import TappedModel
from ted_ds.runtime.frozen import FrozenModel
from tests.dist import run_ranks
from tests.tiny import ENCODERS, VOCAB_SIZE, write_model

HEALABLE = tuple(name for name, family in FAMILY_OF.items() if "heal" not in family.refused)
KEPT, TARGETS = [0, 2], {1: 2, 2: 4}
"""Blocks of four, and the teacher's layer that each is brought to: before the next one, and the last."""
STRENGTHS = [0.3, 0.01, 0.001]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("granite", {}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("opt", {"do_layer_norm_before": False}),
    ("bert", {}),
    ("mpnet", {}),
    ("modernbert", {}),
]
"""Each way in which a block may come to its output; all families are healed in the test behind."""


def load(folder: Path, family: str) -> Any:
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float64).eval()


def write_pair(folder: Path, family: str, **changes: Any) -> tuple[Path, Path]:
    architecture = "MaskedLM" if family in ENCODERS else "CausalLM"
    teacher = write_model(folder / "teacher", family, architecture=architecture, **changes)
    student = folder / "student"
    cut(teacher, student, blocks=KEPT, family=family_of(family), origins=Origins(teacher, None))
    return teacher, student


def rows(lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def calibration(fitted: list[list[int]], heldout: list[list[int]]) -> Calibration:
    """Microbatches of three rows of uneven length, some of one part and some of both."""
    given = [(ids, True) for ids in fitted] + [(ids, False) for ids in heldout]
    collate = Collator(0, "tokens")
    batches = []
    for start in range(0, len(given), 3):
        some = given[start : start + 3]
        batch = collate([Sample(ids) for ids, _ in some])
        is_fitted = torch.tensor([one for _, one in some])
        batches.append(CalibrationBatch(batch, is_fitted, ~is_fitted))
    return Calibration(tuple(batches), sum(map(len, fitted)), sum(map(len, heldout)))


def healer(world: Any, teacher: Any, student: Any, family: str, data: Calibration, strengths: list[float]) -> Healer:
    frozen = [
        FrozenModel(TappedModel(model, family_of(family)), device=torch.device("cpu"), engine_config=None)
        for model in (teacher, student)
    ]
    build: Any = SimpleNamespace(world=world, stop_if_asked=lambda: None)
    return Healer(build, *frozen, data, targets=TARGETS, strengths=strengths)


class Heard:
    """What a module took and put out, of each row."""

    def __init__(self, module: Any) -> None:
        self.calls: list[tuple[Any, Any]] = []
        module.register_forward_hook(lambda _, inputs, output: self.calls.append((inputs[0], output)))

    def inputs(self) -> Any:
        return torch.cat([one.reshape(-1, one.shape[-1]) for one, _ in self.calls])

    def outputs(self) -> Any:
        whole = [one[0] if isinstance(one, tuple) else one for _, one in self.calls]
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in whole])


def read(model: Any, texts: list[list[int]], *modules: Any) -> list[Heard]:
    """A whole pass of a plain model over each text by itself."""
    heard = [Heard(module) for module in modules]
    family = FAMILY_OF[model.config.model_type]
    more = {"use_cache": False} if family.language_model == "CausalLM" else {}
    with torch.no_grad():
        for ids in texts:
            model(input_ids=torch.tensor([ids]), **more)
    for module in modules:
        module._forward_hooks.clear()
    return heard


def solved(x: Any, y: Any, w: Any, start: Any, strength: float, *, with_bias: bool) -> Any:
    """The ridge regression as a plain least-squares problem over all tokens."""
    held_back = torch.full((x.shape[1],), strength, dtype=torch.float64)
    width = x.shape[1] - with_bias
    scale = (w[:, None] * x[:, :width].square()).sum() / width
    if with_bias:
        held_back[-1] = 0
    a = torch.cat([w.sqrt()[:, None] * x, torch.diag((held_back * scale).sqrt())])
    b = torch.cat([w.sqrt()[:, None] * (y - x @ start.T), torch.zeros(x.shape[1], len(start), dtype=torch.float64)])
    return start + torch.linalg.lstsq(a, b, driver="gelsd").solution.T


def by_brute_force(teacher: Any, student: Any, family: str, fitted: Any, heldout: Any) -> list[tuple[float, float]]:
    """Heal a plain student in place; each block's error on held-out texts, before and after."""
    facts = family_of(family)
    config = teacher.config.to_dict()
    factor, norm_path = facts.output_factor(config), facts.norm_behind(config)
    blocks, own = (model.get_submodule(facts.blocks_path) for model in (teacher, student))
    errors = []
    for number, layer in enumerate(TARGETS.values()):
        partner, block = blocks[layer - 1], own[number]
        module = block.get_submodule(facts.output_map)
        with_bias = module.bias is not None
        weight = module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()
        start = torch.cat([weight, module.bias.detach()[:, None]], 1) if with_bias else weight.clone()
        sums = []
        for texts in (fitted, heldout):
            norms = [] if norm_path is None else [partner.get_submodule(norm_path)]
            theirs = read(teacher, texts, partner, *norms)
            norms = [] if norm_path is None else [block.get_submodule(norm_path)]
            ours = read(student, texts, block, module, *norms)
            goal = theirs[0].outputs() if norm_path is None else theirs[1].inputs()
            got = ours[0].outputs() if norm_path is None else ours[2].inputs()
            x, rest = ours[1].inputs(), got - factor * ours[1].outputs()
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if with_bias else x
            state = theirs[0].outputs()
            before = relative(ours[0].outputs(), state)
            sums.append((x, (goal - rest) / factor, 1 / goal.square().mean(1), before, state))
        (x, y, w, *_), (x_out, y_out, w_out, before, state) = sums

        def judged(matrix: Any, x: Any = x_out, y: Any = y_out, w: Any = w_out) -> float:
            return float((w[:, None] * (x @ matrix.T - y).square()).sum() / (w[:, None] * y.square()).sum())

        tried = [solved(x, y, w, start, strength, with_bias=with_bias) for strength in STRENGTHS]
        best = min([*tried, start], key=judged)
        with torch.no_grad():
            weight = best[:, :-1] if with_bias else best
            module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)
            if with_bias:
                module.bias.copy_(best[:, -1])
            if norm_path is not None:
                block.get_submodule(norm_path).load_state_dict(partner.get_submodule(norm_path).state_dict())
        errors.append((before, relative(read(student, heldout, block)[0].outputs(), state)))
    return errors


def relative(outputs: Any, states: Any) -> float:
    return float(((outputs - states).square().sum(1) / states.square().sum(1)).mean())


def compare(world: Any, folder: Path, cases: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    found = {}
    for index, (family, changes) in enumerate(cases):
        teacher, student = write_pair(folder / f"{index}", family, **changes)
        fitted, heldout = rows([41, 3, 50, 17, 29, 5, 58, 44, 60]), rows([33, 8, 47, 21], seed=1)
        plain = load(student, family)
        expected = by_brute_force(load(teacher, family), plain, family, fitted, heldout)
        own = load(student, family)
        healing = healer(world, load(teacher, family), own, family, calibration(fitted, heldout), STRENGTHS)
        healed = [healing.heal(number) for number in range(len(KEPT))]
        errors = [(one.error_before, one.error_after) for one in healed if one is not None]
        ours, theirs = own.state_dict(), plain.state_dict()
        difference = max(
            float((ours[name] - theirs[name]).abs().max() / (theirs[name].abs().max() + 1e-9)) for name in theirs
        )
        found[f"{family} {changes}"] = (errors, expected, difference)
    return found


def test_a_student_is_healed_as_by_brute_force(tmp_path):
    (found,) = run_ranks(compare, 1, tmp_path, CASES)
    for case, (errors, expected, difference) in found.items():
        # fp64 but for the weights of tokens, which are of fp32: 8e-8 was seen
        assert difference < 1e-6, case
        assert [*map(pytest.approx, expected)] == errors, case
        assert any(after < 0.98 * before for before, after in errors), case
    assert len(found) == len(CASES)


def spoil(model: Any, family: str, scale: float) -> None:
    torch.manual_seed(3)
    for number in range(len(KEPT)):
        own = output_map_of(model, family_of(family), number)
        assert own is not None
        with torch.no_grad():
            for parameter in own.named_in(model).values():
                parameter.add_(scale * torch.randn_like(parameter))


def recover(world: Any, folder: Path) -> dict[str, Any]:
    found = {}
    for family in HEALABLE:
        teacher = write_model(
            folder / family, family, blocks=2, architecture="MaskedLM" if family in ENCODERS else "CausalLM"
        )
        own, right = load(teacher, family), load(teacher, family)
        spoil(own, family, 0.3)
        data = calibration(rows([20] * 8), rows([15] * 3, seed=1))
        frozen = healer(world, right, own, family, data, [0.0])
        frozen._targets = {1: 1, 2: 2}
        healed = [frozen.heal(number) for number in range(2)]
        theirs = right.state_dict()
        worst = max(float((weight - theirs[name]).abs().max()) for name, weight in own.state_dict().items())
        found[family] = ([None if one is None else (one.error_before, one.error_after) for one in healed], worst)
    return found


def test_what_linear_maps_lost_is_recovered(tmp_path):
    """A student that differs from its teacher by its output maps alone, and the norms behind, becomes its teacher."""
    (found,) = run_ranks(recover, 1, tmp_path)
    assert found.keys() == {*HEALABLE}
    for family, (errors, worst) in found.items():
        for before, after in errors:
            assert before > 1e-3, family
            assert after < 1e-12, family
        assert worst < 1e-5, family


def shift(world: Any, folder: Path) -> list[float]:
    """Dropped blocks that only add a vector."""
    teacher, _ = write_pair(folder, "gpt2")
    whole = load(teacher, "gpt2")
    with torch.no_grad():
        for number in (1, 3):
            block = whole.transformer.h[number]
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.normal_()
    student = load(folder / "student", "gpt2")
    healing = healer(world, whole, student, "gpt2", calibration(rows([20] * 8), rows([15] * 3, seed=1)), [1e-12])
    return [error for one in map(healing.heal, range(2)) if one for error in (one.error_before, one.error_after)]


def test_blocks_that_add_the_same_to_all_tokens_are_made_up_for(tmp_path):
    ((first, after_first, second, after_second),) = run_ranks(shift, 1, tmp_path)
    assert min(first, second) > 0.1
    assert max(after_first, after_second) < 1e-15


def unusual(world: Any, folder: Path) -> dict[str, Any]:
    teacher, student = write_pair(folder, "llama")
    data = calibration(rows([12] * 6), rows([9] * 2, seed=1))
    found: dict[str, Any] = {}
    same = healer(world, load(teacher, "llama"), load(teacher, "llama"), "llama", data, STRENGTHS)
    same._targets = {1: 1}
    before = same._student.model.tapped.model.state_dict()
    before = {name: weight.clone() for name, weight in before.items()}
    found["same"] = [same.heal(0), same.heal(1)]
    after = same._student.model.tapped.model.state_dict()
    found["unchanged"] = all(torch.equal(before[name], after[name]) for name in before)
    for side, layer in (("teacher", 2), ("student", 0)):
        models = {"teacher": load(teacher, "llama"), "student": load(student, "llama")}
        with torch.no_grad():
            models[side].model.layers[layer].mlp.down_proj.weight[0, 0] = float("nan")
        one = healer(world, *models.values(), "llama", data, STRENGTHS)
        try:
            found[side] = [one.heal(0), one.heal(1)]
        except NumericsError as error:
            found[side] = str(error)
    return found


def special(world: Any, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    teacher, student = write_pair(folder / "conv", "deberta-v2", conv_kernel_size=3, conv_act="gelu")
    data = calibration(rows([40] * 6), rows([30] * 3, seed=1))
    own = load(student, "deberta-v2")
    before = {name: weight.clone() for name, weight in own.state_dict().items()}
    one = healer(world, load(teacher, "deberta-v2"), own, "deberta-v2", data, STRENGTHS)
    found["behind a convolution"] = [one.heal(0), one.heal(1)]
    found["changed"] = [name for name, weight in own.state_dict().items() if not torch.equal(weight, before[name])]
    teacher, student = write_pair(folder / "few", "llama")
    few = rows([12])
    models = load(teacher, "llama"), load(student, "llama")
    found["few"] = healer(world, *models, "llama", calibration(few, few), [0.0]).heal(0)
    models = load(teacher, "llama"), load(student, "llama")
    more = calibration(rows([60] * 12), rows([40] * 3, seed=1))
    one = healer(world, *models, "llama", more, STRENGTHS)
    one._targets = {1: 4, 2: 3}
    found["down again"] = [one.heal(0), one.heal(1)]
    return found


def test_blocks_with_something_behind_them_few_tokens_and_targets_in_any_order(tmp_path):
    (found,) = run_ranks(special, 1, tmp_path)
    first, second = found["behind a convolution"]
    assert first is None
    assert second.error_after < second.error_before
    assert all(name.startswith("deberta.encoder.layer.1.output.") for name in found["changed"])
    assert len(found["changed"]) == 2, "norms of a fresh model are alike"
    few = found["few"]
    assert few.was_raised
    assert (few.num_tokens, few.num_unknowns) == (12, 32)
    assert 0 < few.strength < 1e-9
    assert few.error_after < 1e-12, "12 equations for 32 unknowns, judged by the same tokens"
    assert [one.teacher_layer for one in found["down again"]] == [4, 3]
    assert all(one.error_after <= one.error_before for one in found["down again"])
    assert any(one.error_after < one.error_before for one in found["down again"])


def test_what_needs_no_healing_stays_and_what_is_not_finite_is_named(tmp_path):
    (found,) = run_ranks(unusual, 1, tmp_path)
    first, second = found["same"]
    assert (first.error_before, first.error_after, first.strength) == (0, 0, None)
    assert second is None
    assert found["unchanged"]
    for side, layer in (("teacher", 4), ("student", 1)):
        wanted = f"student.heal: the {side}'s layer {layer} has states on the calibration data that are not finite"
        assert re.match(wanted, found[side]), found[side]


def test_a_block_is_reported_in_a_line():
    solved = Healed(3, 11, 0.83, 0.412, 0.003, False, 12345.0, 32768, 1536)
    assert (
        str(solved)
        == "block 3 to the teacher's layer 11: relative error 0.83 -> 0.412, strength 0.003, condition 1.2e+04"
    )
    assert "strength 1e-11, raised, as the sums could not be solved at less" in str(
        Healed(3, 11, 0.83, 0.412, 1e-11, True, 1e16, 100, 1536)
    )
    assert "its map stays" in str(Healed(3, 11, 0.2, 0.2, None, False, None, 100, 1536))
    assert str(Healed(3, 4, 0.0, 0.0, None, False, None, 100, 1536)).endswith("relative error 0: it stays")
