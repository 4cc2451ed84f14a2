from __future__ import annotations

import math

import pytest
from scipy import stats

from tombola.errors import ConfigError
from tombola.metrics import rules
from tombola.metrics.intervals import bounds, deviation, holm, interval, p_positive
from tombola.metrics.rules import Rule, changed_margins, fixed_margins, metric_kind, rule_of

# --- intervals -----------------------------------------------------------------------------------


def test_bounds_by_hand():
    # mean 2, s 1, n 3: t(0.95, 2) = 2.920, t(0.975, 2) = 4.303 (tables); s / sqrt(3) = 0.57735
    mean, low, high = bounds([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 0.3142, 3.6858), abs=2e-4)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4843, 4.4843), abs=2e-4)


@pytest.mark.parametrize("values", [[0.3, -0.1, 0.7], [5.0, 1.0, 2.5, 9.0, 4.0]])
def test_bounds_equal_scipys(values):
    n, mean, se = len(values), stats.tmean(values), stats.sem(values)
    low, high = stats.t.interval(0.90, n - 1, mean, se)
    assert bounds(values) == pytest.approx((mean, low, high), rel=1e-12)
    assert interval(values)[1:] == pytest.approx(stats.t.interval(0.95, n - 1, mean, se))
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    assert p_positive(values) == pytest.approx(expected, rel=1e-10)


def test_intervals_of_too_few_or_unbounded_values():
    assert interval([0.1, 0.1, 0.1]) == (0.1, 0.1, 0.1)
    assert all(math.isnan(v) for v in interval([]))
    mean, low, high = interval([4.0])
    assert mean == 4.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert interval([1.0, 2.0, 3.0, math.inf, math.nan]) == interval([1.0, 2.0, 3.0])
    assert deviation([0.1, 0.1, 0.1]) == 0.0
    assert math.isnan(deviation([1.0]))


def test_p_by_hand():
    # mean 2, s 1, n 3: t = 3.4641; with 2 degrees of freedom p = 1/2 - t / (2 sqrt(2 + t^2))
    assert p_positive([1.0, 2.0, 3.0]) == pytest.approx(0.5 - math.sqrt(12 / 14) / 2, rel=1e-12)
    assert p_positive([-1.0, -2.0, -3.0]) == pytest.approx(0.5 + math.sqrt(12 / 14) / 2)


def test_p_without_variance():
    assert p_positive([0.1, 0.1, 0.1]) == 0.0
    assert p_positive([0.0, 0.0, 0.0]) == 1.0
    assert p_positive([-0.1, -0.1, -0.1]) == 1.0
    assert math.isnan(p_positive([1.0]))


def test_p_of_diverged_pairs():
    inf = math.inf
    assert p_positive([inf, inf, inf]) == 0.0
    # One finite pair: t = sqrt(2 * 2 / 1) = 2 on 2 degrees of freedom.
    assert p_positive([inf, 0.3, inf]) == pytest.approx(0.5 - 2 / math.sqrt(6) / 2, rel=1e-12)
    # Else as large as the largest difference, whichever its sign.
    assert p_positive([1.0, 2.0, inf]) == pytest.approx(p_positive([1.0, 2.0, 2.0]))
    assert p_positive([-2.0, -1.0, inf]) == pytest.approx(p_positive([-2.0, -1.0, 2.0]))
    # A divergence never speaks for the control.
    assert p_positive([1.0, 1.1, 1.2, inf]) < p_positive([1.0, 1.1, 1.2, 1.0])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.01, math.nan, 0.02])
    assert (adjusted[0], adjusted[2]) == pytest.approx((0.02, 0.02))
    assert math.isnan(adjusted[1])
    assert holm([]) == []


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "better", "margin", "share"),
    [
        ("reconstruction_error", "lower", 0.05, True),
        ("elbo", "higher", 0.01, True),
        ("fid", "lower", 0.10, True),
        ("fcd-mnist-1a2b3c4d", "lower", 0.10, True),
        ("kid", "lower", 0.10, True),
        ("kcd-folder-my-cats-00000000", "lower", 0.10, True),
        ("is", "higher", 0.05, True),
        ("cs-digits-deadbeef", "higher", 0.05, True),
        ("accuracy", "higher", 0.01, False),
        ("precision", "higher", 0.02, False),
        ("recall", "higher", 0.02, False),
        ("density", "higher", 0.02, False),
        ("coverage", "higher", 0.02, False),
    ],
)
def test_table_of_margins(metric, better, margin, share):
    assert rule_of(metric) == Rule(better, margin, share)


@pytest.mark.parametrize(
    "metric",
    ["discriminator_loss", "kl", "active_units", "diverged", "not-run", "fcd-mnist", "fcd-floor"],
)
def test_metrics_without_a_direction(metric):
    assert rule_of(metric) is None


def test_margins_are_overridden_by_kind_or_name():
    name = "fcd-mnist-1a2b3c4d"
    assert metric_kind(name) == "fcd"
    assert rule_of(name, {"fcd": 0.2}) == Rule("lower", 0.2)
    assert rule_of(name, {"fcd": 0.2, name: 0.3}) == Rule("lower", 0.3)
    assert rule_of("elbo", {"fcd": 0.2}) == Rule("higher", 0.01)
    with pytest.raises(ConfigError, match="did you mean elbo"):
        rule_of("elbo", {"elbow": 0.1})
    assert rule_of("elbo", {"elbo": "2%"}) == Rule("higher", 0.02)
    for bad in (0.0, -1.0, math.nan, math.inf, "5 percent", True):
        with pytest.raises(ConfigError, match="give a positive number"):
            rule_of("elbo", {"elbo": bad})


def test_the_margins_that_are_fixed_are_those_of_the_table():
    fixed = rules.fixed_margins({"fcd": 0.05, "fcd-mnist-0123abcd": 0.2})
    told = {name: (rule["margin"], rule["share"], rule["better"]) for name, rule in fixed.items()}
    outright = {
        **dict.fromkeys(("precision", "recall", "density", "coverage"), (0.02, False, "higher")),
        "accuracy": (0.01, False, "higher"),
    }
    expected = outright | {
        "reconstruction_error": (0.05, True, "lower"),
        "elbo": (0.01, True, "higher"),
        "fid": (0.1, True, "lower"),
        "fcd": (0.05, True, "lower"),
        "fcd-mnist-0123abcd": (0.2, True, "lower"),
        "kid": (0.1, True, "lower"),
        "kcd": (0.1, True, "lower"),
        "is": (0.05, True, "higher"),
        "cs": (0.05, True, "higher"),
    }
    assert {name: told[name] for name in expected} == expected
    assert rules.fixed_margins()["fcd"]["margin"] == 0.1


def test_margins_that_were_changed_are_said():
    first = fixed_margins()
    now = fixed_margins({"fcd": 0.02, "precision": 0.05})
    assert changed_margins(first, now) == {
        "fcd": "from 10% to 2%",
        "precision": "from 0.02 to 0.05",
    }
    assert changed_margins({}, now) == {}
