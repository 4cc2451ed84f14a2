"""Prunable sets, exact counts and mask questions, by literals and closed forms."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from tombola.errors import ConfigError, TicketError
from tombola.sparsity.masks import (
    Masks,
    as_fraction,
    collapsed,
    count,
    erk,
    erk_budgets,
    kept_at,
    kept_count,
    nested,
    ones,
    prunable,
    shuffle,
    sparsity,
    sparsity_all,
)
from tombola.sparsity.names import load_plain_state, plain_parameters, plain_state


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


# --- names ---------------------------------------------------------------------------------------


def test_plain_state_is_the_state_dict_of_a_bare_network_and_shares_its_memory() -> None:
    module = net()
    state = plain_state(module)
    assert list(state) == list(module.state_dict())
    state["0.weight"].zero_()
    assert not module[0].weight.any()
    assert list(plain_parameters(module)) == [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(torch.optim.swa_utils.AveragedModel(m)),
    ],
)
def test_wrappers_add_nothing_to_the_names(wrap: object) -> None:
    assert callable(wrap)
    assert list(plain_state(wrap(net()))) == list(net().state_dict())


def test_wrapped_part_of_a_network_has_the_metric_words() -> None:
    outer = nn.Sequential(torch.compile(net(), backend="eager"), nn.Linear(3, 1))
    assert "0.0.weight" in plain_state(outer)


def test_a_module_attribute_beside_others_keeps_its_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2, bias=False)
            self.head = nn.Linear(2, 2, bias=False)

    assert list(plain_state(Own())) == ["module.weight", "head.weight"]


@pytest.mark.parametrize("norm", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_names(norm: object) -> None:
    assert callable(norm)
    module = nn.Sequential(norm(nn.Conv2d(1, 4, 3)), nn.ReLU())
    assert set(plain_state(module)) == {"0.weight", "0.bias", "0.weight_u", "0.weight_v"}
    assert set(plain_parameters(module)) == {"0.weight", "0.bias"}
    raw = dict(module.named_parameters())
    leaf = plain_parameters(module)["0.weight"]
    assert any(leaf is parameter for parameter in raw.values())


def test_spectral_norm_state_moves_between_the_two_implementations() -> None:
    old, new = nn.Linear(4, 3), nn.Linear(4, 3)
    spectral_norm(old)
    parametrizations.spectral_norm(new)
    load_plain_state(new, plain_state(old))
    images = torch.randn(5, 4)
    old.eval()
    new.eval()
    assert torch.allclose(old(images), new(images), atol=1e-6)


def test_orig_is_kept_where_no_hook_made_it() -> None:
    module = nn.Module()
    module.weight_orig = nn.Parameter(torch.zeros(2))
    assert list(plain_state(module)) == ["weight_orig"]


def test_non_persistent_buffers_are_left_out_and_shared_tensors_come_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    module.register_buffer("kept", torch.zeros(1))
    assert list(plain_state(module)) == ["kept", "0.weight", "0.bias", "1.bias"]


def test_load_copies_in_place_with_conversion() -> None:
    source, target = net(), net().to(torch.bfloat16)
    leaf = target[0].weight
    load_plain_state(target, plain_state(source))
    assert target[0].weight is leaf
    assert torch.equal(leaf, source[0].weight.to(torch.bfloat16))


def test_load_refuses_what_does_not_fit_and_writes_nothing() -> None:
    module = net()
    before = {name: value.clone() for name, value in plain_state(module).items()}
    state = {name: value + 1 for name, value in before.items()}
    missing = {name: value for name, value in state.items() if name != "5.bias"}
    with pytest.raises(TicketError, match=r"no tensor '5\.bias'"):
        load_plain_state(module, missing)
    with pytest.raises(TicketError, match=r"tensor '6\.weight'"):
        load_plain_state(module, {**state, "6.weight": torch.zeros(1)})
    with pytest.raises(TicketError, match=r"'5\.bias' has shape \(4,\).*shape \(3,\)"):
        load_plain_state(module, {**state, "5.bias": torch.zeros(4)})
    with pytest.raises(TicketError, match=r"'5\.bias' is torch\.int64"):
        load_plain_state(module, {**state, "5.bias": torch.zeros(3, dtype=torch.int64)})
    for name, value in plain_state(module).items():
        assert torch.equal(value, before[name])


# --- prunable ------------------------------------------------------------------------------------


def test_prunable_are_the_layer_weights_in_order() -> None:
    found = prunable({"g": net(), "d": net()})
    expected = ["0.weight", "3.weight", "5.weight"]
    assert list(found) == [f"g.{name}" for name in expected] + [f"d.{name}" for name in expected]


def test_prune_some_networks_and_exclude_ends_and_names() -> None:
    networks = {"g": net(), "d": net()}
    assert list(prunable(networks, ["d"])) == ["d.0.weight", "d.3.weight", "d.5.weight"]
    assert list(prunable(networks, exclude=["first", "last"])) == ["g.3.weight", "d.3.weight"]
    left = list(prunable(networks, ["g"], ["first", "g.3.weight"]))
    assert left == ["g.5.weight"]


@pytest.mark.parametrize("norm", [spectral_norm, parametrizations.spectral_norm])
def test_prunable_is_the_raw_leaf_under_spectral_norm(norm: object) -> None:
    assert callable(norm)
    layer = norm(nn.Conv2d(1, 4, 3))
    found = prunable({"d": nn.Sequential(layer)})
    assert list(found) == ["d.0.weight"]
    assert found["d.0.weight"].is_leaf
    assert any(found["d.0.weight"] is parameter for parameter in layer.parameters())


def test_shared_weights_count_once_under_the_first_name() -> None:
    tied, other = net(), net()
    tied[0].weight = other[0].weight
    found = prunable({"a": tied, "b": other})
    assert "a.0.weight" in found
    assert "b.0.weight" not in found
    assert "b.0.weight" not in prunable({"a": tied, "b": other}, exclude=["a.0.weight"])
    assert "a.0.weight" not in prunable({"a": tied, "b": other}, exclude=["b.0.weight"])


def test_frozen_weights_are_prunable_too() -> None:
    module = net().requires_grad_(False)
    assert len(prunable({"g": module})) == 3


def test_prunable_refusals() -> None:
    networks = {"generator": net(), "bare": nn.Sequential(nn.ReLU())}
    with pytest.raises(ConfigError, match=r"'generater'; did you mean generator"):
        prunable(networks, ["generater"])
    with pytest.raises(ConfigError, match="'bare' has no convolution"):
        prunable(networks, ["bare"])
    with pytest.raises(ConfigError, match=r"generator\.0\.weight"):
        prunable(networks, exclude=["generator.0.weigth"])
    with pytest.raises(ConfigError, match="no weight is left"):
        prunable({"bare": networks["bare"]})
    with pytest.raises(ConfigError, match="no weight is left"):
        prunable({"g": nn.Linear(2, 2)}, exclude=["first"])
    with pytest.raises(ConfigError, match=r"'g\.0\.weight' has no shape yet"):
        prunable({"g": nn.Sequential(nn.LazyLinear(2))})


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "rate", "level", "kept"),
    [
        (1000, "0.2", 0, 1000),
        (1000, "0.2", 1, 800),
        (1000, "0.2", 3, 512),
        (1000, "0.2", 20, 12),  # 11.529...
        (10, "0.25", 1, 8),  # 7.5 rounds up
        (5, "0.5", 1, 3),  # 2.5 rounds up
        (6560448, "0.2", 10, 704423),  # 704422.74...
        (6560448, "0.2", 20, 75637),  # 75636.81...
        (216832, "0.4", 6, 10117),  # 10116.51...
        (45, "0.3", 1, 32),  # 31.5; in floats 31.499...
        (200, "0.15", 2, 145),  # 144.5; in floats 144.499...
        (500, "0.3", 3, 172),  # 171.5; in floats 171.499...
        (3, "0.2", 4, 1),
    ],
)
def test_kept_counts(n: int, rate: str, level: int, kept: int) -> None:
    exact = Fraction(n) * (1 - Fraction(rate)) ** level
    assert kept_count(n, rate, level) == math.floor(exact + Fraction(1, 2)) == kept


def test_rates_of_every_type_mean_their_decimal() -> None:
    assert as_fraction("0.2") == as_fraction(0.2) == as_fraction(Decimal("0.2")) == Fraction(1, 5)
    assert as_fraction(Fraction(1, 3)) == Fraction(1, 3)
    assert as_fraction("2e-1") == Fraction(1, 5)


@pytest.mark.parametrize(
    "rate", ["0", "1", "-0.2", "1.2", "nan", "inf", "abc", "", "20%", None, True, 0, 1, 0.0, [0.2]]
)
def test_rates_outside_are_refused(rate: object) -> None:
    with pytest.raises(ConfigError, match=r"rate got .*between 0 and 1, both excluded"):
        as_fraction(rate)
    with pytest.raises(ConfigError, match="sparsity got"):
        as_fraction(rate, "sparsity")


def test_endless_decimals_and_impossible_fractions_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="at most 20 decimal places"):
        as_fraction("1e-1000000")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        as_fraction(Fraction(3, 2))


def test_a_level_that_leaves_nothing_is_named_with_the_last_that_does() -> None:
    # 10 * 0.5^4 = 0.625 keeps one, 10 * 0.5^5 = 0.3125 none.
    assert kept_count(10, "0.5", 4) == 1
    with pytest.raises(ConfigError, match=r"^level 7 at rate 0\.5 keeps none of 10 .* level 4 is"):
        kept_count(10, "0.5", 7)
    with pytest.raises(ConfigError, match=r"level 5 .* level 4 is the last"):
        kept_count(10, "0.5", 5)
    with pytest.raises(ConfigError, match=r"level 1 .* level 0 is the last"):
        kept_count(10, "0.99", 1)


@pytest.mark.parametrize("level", [-1, 1001, 1.0, True, "3"])
def test_levels_outside_are_refused(level: int) -> None:
    with pytest.raises(ConfigError, match="whole number from 0 to 1000"):
        kept_count(10, "0.2", level)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 prunable weights"):
        kept_count(0, "0.2", 1)
    with pytest.raises(ConfigError, match="0 prunable weights"):
        kept_at(0, "0.2")


@pytest.mark.parametrize(
    ("n", "share", "kept"),
    [(1000, "0.8", 200), (45, "0.3", 32), (5, "0.5", 3), (5, "0.9", 1), (7, "0.99", None)],
)
def test_kept_at_a_sparsity(n: int, share: str, kept: int | None) -> None:
    if kept is None:
        with pytest.raises(ConfigError, match=r"sparsity 0\.99 keeps none of 7"):
            kept_at(n, share)
    else:
        assert kept_at(n, share) == kept


# --- questions about masks -----------------------------------------------------------------------


def literal() -> Masks:
    return {
        "a.w": torch.tensor([[True, False], [False, False]]),
        "a.v": torch.tensor([False, False]),
        "b.w": torch.tensor([True, True]),
    }


def test_count_sparsity_and_collapsed_of_a_literal() -> None:
    assert count(literal()) == (3, 8)
    assert sparsity(literal()) == 0.625
    assert sparsity({}) == 0.0
    assert collapsed(literal()) == ["a.v"]


def test_ones_keep_everything() -> None:
    masks = ones({"a": torch.zeros(2, 3)})
    assert masks["a"].dtype == torch.bool
    assert count(masks) == (6, 6)


def test_sparsity_all_counts_every_parameter_once_and_no_buffer() -> None:
    tied = nn.Linear(2, 2)  # 4 weights, 2 biases
    first = nn.Sequential(tied, nn.BatchNorm1d(2))  # and 2 + 2
    second = nn.Sequential(tied, nn.Linear(2, 1))  # and 2 + 1
    masks = {"first.0.weight": torch.tensor([[True, False], [False, False]])}
    assert sparsity_all({"first": first, "second": second}, masks) == 3 / 13


def test_nested() -> None:
    outer, inner = literal(), literal()
    assert nested(inner, outer)
    inner["b.w"] = torch.tensor([False, True])
    assert nested(inner, outer)
    assert not nested(outer, inner)
    assert not nested({"a.w": outer["a.w"]}, outer)
    assert not nested({**inner, "b.w": torch.ones(3, dtype=torch.bool)}, outer)


def test_shuffle_permutes_within_each_tensor_by_seed_and_name() -> None:
    mask = torch.zeros(8, 25, dtype=torch.bool)
    mask.view(-1)[:60] = True
    masks = {"a": mask, "b": mask.clone()}
    shuffled = shuffle(masks, 5)
    assert all(int(m.sum()) == 60 and m.shape == (8, 25) for m in shuffled.values())
    assert not torch.equal(shuffled["a"], mask)
    assert not torch.equal(shuffled["a"], shuffled["b"])
    assert torch.equal(shuffled["b"], shuffle({"b": mask}, 5)["b"])
    assert not torch.equal(shuffled["a"], shuffle(masks, 6)["a"])
    assert int(mask.view(-1)[:60].sum()) == 60


def test_erk_budgets_by_hand() -> None:
    # Shares 2 + 2 = 4 and 10 + 10 = 20: 12 weights go 2 to 10, whole numbers at once.
    assert erk_budgets({"small": (2, 2), "large": (10, 10)}, 12) == {"small": 2, "large": 10}
    # 30 weights: 5 to 25, but the small layer has 4; the other gets 26.
    assert erk_budgets({"small": (2, 2), "large": (10, 10)}, 30) == {"small": 4, "large": 26}
    # Kernel sizes count in the sum: 4 + 2 + 3 + 3 = 12 against 12 + 6 = 18.
    assert erk_budgets({"conv": (4, 2, 3, 3), "fc": (12, 6)}, 30) == {"conv": 12, "fc": 18}
    # 7 weights over shares 4, 4, 4: 2 1/3 each, the odd one to the earliest.
    assert erk_budgets({"a": (2, 2), "b": (2, 2), "c": (2, 2)}, 7) == {"a": 3, "b": 2, "c": 2}
    # 10 weights over 6, 4, 4: 4 2/7, 2 6/7, 2 6/7: the largest remainders first.
    assert erk_budgets({"a": (3, 3), "b": (2, 2), "c": (2, 2)}, 10) == {"a": 4, "b": 3, "c": 3}


@pytest.mark.parametrize("keep", [1, 2, 57, 400, 1703, 1704])
def test_erk_sums_exactly_and_never_exceeds_a_layer(keep: int) -> None:
    shapes = {"a": (16, 1, 3, 3), "b": (4, 16, 4, 4), "c": (8, 64), "d": (3, 8), "e": (120, 1)}
    masks = erk(shapes, keep, 0)
    assert count(masks) == (keep, 1704 + 120)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == shapes


def test_erk_keeps_everything_and_draws_by_seed() -> None:
    shapes = {"a": (10, 10), "b": (20, 20)}
    assert collapsed({name: ~mask for name, mask in erk(shapes, 500, 0).items()}) == ["a", "b"]
    assert torch.equal(erk(shapes, 50, 1)["b"], erk(shapes, 50, 1)["b"])
    assert not torch.equal(erk(shapes, 50, 1)["b"], erk(shapes, 50, 2)["b"])
    for keep in (0, 501):
        with pytest.raises(ConfigError, match="keep from 1 to 500"):
            erk(shapes, keep, 0)


class Tied(nn.Module):
    """A weight that an embedding holds before the linear layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight


def test_a_tied_weight_is_pruned_under_the_name_that_its_state_has() -> None:
    networks = {"n": Tied()}
    assert list(prunable(networks)) == ["n.embed.weight"] == [f"n.{k}" for k in plain_state(Tied())]
    with pytest.raises(ConfigError, match="no weight is left"):
        prunable(networks, exclude=["n.out.weight"])
