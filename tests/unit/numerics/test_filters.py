"""Filters: their maps, their start, their files, and which token a classifier reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ted_ds.errors import CheckpointError
from ted_ds.models.filter_files import FILE_NAME, load_filters, save_filters
from ted_ds.numerics.filters import Filter, FilterBank, IdentityFilters, PooledClassifier, pool

LAYERS = (1, 3)


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [4, 8, 12])
def test_a_linear_filter_is_one_affine_map(dim: int) -> None:
    one = Filter(8, dim)
    assert [tuple(p.shape) for p in one.parameters()] == [(dim, 8), (dim,)]
    given = states(2, 3, 8)
    weight, bias = one.parameters()
    torch.testing.assert_close(one(given), given @ weight.T + bias)


@pytest.mark.parametrize("dim", [4, 12])
def test_an_mlp_filter_has_a_hidden_layer_of_the_models_width(dim: int) -> None:
    one = Filter(8, dim, kind="mlp")
    assert [tuple(p.shape) for p in one.parameters()] == [(8, 8), (8,), (dim, 8), (dim,)]
    first, first_bias, second, second_bias = one.parameters()
    given = states(2, 3, 8)
    torch.testing.assert_close(one(given), nn.functional.gelu(given @ first.T + first_bias) @ second.T + second_bias)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_normal_initialisation_is_the_references(kind: str) -> None:
    torch.manual_seed(0)
    one = Filter(256, 128, kind=kind)
    for parameter in one.parameters():
        if parameter.dim() == 1:
            assert not parameter.any()
        else:
            # 4 standard errors of a standard deviation and of a mean
            assert abs(parameter.std().item() - 0.02) < 4 * 0.02 / (2 * parameter.numel()) ** 0.5
            assert abs(parameter.mean().item()) < 4 * 0.02 / parameter.numel() ** 0.5


@pytest.mark.parametrize("dim", [4, 8, 12])
def test_identity_initialisation_is_exactly_the_identity_on_what_both_widths_share(dim: int) -> None:
    given = states(2, 3, 8)
    output = Filter(8, dim, initialisation="identity")(given)
    shared = min(8, dim)
    assert torch.equal(output[..., :shared], given[..., :shared])
    assert not output[..., shared:].any()


def test_a_filter_computes_in_its_own_precision() -> None:
    assert Filter(8, 4)(states(1, 2, 8).bfloat16()).dtype == torch.float32
    assert Filter(8, 4).bfloat16()(states(1, 2, 8)).dtype == torch.bfloat16


# --- banks ------------------------------------------------------------------------------------------------------------


def test_a_bank_filters_each_state_with_its_own_filter_in_order() -> None:
    bank = FilterBank(LAYERS, 8, 4)
    given = [states(2, 3, 8, seed=seed) for seed in (0, 1)]
    outputs = bank(given)
    assert len(outputs) == 2
    for one, state, output in zip(bank.filters, given, outputs, strict=True):
        assert torch.equal(output, one(state))
    assert not torch.equal(outputs[0], bank.filters[1](given[0]))


def test_a_layer_that_two_pairs_share_has_two_filters() -> None:
    bank = FilterBank((2, 2), 8, 4)
    assert len({id(parameter) for parameter in bank.parameters()}) == 4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_bank_refuses_another_number_of_states(count: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        FilterBank(LAYERS, 8, 4)([states(1, 2, 8)] * count)


def test_identity_filters_hand_the_states_on() -> None:
    given = [states(1, 2, 8), states(1, 2, 8, seed=1)]
    outputs = IdentityFilters((1, 2))(given)
    assert all(output is state for output, state in zip(outputs, given, strict=True))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, FilterBank]:
    bank = FilterBank(LAYERS, 8, 4)
    save_filters(tmp_path, bank.state_dict(), layers=LAYERS, dim=4, kind="linear")
    return tmp_path, bank


def test_a_bank_comes_back_from_its_file_exactly(saved: tuple[Path, FilterBank]) -> None:
    folder, bank = saved
    loaded = load_filters(folder, layers=LAYERS, hidden_size=8, dim=4, kind="linear")
    assert loaded.layers == LAYERS
    assert loaded.state_dict().keys() == bank.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in bank.state_dict().items())


def test_an_mlp_bank_comes_back_from_its_file(tmp_path: Path) -> None:
    bank = FilterBank(LAYERS, 8, 4, kind="mlp")
    save_filters(tmp_path, bank.state_dict(), layers=LAYERS, dim=4, kind="mlp")
    given = [states(1, 2, 8)] * 2
    loaded = load_filters(tmp_path, layers=LAYERS, hidden_size=8, dim=4, kind="mlp")
    assert all(torch.equal(a, b) for a, b in zip(loaded(given), bank(given), strict=True))


@pytest.mark.parametrize(
    "change", [{"layers": (1, 2)}, {"layers": (3, 1)}, {"layers": (1,)}, {"dim": 8}, {"kind": "mlp"}]
)
def test_filters_made_for_something_else_are_refused(saved: tuple[Path, FilterBank], change: dict) -> None:
    wanted = {"layers": LAYERS, "dim": 4, "kind": "linear", **change}
    with pytest.raises(CheckpointError, match=r"these filters were made for \{'layers': \[1, 3\], 'dim': 4, "):
        load_filters(saved[0], hidden_size=8, **wanted)


def test_filters_of_a_model_of_another_width_are_refused(saved: tuple[Path, FilterBank]) -> None:
    with pytest.raises(CheckpointError, match="its tensors do not fit a model of width 16"):
        load_filters(saved[0], layers=LAYERS, hidden_size=16, dim=4, kind="linear")


def test_filters_with_a_tensor_missing_are_refused(tmp_path: Path) -> None:
    state = FilterBank(LAYERS, 8, 4).state_dict()
    state.popitem()
    save_filters(tmp_path, state, layers=LAYERS, dim=4, kind="linear")
    with pytest.raises(CheckpointError, match="its tensors do not fit"):
        load_filters(tmp_path, layers=LAYERS, hidden_size=8, dim=4, kind="linear")


@pytest.mark.parametrize("kept_bytes", [None, 0, 20, -4])
def test_filters_missing_or_damaged_are_refused_with_what_to_do(
    saved: tuple[Path, FilterBank], kept_bytes: int | None
) -> None:
    file = saved[0] / FILE_NAME
    content = file.read_bytes()
    file.unlink()
    if kept_bytes is not None:
        file.write_bytes(content[:kept_bytes])
    with pytest.raises(CheckpointError, match=r"no filters can be read here \(.*\); run Stage I: ted-ds filters"):
        load_filters(saved[0], layers=LAYERS, hidden_size=8, dim=4, kind="linear")


def test_a_safetensors_file_that_holds_no_filters_is_refused(lm_run: Path, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes((lm_run / "teacher" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="no filters can be read here"):
        load_filters(tmp_path, layers=LAYERS, hidden_size=8, dim=4, kind="linear")


# --- pooling ----------------------------------------------------------------------------------------------------------

MASKS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]])


@pytest.mark.parametrize(("position", "expected"), [("first", [0, 0, 2, 1]), ("last", [3, 1, 3, 1])])
def test_pooling_takes_the_first_or_last_kept_token(position: str, expected: list[int]) -> None:
    features = states(4, 4, 8)
    pooled = pool(features, MASKS, how=position)
    assert torch.equal(pooled, torch.stack([features[row, index] for row, index in enumerate(expected)]))


@pytest.mark.parametrize("position", ["first", "last"])
def test_only_the_pooled_token_receives_gradient(position: str) -> None:
    features = states(4, 4, 8).requires_grad_()
    pool(features, MASKS, how=position).sum().backward()
    assert features.grad is not None
    assert features.grad.any(-1).sum(1).tolist() == [1, 1, 1, 1]
    assert not features.grad[MASKS == 0].any()


def test_a_pooled_classifier_is_dense_gelu_linear() -> None:
    head = PooledClassifier(8, 3)
    given = states(5, 8)
    torch.testing.assert_close(head(given), head.classifier(nn.functional.gelu(head.dense(given))))
    assert head(given).shape == (5, 3)


def test_the_mean_is_over_kept_tokens_only() -> None:
    features = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(features, mask, how="mean").tolist() == [[2.0], [7.0]]
