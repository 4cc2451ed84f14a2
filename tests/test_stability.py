"""Ratios of deviations over seeds: pooled by hand, undecided when few, found when there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tombola.metrics.stability import stability
from tombola.metrics.verdict.losses import SearchKey
from tombola.store.tables import Row

KEY = SearchKey("imp", "all", 10, "fp32")
METRIC = "reconstruction_error"


def row(arm, seed, level, value, metric=METRIC):
    return Row(
        method="imp",
        arm=arm,
        networks="all",
        rewind_steps=10,
        precision="fp32",
        seed=seed,
        round=level,
        sparsity=0.1 * level,
        sparsity_all=0.1 * level,
        metric=metric,
        value=value,
    )


def rows_of(seeds, sds, levels=(1, 2), draw=0):
    rng = np.random.default_rng(draw)
    return [
        row(arm, seed, level, 1 + sds[arm] * rng.normal())
        for seed in range(seeds)
        for arm in sds
        for level in ((0,) if arm == "dense" else levels)
    ]


def test_variances_are_pooled_over_the_levels():
    values = {
        ("dense", 0): (1, 2, 3),  # variance 1
        ("ticket", 1): (1, 2, 3),  # 1
        ("ticket", 2): (2, 2, 5),  # 3
        ("reinit", 1): (0, 2, 4),  # 4
        ("reinit", 2): (1, 5, 9),  # 16
    }
    rows = [
        row(arm, seed, level, value)
        for (arm, level), each in values.items()
        for seed, value in enumerate(each)
    ]
    found = stability(rows, METRIC, KEY, ("dense", "reinit", "shuffle"))
    assert set(found) == {"dense", "reinit"}
    assert found["dense"]["ratio"] == pytest.approx(math.sqrt(2))
    assert found["reinit"]["ratio"] == pytest.approx(math.sqrt(2 / 10))
    assert found["reinit"]["state"] == "undecided"  # three seeds


def test_ten_seeds_decide_a_clear_ratio_and_nine_do_not():
    sds = {"dense": 0.1, "ticket": 0.02, "reinit": 0.1, "shuffle": 0.004}
    for seeds in (9, 10):
        found = stability(rows_of(seeds, sds), METRIC, KEY, ("dense", "reinit", "shuffle"))
        states = {arm: each["state"] for arm, each in found.items()}
        assert all(each["seeds"] == seeds for each in found.values())
        assert found["reinit"]["low"] < found["reinit"]["ratio"] < found["reinit"]["high"]
        if seeds == 9:
            assert set(states.values()) == {"undecided"}
        else:
            expected = {"dense": "more", "reinit": "more", "shuffle": "less"}
            assert states == {arm: f"{word} stable" for arm, word in expected.items()}


def test_equal_deviations_are_mostly_undecided():
    sds = {"dense": 0.1, "ticket": 0.1, "reinit": 0.1}
    found = [
        stability(rows_of(20, sds, draw=draw), METRIC, KEY, ("reinit",))["reinit"]["state"]
        for draw in range(20)
    ]
    assert found.count("undecided") >= 16


def test_a_seed_that_diverged_anywhere_is_left_out_of_that_ratio():
    sds = {"dense": 0.1, "ticket": 0.1, "reinit": 0.1, "shuffle": 0.1}
    rows = rows_of(5, sds)
    rows = [r for r in rows if (r.arm, r.seed, r.round) != ("reinit", 4, 2)]
    rows.append(row("reinit", 4, 2, 1, metric="diverged"))
    found = stability(rows, METRIC, KEY, ("reinit", "shuffle"))
    assert {arm: each["seeds"] for arm, each in found.items()} == {"reinit": 4, "shuffle": 5}


def test_constant_arms_have_no_ratio():
    rows = [row(arm, seed, level, 1.0) for arm, level in (("dense", 0), ("ticket", 1))
            for seed in range(12)]  # fmt: skip
    assert stability(rows, METRIC, KEY, ("dense",)) == {}
