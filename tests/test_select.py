"""Selection of exactly k, against literals and against a slow stable sort."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tombola.errors import ConfigError
from tombola.sparsity import select
from tombola.sparsity.criteria import magnitude, random_scores
from tombola.sparsity.select import top

INF = math.inf
DENORMAL = 1e-45


def bits(mask: Tensor) -> list[int]:
    return mask.reshape(-1).int().tolist()


def kept(values: list[float], keep: int, dtype: torch.dtype = torch.float32) -> list[int]:
    return bits(top({"a": torch.tensor(values, dtype=dtype)}, keep)["a"])


def slow_top(scores: dict[str, Tensor], keep: int, among: dict[str, Tensor] | None) -> list[int]:
    """The same by a stable Python sort over (score, position)."""
    values = [float(v) for s in scores.values() for v in s.reshape(-1).tolist()]
    allowed = [True] * len(values)
    if among is not None:
        allowed = [bool(v) for name in scores for v in among[name].reshape(-1).tolist()]
    ranked = sorted((i for i in range(len(values)) if allowed[i]), key=lambda i: -values[i])
    chosen = set(ranked[:keep])
    return [int(i in chosen) for i in range(len(values))]


@pytest.mark.parametrize(
    ("values", "keep", "expected"),
    [
        ([0.1, 0.4, 0.2, 0.3], 2, [0, 1, 0, 1]),
        ([0.1, 0.4, 0.2, 0.3], 4, [1, 1, 1, 1]),
        ([0.1, 0.4, 0.2, 0.3], 1, [0, 1, 0, 0]),
        ([2.0, 1.0, 2.0, 1.0, 2.0], 2, [1, 0, 1, 0, 0]),
        ([2.0, 1.0, 2.0, 1.0, 2.0], 4, [1, 1, 1, 0, 1]),
        ([0.0, 0.0, 0.0], 2, [1, 1, 0]),
        ([-0.0, 0.0, -0.0, 0.0], 2, [1, 1, 0, 0]),
        ([0.0, -0.0, -1.0, -0.0], 3, [1, 1, 0, 1]),
        ([0.0, DENORMAL, 0.0, 2 * DENORMAL], 2, [0, 1, 0, 1]),
        ([0.0, -DENORMAL, 0.0, -1.0], 3, [1, 1, 1, 0]),
        ([1.0, INF, 3e38, -INF], 2, [0, 1, 1, 0]),
        ([INF, 1.0, INF, INF], 2, [1, 0, 1, 0]),
        ([-INF, -INF, -1.0], 2, [1, 0, 1]),
        ([-1.0, -2.0, -3.0, -2.0], 2, [1, 1, 0, 0]),
        ([-1.0, 2.0, -3.0, 0.5], 3, [1, 1, 0, 1]),
        ([1.0, 1.0000001, 1.0000002], 2, [0, 1, 1]),
        ([5.0], 1, [1]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_literals(values: list[float], keep: int, expected: list[int], dtype: torch.dtype) -> None:
    assert kept(values, keep, dtype) == expected


def test_ties_over_tensors_go_to_the_earlier_name_then_c_order() -> None:
    scores = {"b": torch.ones(2, 2), "a": torch.ones(3)}
    masks = top(scores, 5)
    assert list(masks) == ["b", "a"]
    assert bits(masks["b"]) == [1, 1, 1, 1]
    assert bits(masks["a"]) == [1, 0, 0]
    assert masks["b"].shape == (2, 2)
    assert masks["b"].dtype == torch.bool


def test_ties_by_c_order_whatever_the_strides() -> None:
    columns = torch.tensor([[1.0, 3.0], [1.0, 1.0], [1.0, 1.0]]).t()  # (2, 3), not contiguous
    assert bits(top({"a": columns}, 3)["a"]) == [1, 1, 0, 1, 0, 0]
    images = torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last)
    assert bits(top({"a": images}, 5)["a"]) == [1] * 5 + [0] * 19


def test_only_survivors_compete() -> None:
    scores = {"a": torch.tensor([9.0, 1.0, 2.0]), "b": torch.tensor([8.0, 2.0])}
    among = {"a": torch.tensor([False, True, True]), "b": torch.tensor([False, True])}
    masks = top(scores, 2, among)
    assert bits(masks["a"]) == [0, 0, 1]
    assert bits(masks["b"]) == [0, 1]


def test_pruned_zeros_do_not_win_ties_against_surviving_zeros() -> None:
    among = {"a": torch.tensor([False, True, False, True])}
    assert bits(top({"a": torch.zeros(4)}, 1, among)["a"]) == [0, 1, 0, 0]


def test_nan_among_survivors_is_refused_and_elsewhere_ignored() -> None:
    scores = {"a": torch.ones(2), "layer.weight": torch.tensor([math.nan, 1.0])}
    with pytest.raises(ConfigError, match=r"'layer\.weight' are NaN"):
        top(scores, 1)
    among = {"a": torch.ones(2, dtype=torch.bool), "layer.weight": torch.tensor([False, True])}
    assert bits(top(scores, 3, among)["layer.weight"]) == [0, 1]


def test_infinities_of_both_signs_are_not_nan() -> None:
    assert kept([INF, -INF, 0.0], 1) == [1, 0, 0]


@pytest.mark.parametrize("keep", [0, -1, 4])
def test_impossible_counts(keep: int) -> None:
    with pytest.raises(ConfigError, match="keep from 1 to 3"):
        kept([1.0, 2.0, 3.0], keep)
    among = {"a": torch.tensor([True, True, True, False])}
    with pytest.raises(ConfigError, match="keep from 1 to 3"):
        top({"a": torch.ones(4)}, keep, among)


def test_criteria_that_score_other_tensors_are_refused() -> None:
    among = {"a": torch.ones(2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ConfigError, match="'b'"):
        top({"a": torch.ones(2)}, 1, among)
    with pytest.raises(ConfigError, match=r"'b' have shape \(3,\)"):
        top({"a": torch.ones(2), "b": torch.ones(3)}, 1, among)
    with pytest.raises(ConfigError, match="complex64"):
        top({"a": torch.ones(2, dtype=torch.complex64)}, 1)


def test_narrow_and_integer_dtypes_are_ranked_exactly() -> None:
    assert kept([1.0, 3.0, 2.0], 2, torch.bfloat16) == [0, 1, 1]
    assert kept([1.0, 3.0, 2.0], 2, torch.float16) == [0, 1, 1]
    assert kept([1, 2**31, 2**31 + 1], 1, torch.int64) == [0, 0, 1]
    mixed = {
        "a": torch.tensor([1.0], dtype=torch.bfloat16),
        "b": torch.tensor([1 + 1e-12]).double(),
    }
    mixed["b"] = torch.tensor([1 + 1e-12], dtype=torch.float64)
    assert bits(top(mixed, 1)["b"]) == [1]


def test_scalars_and_empty_tensors() -> None:
    scores = {"a": torch.tensor(2.0), "none": torch.zeros(0, 3), "b": torch.tensor([1.0, 3.0])}
    masks = top(scores, 2)
    assert masks["a"].shape == ()
    assert bool(masks["a"])
    assert masks["none"].shape == (0, 3)
    assert bits(masks["b"]) == [0, 1]


FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0, INF, -INF, DENORMAL, -DENORMAL, 1e-40])
ANY = st.floats(width=32, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), heavy_ties=st.booleans(), masked=st.booleans(), wide=st.booleans())
def test_equals_a_stable_sort(
    data: st.DataObject, heavy_ties: bool, masked: bool, wide: bool
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    dtype = torch.float64 if wide else torch.float32
    value = FEW if heavy_ties else ANY
    scores = {
        f"t{i}": torch.tensor(data.draw(st.lists(value, min_size=n, max_size=n)), dtype=dtype)
        for i, n in enumerate(sizes)
    }
    among = None
    pool = sum(sizes)
    if masked:
        flags = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in sizes]
        flags[0][0] = True
        among = {f"t{i}": torch.tensor(flag) for i, flag in enumerate(flags)}
        pool = sum(map(sum, flags))
    keep = data.draw(st.integers(1, pool))
    masks = top(scores, keep, among)
    chosen = [bit for mask in masks.values() for bit in bits(mask)]
    assert chosen == slow_top(scores, keep, among)
    assert sum(chosen) == keep


def test_many_weights_in_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_PIECE", 1000)
    generator = torch.Generator().manual_seed(0)
    scores = {f"t{i}": torch.randn(3000 + i, generator=generator) for i in range(4)}
    flat = torch.cat(list(scores.values()))
    for keep in (1, 777, 6000, len(flat)):
        masks = top(scores, keep)
        threshold = flat.sort(descending=True).values[keep - 1]
        assert torch.equal(torch.cat(list(masks.values())), flat >= threshold)


def test_a_chain_of_rounds_nests_and_keeps_the_exact_counts() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = None
    for keep in (80, 64, 51, 41, 1):
        weights = {"a": torch.randn(70, generator=generator).round(decimals=1)}
        weights["b"] = torch.randn(30, generator=generator).round(decimals=1)
        if masks is not None:
            weights = {name: weights[name] * mask for name, mask in masks.items()}
        new = top(magnitude(weights, None, masks, 0), keep, masks)
        assert sum(int(mask.sum()) for mask in new.values()) == keep
        if masks is not None:
            assert all(not (new[name] & ~masks[name]).any() for name in new)
        masks = new


def test_magnitude_is_the_absolute_value_and_leaves_the_weights_alone() -> None:
    weight = torch.nn.Parameter(torch.tensor([-2.0, 1.0]))
    scores = magnitude({"n.w": weight}, None, None, 0)
    assert scores["n.w"].tolist() == [2.0, 1.0]
    assert not scores["n.w"].requires_grad
    assert weight.tolist() == [-2.0, 1.0]


def test_random_scores_depend_on_seed_and_name_only() -> None:
    params = {"a": torch.zeros(50), "b": torch.zeros(50)}
    first = random_scores(params, None, None, 3)
    assert first["a"].dtype == torch.float64
    assert torch.equal(first["b"], random_scores({"b": torch.ones(50)}, None, None, 3)["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], random_scores(params, None, None, 4)["a"])
    assert 0 <= float(first["a"].min()) < float(first["a"].max()) < 1
