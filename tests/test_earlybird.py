"""The early-bird rule, against literals, closed forms and enumeration; nothing is trained."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tombola.config.runtime import rng
from tombola.errors import ConfigError
from tombola.sparsity.earlybird import (
    DELTA,
    LOOK_BACK,
    Watch,
    chance,
    channel_masks,
    corrected,
    distance,
    overlap,
    removed_count,
)
from tombola.sparsity.masks import count, kept_at
from tombola.store.tensors import load_tensors, save_tensors


def scores(**layers: list[float]) -> dict[str, Tensor]:
    """Scores of layers whose names have _ for the dot."""
    return {name.replace("_", "."): torch.tensor(row) for name, row in layers.items()}


def masks(**layers: str) -> dict[str, Tensor]:
    """Masks of layers whose names have _ for the dot, each written as 0s and 1s."""
    return {
        name.replace("_", "."): torch.tensor([bit == "1" for bit in row])
        for name, row in layers.items()
    }


def text(found: dict[str, Tensor] | None) -> dict[str, str] | None:
    if found is None:
        return None
    return {name: "".join(str(int(bit)) for bit in mask) for name, mask in found.items()}


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "compress", "removed"),
    [
        (464, "0.5", 232),
        (960, "0.1", 96),
        (10, "0.25", 2),  # 7.5 are kept: rounded up
        (10, 0.25, 2),
        (10, Decimal("0.35"), 3),
        (10, Fraction(1, 3), 3),
        (3, "0.1", 0),
        (9, "0.99999", None),
        (100, "0.29", 29),  # by floats 100 * 0.29 is 28.999...
    ],
)
def test_removed_count_is_exact(n: int, compress: object, removed: int | None) -> None:
    if removed is None:
        with pytest.raises(ConfigError, match="keeps none of 9"):
            removed_count(n, compress)  # type: ignore[arg-type]
    else:
        assert removed_count(n, compress) == removed  # type: ignore[arg-type]


@pytest.mark.parametrize("compress", ["0", "1", "-0.1", "nan", "half", 1, True])
def test_a_share_that_is_none_is_refused_by_its_name(compress: object) -> None:
    with pytest.raises(ConfigError, match=r"^compress got"):
        channel_masks(scores(g_0=[1.0, 2.0]), compress)  # type: ignore[arg-type]


# --- masks ---------------------------------------------------------------------------------------


def test_the_highest_scores_of_all_networks_together_are_kept() -> None:
    pool = scores(g_0=[0.9, 0.1, 0.8], g_1=[0.2, 0.7], d_0=[0.3, 0.6, 0.4])
    found = channel_masks(pool, "0.5")
    assert text(found) == {"g.0": "101", "g.1": "01", "d.0": "010"}
    assert found is not None
    assert all(mask.dtype == torch.bool and mask.device.type == "cpu" for mask in found.values())


def test_apart_each_network_has_its_own_count() -> None:
    pool = scores(d_0=[0.3, 0.2, 0.1, 0.4], g_0=[0.9, 0.6], g_1=[0.8, 0.7])
    assert text(channel_masks(pool, "0.5")) == {"d.0": "0001", "g.0": "10", "g.1": "11"}
    assert text(channel_masks(pool, "0.5", apart=True)) == {
        "d.0": "1001",
        "g.0": "10",
        "g.1": "10",
    }


def test_apart_keeps_the_order_of_names_and_draws_all_or_none() -> None:
    pool = scores(g_0=[0.9, 0.6, 0.5], d_0=[0.3, 0.2], g_1=[0.8, 0.7], d_1=[0.1, 0.4])
    found = channel_masks(pool, "0.4", apart=True)
    assert text(found) == {"g.0": "100", "d.0": "10", "g.1": "11", "d.1": "01"}
    assert found is not None
    assert list(found) == ["g.0", "d.0", "g.1", "d.1"]
    pool["d.0"], pool["d.1"] = torch.ones(2), torch.ones(2)
    assert channel_masks(pool, "0.4", apart=True) is None


def test_each_layer_keeps_its_own_best_and_the_count_stays_exact() -> None:
    pool = scores(g_0=[0.9, 0.8, 0.7, 0.6], g_1=[0.1, 0.3, 0.2], d_0=[0.5])
    assert text(channel_masks(pool, "0.5")) == {"g.0": "1100", "g.1": "010", "d.0": "1"}
    # Two of each layer; the third has one only, which it keeps.
    assert text(channel_masks(pool, "0.25", floor=2)) == {"g.0": "1110", "g.1": "011", "d.0": "1"}
    assert text(channel_masks(pool, "0.375", floor=2)) == {"g.0": "1100", "g.1": "011", "d.0": "1"}
    assert text(channel_masks(pool, "0.25")) == {"g.0": "1111", "g.1": "010", "d.0": "1"}


def test_the_sign_of_a_score_counts() -> None:
    assert text(channel_masks(scores(g_0=[-3.0, 1.0, -2.0, 0.5]), "0.5")) == {"g.0": "0101"}


def test_floors_that_are_more_than_the_count_are_refused() -> None:
    pool = scores(g_0=[0.9, 0.8, 0.7], g_1=[0.1, 0.3, 0.2], d_0=[0.5])
    with pytest.raises(ConfigError) as caught:
        channel_masks(pool, "0.5", floor=2)
    assert str(caught.value) == (
        "compress 0.5 keeps 4 of 7 channels of all networks, but a floor of 2 in each of 3 layers "
        "takes 5; compress less or lower the floor"
    )
    with pytest.raises(ConfigError, match=r"keeps 1 of 3 channels of d, .* floor of 1 .* takes 2;"):
        channel_masks(scores(g_0=[1.0, 2.0], d_0=[1.0, 3.0], d_1=[2.0]), "0.7", apart=True)


@pytest.mark.parametrize("floor", [0, -1, 1.0, True])
def test_a_floor_that_is_none_is_refused(floor: object) -> None:
    with pytest.raises(ConfigError, match=r"^floor got .* whole number from 1$"):
        channel_masks(scores(g_0=[1.0, 2.0]), "0.5", floor=floor)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (2, 2), (0,)])
def test_scores_that_are_no_row_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'d\.0' have shape .*one score a channel"):
        channel_masks({"g.0": torch.tensor([1.0, 2.0]), "d.0": torch.zeros(shape)}, "0.5")


@pytest.mark.parametrize("apart", [False, True])
def test_no_channels_are_refused(apart: bool) -> None:
    with pytest.raises(ConfigError, match="no channels came in; prune a network"):
        channel_masks({}, "0.5", apart=apart)


@pytest.mark.parametrize("where", [0, 3])
def test_nan_is_refused(where: int) -> None:
    row = [0.1, 0.2, 0.3, 0.4]
    row[where] = math.nan
    with pytest.raises(ConfigError, match=r"1 scores of 'd\.0' are NaN"):
        channel_masks(scores(g_0=[1.0, 2.0], d_0=row), "0.5")


# --- ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("compress", ["0.1", "0.5", "0.75"])
def test_nothing_is_drawn_while_every_scale_is_one(compress: str, apart: bool) -> None:
    pool = scores(g_0=[1.0] * 8, g_1=[1.0] * 4, d_0=[1.0] * 8)
    assert channel_masks(pool, compress, apart=apart) is None


@pytest.mark.parametrize(
    ("rows", "compress", "expected"),
    [
        # The floors are the 5 and the 4; of the others the count is decided between 2 and 2.
        (([5.0, 2.0, 1.0], [4.0, 2.0, 0.0]), "0.5", None),
        # Between 3 and 2.
        (([5.0, 3.0, 1.0], [4.0, 2.0, 0.0]), "0.5", ("110", "100")),
        # Equal scores that are all kept, or all removed, decide nothing.
        (([5.0, 3.0, 3.0], [4.0, 2.0, 2.0]), "0.334", ("111", "100")),
        # The tie is between a floor and one that lost: no tie of those that compete.
        (([2.0, 1.0, 0.0], [9.0, 8.0, 2.0]), "0.5", ("100", "110")),
        # A floor's channel is chosen by position; the competition is decided by 8 over 1.
        (([1.0, 1.0, 0.0], [9.0, 8.0, 0.0]), "0.5", ("100", "110")),
        # -0.0 equals 0.0.
        (([5.0, 0.0, -1.0], [4.0, -0.0, -1.0]), "0.5", None),
    ],
)
def test_only_a_tie_that_decides_leaves_no_draw(
    rows: tuple[list[float], list[float]], compress: str, expected: tuple[str, str] | None
) -> None:
    found = text(channel_masks(scores(g_0=rows[0], d_0=rows[1]), compress))
    assert found == (expected and {"g.0": expected[0], "d.0": expected[1]})


def test_where_floors_take_the_whole_count_they_decide() -> None:
    assert channel_masks(scores(g_0=[1.0, 1.0], d_0=[2.0, 1.0]), "0.5") is None
    assert text(channel_masks(scores(g_0=[1.0, 3.0], d_0=[2.0, 1.0]), "0.5")) == {
        "g.0": "01",
        "d.0": "10",
    }
    # A layer of which nothing is removed has nothing to decide.
    assert text(channel_masks(scores(g_0=[1.0], d_0=[2.0, 1.0]), "0.4")) == {
        "g.0": "1",
        "d.0": "10",
    }


def test_where_nothing_is_removed_nothing_is_tied() -> None:
    assert text(channel_masks(scores(g_0=[1.0, 1.0, 1.0]), "0.1")) == {"g.0": "111"}


def test_a_difference_that_only_doubles_show_decides() -> None:
    pool = {"g.0": torch.tensor([1.0, 1.0 - 1e-12, 1.0 + 1e-12, 2.0], dtype=torch.float64)}
    assert text(channel_masks(pool, "0.5")) == {"g.0": "0011"}
    assert channel_masks({"g.0": pool["g.0"].float()}, "0.5") is None


LAYERS = st.dictionaries(
    st.sampled_from(["g.0", "g.1", "g.2", "d.0", "d.1"]),
    st.lists(st.integers(-4, 12), min_size=1, max_size=9),
    min_size=1,
)


@settings(max_examples=60, deadline=None)
@given(LAYERS, st.integers(1, 99), st.integers(1, 3), st.booleans())
def test_counts_floors_and_order_hold_whatever_comes(
    layers: dict[str, list[int]], percent: int, floor: int, apart: bool
) -> None:
    compress = Decimal(percent) / 100
    pool = {name: torch.tensor(row, dtype=torch.float32) for name, row in layers.items()}
    try:
        found = channel_masks(pool, compress, apart=apart, floor=floor)
    except ConfigError:
        assume(False)
    assume(found is not None)
    assert found is not None
    assert list(found) == list(pool)
    groups = [["g.", "d."]] if not apart else [["g."], ["d."]]
    for starts in groups:
        own = {k: m for k, m in found.items() if k.startswith(tuple(starts))}
        if not own:
            continue
        kept, total = count(own)
        assert kept == kept_at(total, compress)
        winners, losers = [], []
        for name, mask in own.items():
            row = pool[name]
            assert int(mask.sum()) >= min(floor, len(row))
            # A layer keeps its best, the earlier of equals.
            order = sorted(range(len(row)), key=lambda i, row=row: -float(row[i]))
            best = order[: int(mask.sum())]
            assert sorted(best) == mask.nonzero().flatten().tolist()
            winners += [float(row[i]) for i in best[floor:]]
            losers += [float(row[i]) for i in order[len(best) :]]
        assert not winners or not losers or min(winners) > max(losers)


# --- distance, chance, overlap -------------------------------------------------------------------

A = masks(g_0="1100", g_1="10", d_0="111")
B = masks(g_0="1010", g_1="01", d_0="111")


def test_distance_is_the_share_that_differs_by_network() -> None:
    assert distance(A, B) == {"g": 4 / 6, "d": 0.0}
    assert distance(A, A) == {"g": 0.0, "d": 0.0}
    assert distance(masks(g_0="10"), masks(g_0="01")) == {"g": 1.0}


def test_chance_is_by_the_counts_of_the_network() -> None:
    # p = 3/6 of both; by layer it would be (4 x 1/2 + 2 x 1/2) / 6, the same, so a second pair.
    assert chance(A, B) == {"g": 0.5, "d": 0.0}
    a, b = masks(g_0="1111", g_1="0000"), masks(g_0="1110", g_1="0001")
    assert chance(a, b) == {"g": 0.5}  # by layer: 0.25
    a, b = masks(g_0="1000"), masks(g_0="1110")
    assert chance(a, b) == {"g": (1 * 1 + 3 * 3) / 16}
    assert chance(masks(g_0="11"), masks(g_0="00")) == {"g": 1.0}


@pytest.mark.parametrize(("n", "p", "q"), [(4, 1, 3), (5, 2, 2), (6, 3, 1), (5, 0, 2), (5, 5, 2)])
def test_chance_is_the_mean_over_all_pairs_of_masks(n: int, p: int, q: int) -> None:
    def rows(kept: int) -> list[Tensor]:
        chosen = itertools.combinations(range(n), kept)
        return [torch.tensor([i in c for i in range(n)]) for c in chosen]

    pairs = [({"g.0": a}, {"g.0": b}) for a in rows(p) for b in rows(q)]
    mean = sum(distance(a, b)["g"] for a, b in pairs) / len(pairs)
    assert {round(chance(a, b)["g"], 12) for a, b in pairs} == {round(mean, 12)}


def test_chance_is_what_random_masks_of_two_layers_show() -> None:
    a, b = masks(g_0="11100", g_1="1000000"), masks(g_0="10000", g_1="1111000")
    flat = [torch.cat(list(each.values())) for each in (a, b)]
    generator = rng(0, "chance")
    found = []
    for _ in range(4000):
        moved = [row[torch.randperm(12, generator=generator)] for row in flat]
        found.append(float((moved[0] ^ moved[1]).double().mean()))
    error = torch.tensor(found).std() / math.sqrt(len(found))
    assert abs(sum(found) / len(found) - chance(a, b)["g"]) < 4 * error


def test_corrected_is_distance_over_chance_and_nothing_over_nothing_is_nothing() -> None:
    assert corrected(A, B) == {"g": (4 / 6) / 0.5, "d": 0.0}
    assert corrected(masks(g_0="11"), masks(g_0="00")) == {"g": 1.0}
    assert corrected(masks(g_0="00"), masks(g_0="00")) == {"g": 0.0}
    # Exactly 0.1, which is not below it: 2 of 40 differ, 20 are kept.
    a, b = masks(g_0="1" * 20 + "0" * 20), masks(g_0="1" * 19 + "0" * 20 + "1")
    assert corrected(a, b) == {"g": 0.1}


@pytest.mark.parametrize("compare", [distance, chance, corrected, overlap])
def test_masks_of_other_channels_are_not_compared(compare: object) -> None:
    assert callable(compare)
    with pytest.raises(ConfigError, match=r"'g\.1' have shapes \(2,\) and None"):
        compare(A, {name: mask for name, mask in B.items() if name != "g.1"})
    with pytest.raises(ConfigError, match=r"'d\.1' have shapes None and \(2,\)"):
        compare(A, {**B, "d.1": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ConfigError, match=r"'d\.0' have shapes \(3,\) and \(2,\)"):
        compare(A, {**B, "d.0": torch.ones(2, dtype=torch.bool)})


def test_overlap_is_the_share_of_the_first_that_the_second_keeps() -> None:
    found = masks(g_0="1100", g_1="10", d_0="1000")
    final = masks(g_0="1110", g_1="01", d_0="1110")
    assert overlap(found, final) == {"g": (2 / 3, 4 / 6), "d": (1.0, 3 / 4)}
    assert overlap(final, found) == {"g": (2 / 4, 3 / 6), "d": (1 / 3, 1 / 4)}
    assert overlap(masks(g_0="00"), masks(g_0="10")) == {"g": (0.0, 0.5)}


# --- the rule ------------------------------------------------------------------------------------


def row(*away: int, n: int = 20) -> str:
    """A mask of the first half of n channels, at each given place turned over."""
    return "".join(str(int((i < n // 2) != (i in away))) for i in range(n))


STILL, ONE, OTHER, TWO = row(), row(3), row(5), row(3, 12)


def watched(watch: Watch, *rows: str, **more: list[str]) -> Watch:
    """A watch given masks of network g, and of others, at steps 10, 20, ..."""
    for index, mask in enumerate(rows):
        others = {f"{name}_0": given[index] for name, given in more.items()}
        watch.add(10 * (index + 1), masks(g_0=mask, **others))
    return watch


def test_the_papers_numbers() -> None:
    assert (DELTA, LOOK_BACK) == (0.1, 5)
    watch = Watch()
    assert (watch.delta, watch.look_back, watch.corrected) == (0.1, 5, False)


def test_five_masks_are_needed_and_settle() -> None:
    watch = watched(Watch(), STILL, STILL, STILL, STILL)
    assert (watch.found, watch.masks, watch.settled) == (None, None, {"g": None})
    assert watch.largest == [None] * 4
    watch.add(50, masks(g_0=ONE))
    assert watch.largest == [None] * 4 + [{"g": 0.05}]
    assert (watch.found, watch.settled) == (50, {"g": 50})
    assert text(watch.masks) == {"g.0": ONE}


def test_the_four_before_the_newest_are_compared_and_no_others() -> None:
    far = row(0, 1, 2, 3, 4, 5)
    # The odd one is at each place of the five in turn: it settles only when it has left them.
    watch = watched(Watch(), far, STILL, STILL, STILL, STILL)
    assert watch.found is None
    assert watch.largest[-1] == {"g": 0.3}
    watch.add(60, masks(g_0=STILL))
    assert watch.largest[-1] == {"g": 0.0}
    assert watch.found == 60
    for place in range(1, 5):
        rows = [STILL] * 5
        rows[place] = far
        assert watched(Watch(), *rows).found is None


def test_distances_are_from_the_newest_not_between_the_others() -> None:
    # Each is 0.05 from the plain one and 0.1 from the other.
    one, two = row(3), row(12)
    watch = watched(Watch(), one, two, one, two, STILL)
    assert watch.largest[-1] == {"g": 0.05}
    assert watch.found == 50


def test_the_distance_must_be_below_delta() -> None:
    assert watched(Watch(), STILL, STILL, STILL, STILL, TWO).largest[-1] == {"g": 0.1}
    assert watched(Watch(), STILL, STILL, STILL, STILL, TWO).found is None
    assert watched(Watch(delta=0.11), STILL, STILL, STILL, STILL, TWO).found == 50


def test_the_corrected_rule_asks_for_more() -> None:
    watch = watched(Watch(corrected=True), STILL, STILL, STILL, STILL, row(3, n=20))
    assert watch.largest[-1] == {"g": pytest.approx(0.1, abs=0)}
    assert watch.found is None
    rows = [row(n=40)] * 4 + [row(3, n=40)]
    assert watched(Watch(corrected=True), *rows).largest[-1] == {"g": 0.05}
    assert watched(Watch(corrected=True), *rows).found == 50


def test_two_masks_are_the_shortest_look_back() -> None:
    watch = watched(Watch(look_back=2), row(0, 1, 2), STILL, ONE)
    assert watch.largest == [None, {"g": pytest.approx(0.15)}, {"g": 0.05}]
    assert watch.found == 30


def test_the_last_network_decides_and_settling_is_sticky() -> None:
    far = row(0, 1, 2, 3, 4, 5)
    rows = {"g": [STILL] * 5 + [far, STILL, far], "d": [far] * 3 + [STILL] * 5}
    watch = watched(Watch(), *rows["g"][:5], d=rows["d"])
    assert (watch.settled, watch.found) == ({"g": 50, "d": None}, None)
    watch = watched(Watch(), *rows["g"], d=rows["d"])
    assert watch.largest[-1] == {"g": 0.3, "d": 0.0}
    # g has moved since it settled, and counts as settled all the same; cut by the newest masks.
    assert watch.settled == {"g": 50, "d": 80}
    assert watch.found == 80
    assert text(watch.masks) == {"g.0": far, "d.0": STILL}
    watch.add(90, masks(g_0=STILL, d_0=far))
    assert (watch.found, text(watch.masks)) == (80, {"g.0": far, "d.0": STILL})


def test_a_network_settles_once() -> None:
    watch = watched(Watch(), *[STILL] * 6, ONE)
    assert watch.largest[4:] == [{"g": 0.0}, {"g": 0.0}, {"g": 0.05}]
    assert (watch.settled, watch.found, text(watch.masks)) == ({"g": 50}, 50, {"g.0": STILL})


def test_the_matrix_has_every_draw() -> None:
    watch = watched(Watch(), STILL, ONE, TWO, d=["10", "01", "01"])
    steps, matrix = watch.matrix()
    assert steps == [10, 20, 30]
    assert matrix["g"].tolist() == [[0, 0.05, 0.1], [0.05, 0, 0.05], [0.1, 0.05, 0]]
    assert matrix["d"].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert matrix["d"].dtype == torch.float64
    assert Watch().matrix() == ([], {})


def test_the_matrix_is_the_distance_and_longer_than_the_look_back() -> None:
    generator = rng(0, "matrix")
    drawn = [
        {f"{k}.{i}": torch.rand(7, generator=generator) < 0.4 for k in "gd" for i in range(2)}
        for _ in range(8)
    ]
    watch = Watch(corrected=True)
    for step, each in enumerate(drawn):
        watch.add(step, each)
    _, matrix = watch.matrix()
    for i, j in itertools.product(range(8), repeat=2):
        assert {k: float(m[i, j]) for k, m in matrix.items()} == distance(drawn[i], drawn[j])


def test_a_mask_that_is_changed_later_is_remembered_as_it_was() -> None:
    watch, mask = Watch(), masks(g_0="10")
    watch.add(1, mask)
    mask["g.0"][0] = False
    watch.add(2, mask)
    assert watch.matrix()[1]["g"].tolist() == [[0, 0.5], [0.5, 0]]


def test_what_does_not_fit_a_watch_is_refused_and_changes_nothing() -> None:
    watch = watched(Watch(), STILL, STILL)
    with pytest.raises(ConfigError, match="a mask of step 20 came after that of step 20"):
        watch.add(20, masks(g_0=STILL))
    with pytest.raises(ConfigError, match=r"'g\.0' have shapes \(3,\) and \(20,\)"):
        watch.add(30, masks(g_0="111"))
    assert watch.steps == [10, 20]
    assert len(watch.matrix()[1]["g"]) == 2


@pytest.mark.parametrize("delta", [0, -0.1, 1.5, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match=r"delta got .* above 0, at most 1"):
        Watch(delta=delta)


def test_a_look_back_of_one_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match="look_back got 1; it takes a whole number from 2"):
        Watch(look_back=1)


# --- kill and resume -----------------------------------------------------------------------------


def public(watch: Watch) -> tuple[object, ...]:
    steps, matrix = watch.matrix()
    return (
        watch.delta,
        watch.corrected,
        watch.look_back,
        steps,
        watch.largest,
        list(watch.settled.items()),
        watch.found,
        list((text(watch.masks) or {}).items()),
        {name: values.tolist() for name, values in matrix.items()},
    )


@pytest.mark.parametrize("cut", range(9))
@pytest.mark.parametrize("rule", [{}, {"delta": 0.07, "corrected": True, "look_back": 3}])
def test_a_watch_that_is_stored_and_loaded_goes_on_as_it_would_have(
    cut: int, rule: dict[str, object], tmp_path: Path
) -> None:
    far = row(0, 1, 2, 3, 4, 5)
    drawn = [
        masks(g_0=g, g_1="10", d_0=d)
        for g, d in zip(
            [STILL] * 5 + [far, STILL, ONE], [far] * 3 + [STILL] * 4 + [OTHER], strict=True
        )
    ]
    whole, first = Watch(**rule), Watch(**rule)  # type: ignore[arg-type]
    for index, each in enumerate(drawn):
        whole.add(3 * index, each)
        if index < cut:
            first.add(3 * index, each)
    tensors, state = first.state()
    save_tensors(tmp_path / "w.safetensors", tensors, json.loads(json.dumps(state)))
    second = Watch.load(*load_tensors(tmp_path / "w.safetensors"))
    assert public(second) == public(first)
    for index in range(cut, len(drawn)):
        second.add(3 * index, drawn[index])
    assert public(second) == public(whole)
    assert whole.found is not None
