from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from scipy import stats

from tombola.errors import ConfigError
from tombola.metrics import rules
from tombola.metrics.intervals import (
    bounds,
    decidable_factor,
    decidable_margin,
    deviation,
    holm,
    interval,
    p_positive,
    seeds_for_margin,
)
from tombola.metrics.rules import Rule, metric_kind, register_rule, rule_of
from tombola.metrics.sentences import percent
from tombola.metrics.statistics import (
    SearchKey,
    arm_name,
    search_key,
    searches_in,
    summarise,
    verdict,
)
from tombola.runs.results import Row

METRIC = "reconstruction_error"
LEVELS = (0.2, 0.36, 0.488)
NOISE = {3: (-0.01, 0.0, 0.01), 5: (-0.01, -0.005, 0.0, 0.005, 0.01)}


def row(arm, seed, number, value, metric=METRIC, **changes):
    values = {
        "task": "linear-ae",
        "data": "digits",
        "method": "imp",
        "arm": arm,
        "networks": "all",
        "rewind_steps": 10,
        "precision": "fp32",
        "seed": seed,
        "round": number,
        "sparsity": LEVELS[number - 1] if number else 0.0,
        "sparsity_all": 0.9 * LEVELS[number - 1] if number else 0.0,
        "metric": metric,
        "value": value,
        "n": 360,
        "step": 100,
    }
    return Row(**(values | changes))


def search(ticket, reinit=None, shuffle=None, seeds=3, metric=METRIC, base=1.0, sign=1.0):
    """Rows of a search: dense ``base``; per level the mean loss of each arm, with small noise.

    The noise of ticket and control differ, so that pairs do not cancel it. Without word of it
    shuffle is as reinit.
    """
    noise = NOISE[seeds]
    shuffle = reinit if shuffle is None else shuffle
    rows = [row("dense", s, 0, base, metric) for s in range(seeds)]
    for arm, means, flip in (
        ("ticket", ticket, 1),
        ("reinit", reinit, -1),
        ("shuffle", shuffle, -1),
    ):
        for number, mean in enumerate(means or (), 1):
            for s in range(seeds):
                rows.append(row(arm, s, number, base + sign * (mean + flip * noise[s]), metric))
    return rows


def event(rows, metric, arm, seed, number):
    """The rows with one run replaced by an event."""
    left = [r for r in rows if (r.arm, r.seed, r.round) != (arm, seed, number)]
    return [*left, row(arm, seed, number, 1, metric, n=None)]


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


def test_decidable_factor_is_the_contracts():
    # design.md section 4: about 4.6, 2.4 and 1.4 seed standard deviations, unpaired
    assert [round(decidable_factor(n), 2) for n in (3, 5, 10)] == [4.62, 2.38, 1.41]


@pytest.mark.parametrize("seeds", [3, 5, 10, 40])
def test_decidable_factor_has_80_percent_power(seeds):
    noncentrality = decidable_factor(seeds) * math.sqrt(seeds / 2)
    critical = stats.t.ppf(0.975, seeds - 1)
    assert stats.nct.sf(critical, seeds - 1, noncentrality) == pytest.approx(0.8, abs=1e-6)


def test_decidable_margin_is_in_the_metrics_unit():
    assert decidable_margin([1.0, 2.0, 3.0]) == pytest.approx(decidable_factor(3))
    assert decidable_margin([1.0, 2.0, 3.0, math.inf]) == pytest.approx(decidable_factor(3))
    assert math.isnan(decidable_margin([1.0]))


def test_seeds_for_margin():
    assert seeds_for_margin(1.0, 5.0) == 3
    assert seeds_for_margin(1.0, 4.6) == 4
    assert seeds_for_margin(1.0, 2.38) == 5
    assert seeds_for_margin(1.0, 1.40) == 11
    # Large n: (1.960 + 0.842)^2 * 2 / 0.1^2 = 1570 by the normal, a few more by t.
    assert 1570 <= seeds_for_margin(1.0, 0.1) <= 1575
    assert seeds_for_margin(0.0, 0.1) == 3
    with pytest.raises(ConfigError, match="give a positive number"):
        seeds_for_margin(1.0, 0.0)
    with pytest.raises(ConfigError, match="no deviation"):
        seeds_for_margin(math.nan, 1.0)
    with pytest.raises(ConfigError, match="widen the margin"):
        seeds_for_margin(1.0, 1e-4)


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
    with pytest.raises(ConfigError, match="no direction"):
        verdict(search([0.0]), metric)


def test_margins_are_overridden_by_kind_or_name():
    name = "fcd-mnist-1a2b3c4d"
    assert metric_kind(name) == "fcd"
    assert rule_of(name, {"fcd": 0.2}) == Rule("lower", 0.2)
    assert rule_of(name, {"fcd": 0.2, name: 0.3}) == Rule("lower", 0.3)
    assert rule_of("elbo", {"fcd": 0.2}) == Rule("higher", 0.01)
    with pytest.raises(ConfigError, match="did you mean elbo"):
        rule_of("elbo", {"elbow": 0.1})
    for bad in (0.0, -1.0, math.nan, math.inf, "5%", True):
        with pytest.raises(ConfigError, match="give a positive number"):
            rule_of("elbo", {"elbo": bad})


def test_a_metric_of_ones_own(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule("sharpness", Rule("higher", 0.5, share=False))
    result = verdict(search([0.1, 2.0, 2.0], metric="sharpness", sign=-1.0), "sharpness")
    assert [level["state"] for level in result["levels"]] == ["matches", "worse", "worse"]
    with pytest.raises(ConfigError, match="has a rule already"):
        register_rule("elbo", Rule("lower", 0.1))


# --- states of one level -------------------------------------------------------------------------


def test_level_bounds_and_states_by_hand():
    # d = mean + (-0.01, 0, 0.01): half width 2.920 * 0.01 / sqrt(3) = 0.016858; margin 5% of 1.0
    result = verdict(search([0.0, 0.04, 0.2]), METRIC)
    levels = result["levels"]
    assert [level["state"] for level in levels] == ["matches", "undecided", "worse"]
    assert levels[0]["d_mean"] == pytest.approx(0.0, abs=1e-12)
    assert levels[0]["upper"] == pytest.approx(0.016858, abs=1e-5)
    assert levels[0]["lower"] == pytest.approx(-0.016858, abs=1e-5)
    assert levels[1]["upper"] == pytest.approx(0.056858, abs=1e-5)
    assert levels[2]["lower"] == pytest.approx(0.183142, abs=1e-5)
    assert [(level["round"], level["sparsity"]) for level in levels] == [
        (1, 0.2),
        (2, 0.36),
        (3, 0.488),
    ]
    assert levels[0]["sparsity_all"] == pytest.approx(0.18)
    assert result["margin"] == pytest.approx(0.05)
    assert result["margin_share"] == 0.05


def test_bounds_are_paired_by_seed():
    # Seeds differ by 100 margins, d is exactly 0 each: paired, it matches.
    rows = [
        row(arm, s, n, 1.0 + 5 * s) for arm, n in (("dense", 0), ("ticket", 1)) for s in range(3)
    ]
    level = verdict(rows, METRIC)["levels"][0]
    assert (level["d_mean"], level["lower"], level["upper"]) == (0.0, 0.0, 0.0)
    assert level["state"] == "matches"


def test_margin_is_open_on_both_sides():
    # d = the margin exactly, without variance: neither below nor above it
    rows = [row("dense", s, 0, 1.0) for s in range(3)]
    rows += [row("ticket", s, 1, 1.5) for s in range(3)]
    assert verdict(rows, METRIC, margin=0.5)["levels"][0]["state"] == "undecided"
    assert verdict(rows, METRIC, margin=0.51)["levels"][0]["state"] == "matches"
    assert verdict(rows, METRIC, margin=0.49)["levels"][0]["state"] == "worse"


def test_higher_is_better_and_the_dense_mean_may_be_negative():
    rows = search([0.0, 20.0], [30.0, 30.0], seeds=3, metric="elbo", base=-100.0, sign=-1.0)
    result = verdict(rows, "elbo")
    assert result["margin"] == pytest.approx(1.0)
    assert result["dense_mean"] == pytest.approx(-100.0)
    assert [level["state"] for level in result["levels"]] == ["matches", "worse"]
    assert result["levels"][1]["d_mean"] == pytest.approx(20.0)
    assert result["state"] == "wins"


def test_margin_is_a_share_of_the_absolute_mean():
    rows = search([0.0, 1.0], [3.0, 3.0], metric="is", base=8.0, sign=-1.0)
    result = verdict(rows, "is")
    assert (result["margin"], result["dense_mean"]) == (pytest.approx(0.4), pytest.approx(8.0))
    assert (result["state"], result["bracket"]) == ("wins", [0.2, 0.36])


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


# --- verdicts ------------------------------------------------------------------------------------


def test_wins_up_to_the_first_worse():
    rows = search([0.0, 0.0, 0.3], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    result = verdict(rows, METRIC, controls=["reinit", "shuffle"])
    assert result["state"] == "wins"
    assert result["sparsity"] == 0.36
    assert result["bracket"] == [0.36, 0.488]
    assert result["at_least"] is False
    assert [level["wins"] for level in result["levels"]] == [True, True, False]
    assert {n: c["state"] for n, c in result["controls"].items()} == {
        "reinit": "worse",
        "shuffle": "worse",
    }
    assert result["controls"]["reinit"]["sparsity"] == 0.36
    assert result["sentence"] == (
        "A ticket at 36.0% sparsity still wins on reconstruction error (less than 5% of the dense "
        "mean worse than dense, better than reinit and shuffle); at 48.8% it is worse than dense."
    )


def test_wins_at_least():
    result = verdict(search([0.0, 0.0], [1.0, 1.0]), METRIC)
    assert (result["state"], result["bracket"]) == ("wins", [0.36, None])
    assert result["at_least"] is True
    assert "36.0% sparsity, the sparsest level searched, still wins" in result["sentence"]
    assert "at least that sparse" in result["sentence"]


def test_wins_with_an_undecided_end_is_not_at_least():
    result = verdict(search([0.0, 0.05], [1.0, 1.0]), METRIC)
    assert (result["state"], result["bracket"]) == ("wins", [0.2, None])
    assert result["at_least"] is False
    assert "up to 36.0%, no level is shown to win or to be worse" in result["sentence"]


def test_a_win_beyond_the_first_worse_does_not_count():
    result = verdict(search([0.0, 0.3, 0.0], [1.0, 1.0, 1.0]), METRIC)
    assert result["levels"][2]["wins"]
    assert (result["sparsity"], result["bracket"]) == (0.2, [0.2, 0.36])


def test_the_sequence_stops_at_the_first_level_that_does_not_match():
    result = verdict(search([0.0, 0.05, 0.0], [1.0, 1.0, 1.0]), METRIC)
    assert result["levels"][2]["state"] == "matches"
    assert (result["state"], result["bracket"]) == ("wins", [0.2, None])
    assert (result["matches_up_to"], result["at_least"]) == (0.2, False)
    undecided = verdict(search([0.05, 0.0, 0.0], [1.0, 1.0, 1.0]), METRIC)
    assert (undecided["state"], undecided["matches_up_to"]) == ("undecided", None)


def test_a_match_above_the_highest_win_does_not_count():
    result = verdict(search([0.0, 0.0, 0.3], [1.0, 0.0, 1.0]), METRIC)
    assert (result["sparsity"], result["bracket"]) == (0.2, [0.2, 0.488])
    assert result["matches_up_to"] == 0.36
    assert result["controls"]["reinit"]["sparsity"] == 0.2


def test_levels_are_read_by_sparsity_not_by_round():
    rows = [r for r in search([0.3, 0.0], [1.0, 1.0]) if r.arm != "x"]
    turned = [
        row(r.arm, r.seed, r.round, r.value, sparsity={0: 0.0, 1: 0.9, 2: 0.5}[r.round])
        for r in rows
    ]
    assert verdict(turned, METRIC)["bracket"] == [0.5, 0.9]


def test_first_level_worse():
    result = verdict(search([0.3, 0.3], [1.0, 1.0]), METRIC)
    assert (result["state"], result["bracket"]) == ("worse", [None, 0.2])
    assert result["sparsity"] is None
    assert result["sentence"] == (
        "Already at 20.0% sparsity, the least sparse level searched, the ticket is worse than "
        "dense on reconstruction error by more than 5% of the dense mean: no ticket wins."
    )


def test_matches_but_so_does_the_control():
    # The last level keeps the gap of reinit wide enough for a verdict.
    result = verdict(search([0.0, 0.0, 0.5], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]), METRIC)
    assert result["state"] == "matches but so does reinit"
    assert (result["sparsity"], result["bracket"]) == (None, [None, 0.488])
    assert result["matches_up_to"] == 0.36
    assert result["controls"]["reinit"]["state"] == "not worse"
    assert result["controls"]["shuffle"]["state"] == "worse"
    assert result["sentence"] == (
        "A ticket at 36.0% sparsity matches dense on reconstruction error (less than 5% of the "
        "dense mean worse), but so does reinit: these runs show no winning ticket; from 48.8% it "
        "is worse than dense."
    )


def test_both_controls_match():
    result = verdict(search([0.0, 0.5], [0.0, 1.0], [0.0, 1.0]), METRIC)
    assert result["state"] == "matches but so does reinit"
    assert "but so do reinit and shuffle" in result["sentence"]


def test_only_the_second_control_matches():
    result = verdict(search([0.0, 0.5], [1.0, 1.0], [0.0, 1.0]), METRIC)
    assert result["state"] == "matches but so does shuffle"


def test_the_highest_matching_level_speaks():
    # Reinit does as well at 20%, fails at 36%: the ticket wins there.
    result = verdict(search([0.0, 0.0], [0.0, 1.0]), METRIC)
    assert (result["state"], result["sparsity"]) == ("wins", 0.36)


def test_a_control_neither_worse_nor_matching_is_undecided():
    rows = search([0.0], [0.2], seeds=3)
    rows = [r for r in rows if r.arm != "reinit"]
    rows += [row("reinit", s, 1, 1.0 + d) for s, d in enumerate((0.0, 0.1, 0.5))]
    result = verdict(rows, METRIC)
    assert (result["state"], result["reason"]) == ("undecided", "controls undecided")
    assert result["controls"]["reinit"]["state"] == "undecided"
    assert "3 seeds cannot say whether reinit would do as well" in result["sentence"]


def test_control_test_is_paired_one_sided_with_holm_over_levels():
    # Pairs control - ticket: mean 0.2 or 0.4, differences (0.02, 0, -0.02): s = 0.02
    rows = search([0.0, 0.0], [0.2, 0.4])
    levels = verdict(rows, METRIC)["levels"]
    t = [mean / (0.02 / math.sqrt(3)) for mean in (0.2, 0.4)]
    p = [0.5 - v / (2 * math.sqrt(2 + v * v)) for v in t]
    own = [level["controls"]["reinit"] for level in levels]
    assert [c["p"] for c in own] == pytest.approx(p, rel=1e-6)
    assert own[1]["p_holm"] == pytest.approx(2 * p[1], rel=1e-6)
    assert own[0]["p_holm"] == pytest.approx(max(p[0], 2 * p[1]), rel=1e-6)


def test_holm_takes_a_win_away():
    # One level: t = 0.1 / (0.02 / sqrt 3) = 8.66, p = 0.0065. Four such levels: p_holm = 0.026.
    def rows(levels):
        out = [row("dense", s, 0, 1.0) for s in range(3)]
        for k in range(1, levels + 1):
            for s, e in enumerate(NOISE[3]):
                common = {"sparsity": k / 10, "sparsity_all": k / 10, "metric": METRIC}
                out.append(row("ticket", s, 1, 1.0 + e, **common | {"round": k}))
                for control in ("reinit", "shuffle"):
                    out.append(row(control, s, 1, 1.1 - e, **common | {"round": k}))
        return out

    assert verdict(rows(1), METRIC, margin=0.04)["state"] == "wins"
    four = verdict(rows(4), METRIC, margin=0.04)
    assert four["state"] == "undecided"
    assert four["levels"][0]["controls"]["reinit"]["p_holm"] == pytest.approx(0.0262, abs=2e-4)
    assert verdict(rows(3), METRIC, margin=0.04)["state"] == "wins"


def test_no_controls_is_undecided():
    result = verdict(search([0.0, 0.3]), METRIC, controls=[])
    assert (result["state"], result["reason"]) == ("undecided", "no controls")
    assert result["bracket"] == [None, 0.36]
    assert "a match cannot be told from a win; from 36.0% it is worse" in result["sentence"]
    assert verdict(search([0.3]), METRIC, controls=[])["state"] == "worse"


def test_other_controls_alone_do_not_make_a_win():
    rows = [row("erk", s, 1, 9.0 + s) for s in range(3)]
    result = verdict(search([0.0]) + rows, METRIC, controls=["erk"])
    assert (result["state"], result["reason"]) == ("undecided", "no controls")
    assert result["controls"]["erk"]["state"] == "worse"


def test_other_controls_do_not_take_a_win_away():
    rows = [row("erk", s, 1, 1.0) for s in range(3)]
    result = verdict(search([0.0], [1.0]) + rows, METRIC, controls=["reinit", "shuffle", "erk"])
    assert result["state"] == "wins"
    assert result["controls"]["erk"]["state"] == "not worse"
    assert "better than reinit and shuffle, though not shown better than erk" in result["sentence"]


def test_a_control_that_was_asked_for_and_is_missing_blocks_the_win():
    rows = search([0.0], [1.0], shuffle=())
    result = verdict(rows, METRIC, controls=["reinit", "shuffle"])
    assert (result["state"], result["reason"]) == ("undecided", "controls undecided")
    assert result["controls"]["shuffle"] == {
        "state": "undecided",
        "worse": False,
        "matches_dense": False,
        "pairs": 0,
        "gap_mean": None,
        "p": None,
        "p_holm": None,
        "d_mean": None,
        "diverged": 0,
        "sparsity": 0.2,
    }


def test_noise_is_undecided_and_says_what_these_seeds_can_decide():
    rows = [row("dense", s, 0, v) for s, v in enumerate((0.8, 1.0, 1.2))]
    rows += [row("ticket", s, 1, v) for s, v in enumerate((1.0, 1.0, 1.0))]
    result = verdict(rows, METRIC)
    assert (result["state"], result["reason"]) == ("undecided", "noise")
    assert result["dense_sd"] == pytest.approx(0.2)
    assert result["decidable_margin"] == pytest.approx(0.2 * decidable_factor(3))
    assert result["seeds_needed"] == seeds_for_margin(0.2, 0.05)
    assert "3 seeds can decide a margin of 0.923; about" in result["sentence"]


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_not_enough_runs(seeds):
    rows = [r for r in search([0.0], [1.0]) if r.seed < seeds]
    result = verdict(rows, METRIC)
    assert (result["state"], result["seeds"]) == ("not enough runs", seeds)
    assert (result["sparsity"], result["bracket"]) == (None, [None, None])
    assert "and it takes three" in result["sentence"]
    assert all(level["state"] == "undecided" for level in result["levels"])
    json.dumps(result, allow_nan=False)


def test_a_level_of_two_seeds_is_undecided():
    rows = [r for r in search([0.0, 0.0], [1.0, 1.0]) if (r.round, r.seed) != (2, 2)]
    result = verdict(rows, METRIC)
    assert [level["state"] for level in result["levels"]] == ["matches", "undecided"]
    assert result["levels"][1]["controls"]["reinit"]["p"] is None
    assert (result["seeds"], result["sparsity"]) == (3, 0.2)


def test_margin_wider_than_half_the_gap_gives_no_verdict():
    # Gap of reinit at the last level 0.08: a margin of 0.05 is wider than half of it.
    rows = search([0.0, 0.0], [1.0, 0.08], [1.0, 1.0])
    result = verdict(rows, METRIC)
    assert (result["state"], result["reason"]) == ("undecided", "margin too wide")
    assert (result["gap"], result["gap_sparsity"]) == (pytest.approx(0.08), 0.36)
    assert (result["sparsity"], result["bracket"]) == (None, [None, None])
    assert "the margin, 0.05, is wider than half the gap" in result["sentence"]
    assert {(level["state"], level["wins"]) for level in result["levels"]} == {("undecided", False)}
    assert verdict(search([0.0, 0.0], [1.0, 0.11], [1.0, 1.0]), METRIC)["state"] == "wins"
    worse_than_reinit = verdict(search([0.3], [-0.1]), METRIC)
    assert worse_than_reinit["reason"] == "margin too wide"


def test_without_reinit_the_gap_rule_does_not_apply():
    rows = search([0.0], [0.01], [1.0])
    result = verdict(rows, METRIC, controls=["shuffle"])
    assert (result["reason"], result["gap"]) == ("no controls", None)
    assert verdict(rows, METRIC)["reason"] == "margin too wide"


@pytest.mark.parametrize(("asked", "lacking"), [("reinit", "shuffle"), ("shuffle", "reinit")])
def test_one_default_control_alone_does_not_make_a_win(asked, lacking):
    rows = search([0.0], [1.0], [1.0])
    assert verdict(rows, METRIC)["state"] == "wins"
    result = verdict(rows, METRIC, controls=[asked])
    assert (result["state"], result["reason"]) == ("undecided", "no controls")
    assert result["sparsity"] is None
    assert not result["levels"][0]["wins"]
    assert f"without the control {lacking} a match cannot be told" in result["sentence"]
    alike = [0.0, 1.0]
    so_does = verdict(search([0.0, 0.3], alike, alike), METRIC, controls=[asked])
    assert so_does["state"] == f"matches but so does {asked}"


def test_the_gap_is_that_of_the_last_level_where_reinit_was_run():
    result = verdict(search([0.0, 0.3], [1.0], [1.0, 1.0]), METRIC)
    assert (result["gap"], result["gap_sparsity"]) == (pytest.approx(1.0), 0.2)
    assert result["state"] == "wins"


# --- divergence ----------------------------------------------------------------------------------


def test_a_diverged_ticket_makes_its_level_worse():
    rows = event(search([0.0, 0.0], [1.0, 1.0]), "diverged", "ticket", 1, 2)
    result = verdict(rows, METRIC)
    assert (result["state"], result["bracket"]) == ("wins", [0.2, 0.36])
    level = result["levels"][1]
    assert (level["state"], level["diverged"], level["seeds"]) == ("worse", 1, 3)
    assert (level["d_mean"], level["lower"], level["upper"]) == (None, None, None)
    assert level["controls"]["reinit"]["pairs"] == 2
    assert "at 36.0% it is worse than dense (1 of 3 seeds diverged)" in result["sentence"]
    json.dumps(result, allow_nan=False)


def test_rounds_after_a_divergence_are_worse():
    rows = event(search([0.0] * 3, [1.0] * 3), "diverged", "ticket", 0, 2)
    rows = event(rows, "not-run", "ticket", 0, 3)
    levels = verdict(rows, METRIC)["levels"]
    assert [level["state"] for level in levels] == ["matches", "worse", "worse"]


def test_not_run_without_a_divergence_is_missing():
    rows = event(search([0.0, 0.0], [1.0, 1.0]), "not-run", "ticket", 0, 2)
    level = verdict(rows, METRIC)["levels"][1]
    assert (level["state"], level["seeds"], level["diverged"]) == ("undecided", 2, 0)


def test_levels_where_every_ticket_diverged_are_still_levels():
    rows = search([0.0, 0.0], [1.0, 1.0])
    for seed in range(3):
        rows = event(rows, "diverged", "ticket", seed, 2)
    result = verdict(rows, METRIC)
    assert result["bracket"] == [0.2, 0.36]
    assert result["levels"][1]["diverged"] == 3


def test_a_value_that_is_not_finite_counts_as_diverged():
    rows = search([0.0, 0.0], [1.0, 1.0])
    rows = [r for r in rows if (r.arm, r.seed, r.round) != ("ticket", 0, 2)]
    rows.append(row("ticket", 0, 2, math.nan))
    assert verdict(rows, METRIC)["levels"][1]["state"] == "worse"


def test_a_diverged_dense_run_drops_its_seed_and_is_counted():
    rows = event(search([0.0], [1.0], seeds=5), "diverged", "dense", 4, 0)
    rows = event(rows, "not-run", "ticket", 4, 1)
    rows = event(rows, "not-run", "reinit", 4, 1)
    result = verdict(rows, METRIC)
    assert (result["state"], result["seeds"], result["dense_diverged"]) == ("wins", 4, 1)
    assert result["levels"][0]["diverged"] == 0
    for seed in (0, 1):
        rows = event(rows, "diverged", "dense", seed, 0)
    few = verdict(rows, METRIC)
    assert (few["state"], few["seeds"]) == ("not enough runs", 2)
    assert "2 training seeds (3 more diverged already when dense)" in few["sentence"]


def test_diverged_controls_count_as_worse_than_the_ticket():
    rows = search([0.0], [0.0], [1.0])
    assert verdict(rows, METRIC)["levels"][0]["controls"]["reinit"]["state"] == "not worse"
    for seed in range(3):
        rows = event(rows, "diverged", "reinit", seed, 1)
    result = verdict(rows, METRIC)
    assert result["state"] == "wins"
    assert result["controls"]["reinit"]["p_holm"] == 0.0
    assert result["controls"]["reinit"]["diverged"] == 3
    json.dumps(result, allow_nan=False)


def test_one_diverged_control_keeps_the_others_evidence():
    rows = event(search([0.0], [1.0]), "diverged", "reinit", 0, 1)
    assert verdict(rows, METRIC)["state"] == "wins"
    rows = event(search([0.0], [0.0], [1.0]), "diverged", "reinit", 0, 1)
    result = verdict(rows, METRIC)
    assert (result["state"], result["reason"]) == ("undecided", "controls undecided")


# --- several searches ----------------------------------------------------------------------------


def test_dense_runs_are_shared_and_searches_kept_apart():
    first = search([0.0], [1.0])
    late = [
        row(r.arm, r.seed, r.round, 1.4 if r.arm == "ticket" else r.value, rewind_steps=500)
        for r in first
        if r.arm != "dense"
    ]
    rows = first + late
    keys = searches_in(rows)
    assert keys == [search_key(first[3]), SearchKey("imp", "all", 500, "fp32", None)]
    assert verdict(rows, METRIC)["state"] == "wins"
    assert verdict(rows, METRIC, search=keys[1])["state"] == "worse"
    summary = summarise(rows)
    assert list(summary["arms"]) == ["imp/all/r10/fp32", "imp/all/r500/fp32"]
    assert summary["verdicts"] == summary["arms"]["imp/all/r10/fp32"]
    assert summary["arms"]["imp/all/r500/fp32"][METRIC]["state"] == "worse"
    assert summarise(rows, searches=keys[::-1])["verdicts"][METRIC]["state"] == "worse"


def test_a_search_is_judged_against_the_dense_runs_of_its_precision():
    rows = search([0.0], [1.0])
    rows += [row("dense", s, 0, 3.0, precision="bf16") for s in range(3)]
    assert verdict(rows, METRIC)["dense_mean"] == pytest.approx(1.0)


def test_a_search_has_only_its_own_tickets():
    rows = search([0.0], [1.0])
    rows += [row("ticket", s, 1, 9.0, compress=None, rewind_steps=None, step=500) for s in range(3)]
    key = SearchKey("imp", "all", 10, "fp32", None)
    assert verdict(rows, METRIC, search=key)["state"] == "wins"


def test_dense_and_control_rows_may_leave_key_columns_empty():
    rows = [
        row(r.arm, r.seed, r.round, r.value, rewind_steps=10 if r.arm == "ticket" else None)
        for r in search([0.0], [1.0])
    ]
    assert verdict(rows, METRIC)["state"] == "wins"


def test_the_judged_value_is_the_one_at_the_last_step():
    rows = search([0.0], [1.0])
    rows += [row("ticket", s, 1, 9.0, step=50) for s in range(3)]
    assert verdict(rows, METRIC)["state"] == "wins"


def test_arm_names():
    assert arm_name(SearchKey("imp", "all", 10, "fp32", None)) == "imp/all/r10/fp32"
    assert (
        arm_name(SearchKey("early-bird", "all", None, "bf16", 0.5)) == "early-bird/all/r0/bf16/c0.5"
    )


def test_summary_of_several_metrics_and_its_primary():
    fcd = "fcd-digits-0123abcd"
    rows = search([0.0], [1.0]) + search([0.0], [0.3], metric=fcd)
    rows += [row("ticket", s, 1, 5.0, "kl") for s in range(3)]
    rows += [row("judge", 0, 0, 0.97, "accuracy")]
    summary = summarise(rows, margins={"fcd": 0.2})
    assert sorted(summary["verdicts"]) == [fcd, METRIC]
    assert summary["primary"] == fcd
    assert summarise(rows, primary=METRIC)["primary"] == METRIC
    assert summarise(rows, primary="fcd")["primary"] == fcd
    assert summary["verdicts"][fcd]["margin"] == pytest.approx(0.2)
    assert summary["verdicts"][fcd]["reason"] == "margin too wide"
    assert summary["verdicts"][METRIC]["margin"] == pytest.approx(0.05)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_of_nothing():
    assert summarise([]) == {"verdicts": {}, "primary": None, "arms": {}}


def test_verdict_does_not_depend_on_the_order_of_the_rows():
    rows = search([0.0, 0.0, 0.3], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert verdict(rows[::-1], METRIC) == verdict(rows, METRIC)


@pytest.mark.parametrize(
    ("sparsity", "text"),
    [(0.8926, "89.3%"), (0.0, "0.0%"), (0.99951, "99.95%"), (0.99999, "99.999%"), (1.0, "100.0%")],
)
def test_percent_never_rounds_up_to_all(sparsity, text):
    assert percent(sparsity) == text


def test_torch_is_not_imported():
    code = "import sys, tombola.metrics.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
