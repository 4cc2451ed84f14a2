"""Is the verdict the one of docs/method.md? Literals by hand, closed forms, one of each state."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import tombola
from tombola.errors import ConfigError, DataError
from tombola.metrics.rules import Rule, fixed_margins
from tombola.metrics.verdict.comparisons import NEVER_REWOUND
from tombola.metrics.verdict.decide import Evidence, decide, summarise
from tombola.metrics.verdict.losses import Level, SearchKey, gather, search_name, searches_in
from tombola.metrics.verdict.opponents import (
    ask_control,
    cap_values,
    rank_p,
    rank_test,
    robust_deviation,
)
from tombola.metrics.verdict.planning import match_power, seeds_to_match
from tombola.metrics.verdict.sentences import percent
from tombola.metrics.verdict.sequence import (
    Spread,
    bounds_of,
    correlation_of,
    spread_over,
    variance_of,
)
from tombola.plan.plans import NO_REWIND
from tombola.report.judging import judge_again
from tombola.store.tables import write_costs, write_results
from verdict_rows import METRIC, event, row, search

W = math.log(1.05)
NOISE = (-0.01, 0.0, 0.01)
FIRST = Level(1, None)
BAD = [(0.5, 0.51, 0.52)]
KEY = SearchKey("imp", "all", 10, "fp32")


def shifted(by, noise=NOISE):
    return tuple(by + each for each in noise)


def won(levels=1, **changes):
    return search([NOISE] * levels, reinit=BAD * levels, shuffle=BAD * levels, **changes)


# --- the noise over seeds ------------------------------------------------------------------------


def test_a_moderated_variance_by_hand():
    # v = 1e-4 and 3e-4, p = 2e-4; the seeds' deviations are orthogonal: S = E = 2e-4, r = 0, so
    # d0 = 2 and (2 * 2e-4 + 2 * 1e-4) / 4 = 1.5e-4, (4e-4 + 6e-4) / 4 = 2.5e-4
    first, second = dict(enumerate((-0.01, 0.0, 0.01))), dict(enumerate((0.01, -0.02, 0.01)))
    spread = spread_over([first, second])
    assert (spread.pooled, spread.levels) == (pytest.approx(2e-4), 2)
    assert spread.correlation == pytest.approx(0.0, abs=1e-12)
    assert spread.degrees(3) == pytest.approx(4.0)
    found = bounds_of(first, spread)
    assert found.variance == pytest.approx(1.5e-4)
    # t(0.95, 4) = 2.1318; 2.1318 * sqrt(1.5e-4 / 3) = 0.015074
    assert (found.lower, found.upper) == pytest.approx((-0.015074, 0.015074), abs=2e-6)
    assert bounds_of(second, spread).variance == pytest.approx(2.5e-4)


def test_levels_that_go_together_add_nothing():
    sample = dict(enumerate(NOISE))
    spread = spread_over([sample, {seed: d + 1 for seed, d in sample.items()}])
    assert (spread.correlation, spread.degrees(3)) == (1.0, 2.0)
    assert bounds_of(sample, spread).upper == pytest.approx(0.016858, abs=1e-6)  # the plain t


def test_the_degrees_of_freedom_are_capped_by_the_correlation():
    # (n - 1) L / (1 + (L - 1) r^2) = 2 * 6 / (1 + 5 * 0.64) = 2.857
    assert Spread(1.0, 6, 0.8).degrees(3) == pytest.approx(12 / 4.2)
    assert Spread(1.0, 6, 0.0).degrees(3) == 4.0  # d0 = 2 at most
    assert Spread(1.0, 1, 0.0).degrees(3) == 2.0  # one level: nothing to learn from others


def test_the_correlation_is_shrout_and_fleiss_icc_3_1():
    # Their example (1979, table 2): 6 targets, 4 judges, ICC(3,1) = 0.71
    table = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    levels = [{seed: float(line[judge]) for seed, line in enumerate(table)} for judge in range(4)]
    assert correlation_of(levels) == pytest.approx(0.7148, abs=1e-4)


def test_one_level_is_the_plain_t_test():
    losses = dict(enumerate((0.3, -0.1, 0.7, 0.2)))
    found = bounds_of(losses, spread_over([losses]))
    low, high = stats.t.interval(
        0.9, 3, np.mean(list(losses.values())), stats.sem([*losses.values()])
    )
    assert (found.lower, found.upper) == pytest.approx((low, high))


def test_equal_values_have_no_variance():
    assert variance_of([0.1, 0.1, 0.1]) == 0.0
    found = bounds_of(dict.fromkeys(range(3), 0.1), spread_over([dict.fromkeys(range(3), 0.1)]))
    assert (found.mean, found.lower, found.upper) == (0.1, 0.1, 0.1)


# --- one of each state, by hand ------------------------------------------------------------------


def test_wins_at_least():
    found = decide(won(), METRIC)
    assert (found["state"], found["frontier"], found["at_least"]) == ("wins", 0.2, True)
    assert (found["sparsity"], found["bracket"]) == (0.2, [0.2, None])
    # 2.920 * 0.01 / sqrt(3) = 0.016858
    level = found["levels"][0]
    assert (level["ratio"], level["lower"], level["upper"]) == pytest.approx(
        (1.0, math.exp(-0.016858), math.exp(0.016858)), abs=1e-5
    )
    assert level["wins"]
    assert found["controls"]["reinit"]["ratio"] == pytest.approx(math.exp(0.51))
    assert found["sentence"] == (
        "A ticket at 20.0% sparsity, the sparsest level searched, wins on reconstruction error (it "
        "is less than 5% worse than dense, and reinit and shuffle are worse): a winning ticket is "
        "at least that sparse."
    )


def test_wins_up_to_the_first_worse():
    rows = search([NOISE, NOISE, shifted(0.3)], reinit=BAD * 3, shuffle=BAD * 3)
    found = decide(rows, METRIC)
    assert (found["state"], found["bracket"], found["at_least"]) == (
        "wins",
        [0.2 + 0.16, 0.488],
        False,
    )
    assert [level["state"] for level in found["levels"]] == ["matches", "matches", "worse"]
    assert [level["wins"] for level in found["levels"]] == [False, True, False]
    assert found["sentence"].endswith("; at 48.8% it is worse than dense.")


def test_the_sequence_stops_at_the_first_level_that_does_not_match():
    rows = search([NOISE, shifted(0.05), NOISE], reinit=BAD * 3, shuffle=BAD * 3)
    found = decide(rows, METRIC)
    assert [level["matches"] for level in found["levels"]] == [True, False, True]
    assert (found["state"], found["bracket"], found["at_least"]) == ("wins", [0.2, None], False)
    assert "above it, up to 48.8%, 3 seeds cannot tell" in found["sentence"]


def test_matches_but_so_does_the_control():
    found = decide(search([NOISE], reinit=[shifted(0.005)], shuffle=BAD), METRIC)
    assert found["state"] == "matches, but so does reinit"
    assert (found["frontier"], found["sparsity"]) == (0.2, None)
    assert found["controls"]["reinit"] | {"p": 0, "ratio": 0} == {
        "p": 0, "ratio": 0, "difference": None, "worse": False, "matches_dense": True,
        "state": "not worse", "runs": 3, "diverged": 0,
    }  # fmt: skip
    assert "but so does reinit: these runs show no winning ticket" in found["sentence"]


def test_matches_controls_undecided():
    wide = (-0.2, 0.3, 0.1)
    found = decide(search([NOISE], reinit=[wide], shuffle=BAD), METRIC)
    assert found["state"] == "matches; controls undecided"
    assert "3 seeds cannot say that reinit is worse" in found["sentence"]
    lacking = decide(search([NOISE], reinit=BAD), METRIC)
    assert lacking["state"] == "matches; controls undecided"
    assert "but shuffle was not trained." in lacking["sentence"]


def test_matches_no_controls():
    found = decide(search([NOISE], erk=BAD), METRIC)
    assert found["state"] == "matches; no controls"
    assert found["controls"]["erk"]["worse"]  # shown, but not one of those that decide
    assert "no control was trained there (reinit and shuffle)" in found["sentence"]


def test_undecided():
    found = decide(search([shifted(W, (-0.04, 0.0, 0.04))], reinit=BAD, shuffle=BAD), METRIC)
    assert (found["state"], found["frontier"], found["controls"]) == ("undecided", None, {})
    assert found["planning"]["seeds_at_loss_seen"] is None
    assert (
        "the loss seen is at the margin, where no number of seeds will decide" in found["sentence"]
    )


def test_worse():
    found = decide(search([shifted(0.2), NOISE], reinit=BAD * 2, shuffle=BAD * 2), METRIC)
    assert (found["state"], found["frontier"], found["first_worse"]) == ("worse", None, 0.2)
    assert found["sentence"] == (
        "Already at 20.0% sparsity, the least sparse level searched, the ticket is worse than "
        "dense on reconstruction error by more than 5%: no ticket wins."
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_not_enough_runs(seeds):
    noise = NOISE[:seeds]
    found = decide(search([noise], dense=noise, reinit=[noise], shuffle=[noise]), METRIC)
    assert (found["state"], found["frontier"], found["controls"]) == ("not enough runs", None, {})
    assert found["sentence"].endswith(
        f"{seeds} training seed{'s' * (seeds > 1)}, and it takes three."
    )


def test_not_trained():
    # Dense 1.0 in each seed, best seen exp(-0.01) = 0.990: from 1.05 that is 83% of the way.
    assert decide(won(), METRIC, evidence=Evidence(trivial={METRIC: 1.05}))["state"] == "wins"
    # From 1.005 a third: (1.005 - 1) / (1.005 - 0.99005) = 33%.
    found = decide(won(), METRIC, evidence=Evidence(trivial={METRIC: 1.005}))
    assert (found["state"], found["frontier"], found["controls"]) == ("not trained", None, {})
    assert not any(level["matches"] or level["worse"] for level in found["levels"])
    assert found["sentence"] == (
        "The dense network is not trained, so no ticket of it is judged on reconstruction error: a "
        "trivial answer gets 1, and in seed 0 (3 of 3 seeds) it has come 33% of the way from that "
        "to the best seen, 0.99, and half is asked. Train longer."
    )
    worse = decide(won(), METRIC, evidence=Evidence(trivial={METRIC: 0.5}))
    assert "nothing that was trained is better than that" in worse["sentence"]


def test_one_seed_on_its_plateau_is_not_trained():
    rows = search([NOISE], dense=(0.0, 0.0, 1.8), reinit=BAD, shuffle=BAD)
    found = decide(rows, METRIC, evidence=Evidence(trivial={METRIC: math.exp(1.8)}))
    assert found["state"] == "not trained"
    assert "in seed 2 it has come 0% of the way" in found["sentence"]


def test_a_training_that_has_not_settled_is_said():
    evidence = Evidence(settling={METRIC: {"0": -0.01, "1": 0.12, "2": 0.02}})
    found = decide(won(), METRIC, evidence=evidence)
    assert (found["state"], found["learning"]["settled"]) == ("wins", False)
    assert found["sentence"].endswith(
        "The training was too short to settle (12% in the last fifth)."
    )
    settled = decide(won(), METRIC, evidence=Evidence(settling={METRIC: {"0": -0.049}}))
    assert settled["learning"]["settled"] is True
    assert decide(won(), METRIC)["learning"]["settled"] is None


def test_a_judge_that_failed_its_gate_gives_no_verdict():
    rows = won(metric="fcd-digits-0123abcd")
    gates = {"fcd": "accuracy 0.5 is below 0.95"}
    found = decide(rows, "fcd-digits-0123abcd", evidence=Evidence(gates=gates))
    assert (found["state"], found["frontier"], found["reason"]) == (
        "undecided", None, "judge failed its gate",
    )  # fmt: skip
    assert found["sentence"] == (
        "No verdict on Frechet classifier distance: its judge failed its gate (accuracy 0.5 is "
        "below 0.95)."
    )


def test_the_judges_own_noise_is_said_beside_the_margin():
    noisy = decide(won(), METRIC, evidence=Evidence(sampling_sd={METRIC: 0.02}))
    assert "more samples, not more seeds, would decide" in noisy["sentence"]
    quiet = decide(won(), METRIC, evidence=Evidence(sampling_sd={METRIC: 0.016}))
    assert "samples" not in quiet["sentence"]


def test_a_margin_that_was_changed_is_stamped():
    evidence = Evidence(margins={METRIC: 0.02}, changed={METRIC: "from 5% to 2%"})
    found = decide(won(), METRIC, evidence=evidence)
    assert found["margin"] == pytest.approx(0.02)
    assert found["sentence"].endswith("Margin changed after results were there, from 5% to 2%.")


# --- scales --------------------------------------------------------------------------------------


def test_higher_is_better_as_a_ratio_of_loss():
    rows = search([shifted(-0.3)], metric="is", reinit=[shifted(-1.0)], shuffle=[shifted(-1.0)])
    found = decide(rows, "is")
    assert (found["state"], found["judged_by"]) == ("worse", "ratio")
    assert found["levels"][0]["ratio"] == pytest.approx(math.exp(0.3))


def test_what_may_be_negative_is_judged_by_differences():
    rows = search([(-10.05, -10.0, -9.95)], dense=(-10.0,) * 3, metric="elbo", scale=float,
                  reinit=[(-12.0, -12.1, -12.2)], shuffle=[(-12.0, -12.1, -12.2)])  # fmt: skip
    found = decide(rows, "elbo")
    assert (found["state"], found["judged_by"], found["margin"]) == ("wins", "difference", 0.1)
    level = found["levels"][0]
    assert (level["ratio"], level["difference"]) == (None, pytest.approx(0.0))
    assert level["upper"] == pytest.approx(2.92 * 0.05 / math.sqrt(3), abs=1e-4)
    # One value at zero takes the logarithm from a metric of a user's own.
    own = search([(0.01, 0.0, 0.01)], dense=(1.0,) * 3, metric="mine", scale=float)
    rule = Rule("lower", 0.1)
    assert not gather(own, "mine", KEY, rule).log
    assert gather(own[:4], "mine", KEY, rule).log


def test_a_margin_outright_is_a_difference():
    rows = search([(0.9, 0.91, 0.92)], dense=(0.91,) * 3, metric="accuracy", scale=float)
    found = decide(rows, "accuracy")
    assert (found["judged_by"], found["margin"], found["margin_share"]) == (
        "difference",
        0.01,
        None,
    )


def test_a_metric_without_a_direction():
    with pytest.raises(ConfigError, match="has no direction"):
        decide(won(metric="kl"), "kl")


def test_losses_are_paired_by_seed():
    dense = (0.0, 1.0, 2.0)
    found = decide(
        search([tuple(d + e for d, e in zip(dense, NOISE, strict=True))], dense=dense), METRIC
    )
    assert found["levels"][0]["upper"] == pytest.approx(math.exp(0.016858), abs=1e-5)


# --- controls ------------------------------------------------------------------------------------


def losses_of(rows):
    return gather(rows, METRIC, KEY, Rule("lower", 0.05))


def test_at_one_level_the_control_is_held_against_the_ticket_by_welch():
    ticket, control = (0.0, 0.02, -0.01, 0.015), (0.03, 0.09, 0.05, 0.06)
    rows = search([ticket], dense=(0.0,) * 4, reinit=[control])
    found = ask_control(losses_of(rows), "ticket", "reinit", FIRST)
    expected = stats.ttest_ind(control, ticket, equal_var=False, alternative="greater").pvalue
    assert found.p == pytest.approx(expected)
    assert found.gap == pytest.approx(np.mean(control) - np.mean(ticket))


def test_the_controls_variance_is_pooled_over_its_levels():
    # Ticket: no variance. Control: v = 1e-4 at both levels, deviations orthogonal (r = 0, 2 * 2
    # degrees of freedom): t = 0.03 / sqrt(2e-4 / 3), where p = (1e-4 + 3e-4) / 2 = 2e-4.
    flat = (0.0, 0.0, 0.0)
    rows = search([flat, flat], reinit=[(0.02, 0.03, 0.04), (0.04, 0.01, 0.04)])
    found = ask_control(losses_of(rows), "ticket", "reinit", FIRST)
    assert found.p == pytest.approx(stats.t.sf(0.03 / math.sqrt(2e-4 / 3), 4), rel=1e-6)


def test_a_dead_control_counts_as_bad_and_not_as_noise():
    good = [(0.10, 0.11, 0.12)] * 4
    dead = [(0.10, 0.11, 3.0), *good[1:]]
    p = [
        ask_control(losses_of(search([NOISE] * 4, reinit=each)), "ticket", "reinit", FIRST).p
        for each in (good, dead)
    ]
    assert p[1] < 0.025
    assert p[1] < 10 * p[0]


def test_the_cap_by_hand():
    # Median 2; the median over levels of the median absolute deviations (1, 3) is 2.
    levels = [[1.0, 2.0, 9.0], [0.0, 3.0, 6.0]]
    scale = robust_deviation(levels)
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((4000, 2, 3))
    raw = np.median(np.abs(draws - np.median(draws, 2, keepdims=True)), 2)
    assert scale == pytest.approx(2 / np.median(raw, 1).mean(), rel=0.05)
    capped = cap_values(dict(enumerate(levels[0])), 1.0)
    assert capped == {0: 1.0, 1: 2.0, 2: 4.5}
    assert cap_values({0: 1.0, 1: math.inf, 2: 2.0}, 0.0) == {0: 1.0, 1: 1.5, 2: 1.5}


@pytest.mark.parametrize("levels", [1, 6, 20])
def test_the_robust_deviation_is_right_on_average(levels):
    rng = np.random.default_rng(2)
    found = [robust_deviation(rng.normal(0, 3, (levels, 3)).tolist()) for _ in range(1500)]
    assert np.mean(found) == pytest.approx(3.0, rel=0.06)


def test_controls_that_all_diverged_are_worse():
    rows = search([NOISE], shuffle=BAD)
    rows += [row("reinit", seed, 1, 1, "diverged", n=None) for seed in range(3)]
    found = decide(rows, METRIC)
    assert (found["state"], found["controls"]["reinit"]["p"]) == ("wins", 0.0)
    assert found["controls"]["reinit"]["diverged"] == 3


def test_the_rank_test_by_enumeration():
    for counts in ((3, 3, 3), (2, 2, 2, 2, 2), (1, 3, 2)):
        vectors = list(itertools.product(*(range(1, m + 2) for m in counts)))
        for total in range(len(counts), sum(counts) + len(counts) + 1):
            share = sum(sum(v) <= total for v in vectors) / len(vectors)
            assert rank_p(counts, total) == pytest.approx(share)
    assert rank_p((3, 3, 3), 3) == pytest.approx(1 / 64)
    assert rank_p((2,) * 5, 6) == pytest.approx(6 / 243)


def test_ranks_count_ties_and_divergences():
    draws = {0: {1: 0.0, 2: 1.0}, 1: {1: 2.0, 2: math.inf}, 2: {1: 3.0, 2: 3.0}}
    ticket = dict.fromkeys(range(3), 0.0)
    assert rank_test(ticket, draws) == pytest.approx(rank_p((2, 2, 2), 4))  # one tie
    assert math.isnan(rank_test({0: 0.0, 1: 0.0}, draws))  # two seeds


def drawn(controls, **changes):
    """Rows of the design whose controls are drawn three times at the frontier alone."""
    rows = [{"arm": "dense", "seed": s, "sparsity": 0, "value": 1.0} for s in range(3)]
    for level, sparsity in enumerate((0.5, 0.9)):
        rows += [{"arm": "ticket", "seed": s, "sparsity": sparsity,
                  "value": math.exp(NOISE[s] + level)} for s in range(3)]  # fmt: skip
    for name, value in controls.items():
        rows += [{"arm": name, "seed": s, "sparsity": 0.5, "draw": d, "value": value + 0.01 * d}
                 for s in range(3) for d in (1, 2, 3)]  # fmt: skip
    return [{"metric": "fid", **each, **changes} for each in rows]


def test_controls_drawn_at_the_frontier_are_ranked():
    found = tombola.verdict(drawn({"reinit": 1.5, "shuffle": 1.4}))["verdicts"]["fid"]
    assert (found["state"], found["bracket"]) == ("wins", [0.5, 0.9])
    assert found["controls"]["reinit"]["p"] == pytest.approx(1 / 64)
    alike = tombola.verdict(drawn({"reinit": 1.5, "shuffle": 0.98}))["verdicts"]["fid"]
    assert alike["state"] == "matches, but so does shuffle"


# --- divergence ----------------------------------------------------------------------------------


def test_a_diverged_ticket_makes_its_level_worse():
    rows = event(won(2), "diverged", "ticket", 1, 2)
    found = decide(rows, METRIC)
    assert [level["state"] for level in found["levels"]] == ["matches", "worse"]
    assert (found["levels"][1]["diverged"], found["levels"][1]["upper"]) == (1, None)
    assert found["sentence"].endswith("at 36.0% it is worse than dense (1 of 3 seeds diverged).")


def test_rounds_after_a_divergence_are_worse_but_a_chain_that_was_stopped_is_not():
    rows = event(event(won(3), "diverged", "ticket", 1, 2), "not-run", "ticket", 1, 3)
    assert [level["state"] for level in decide(rows, METRIC)["levels"]][1:] == ["worse", "worse"]
    stopped = won(3)
    for seed in range(3):
        stopped = event(stopped, "not-run", "ticket", seed, 3)
    level = decide(stopped, METRIC)["levels"][2]
    assert (level["state"], level["seeds"], level["ratio"]) == ("undecided", 0, None)


def test_a_value_that_is_not_finite_counts_as_diverged():
    rows = [r for r in won() if (r.arm, r.seed) != ("ticket", 0)]
    rows.append(row("ticket", 0, 1, math.nan))
    assert decide(rows, METRIC)["state"] == "worse"


def test_a_diverged_dense_run_takes_its_seed_out():
    rows = event(won(), "diverged", "dense", 0, 0)
    found = decide(rows, METRIC)
    assert (found["state"], found["seeds"], found["dense_diverged"]) == ("not enough runs", 2, 1)
    assert "2 training seeds (1 more diverged already when dense)" in found["sentence"]


# --- searches, levels, rows ----------------------------------------------------------------------


def test_levels_are_read_by_sparsity_not_by_round():
    rows = [
        row(r.arm, r.seed, r.round, r.value, sparsity={0: 0.0, 1: 0.9, 2: 0.5}[r.round])
        for r in search([shifted(0.3), NOISE])
    ]
    assert [level["round"] for level in decide(rows, METRIC)["levels"]] == [2, 1]


def test_shares_of_channels_are_levels_of_one_search():
    common = {"method": "early-bird", "rewind_steps": None}
    rows = [row("dense", s, 0, 1.0, **common) for s in range(3)]
    for compress, by in ((0.2, 0.0), (0.4, 0.0), (0.8, 0.5)):
        place = {"compress": compress, "sparsity": compress, "sparsity_all": compress, **common}
        for arm, more in (("compact", 0.0), ("random-channels", 0.4), ("thin-flops", 0.5),
                          ("thin-parameters", 0.6)):  # fmt: skip
            rows += [row(arm, s, 1, math.exp(by + more + NOISE[s]), **place) for s in range(3)]
    summary = summarise(rows)
    assert [*summary["arms"]] == ["early-bird/all/r0/fp32"]
    found = summary["verdicts"][METRIC]
    assert (found["state"], found["bracket"], found["arm"]) == ("wins", [0.4, 0.8], "compact")
    assert [(lv["round"], lv["compress"]) for lv in found["levels"]] == [
        (1, 0.2),
        (2, 0.4),
        (3, 0.8),
    ]
    assert found["sentence"].startswith("A ticket at 40.0% sparsity (compress 0.4) wins")
    pairs = [each for each in summary["comparisons"] if each["differs"] == "channels against thin"]
    assert [each["b"].rpartition(": ")[2] for each in pairs] == ["thin-flops", "thin-parameters"]
    assert pairs[0]["ratio"] == pytest.approx(math.exp(-0.5))


def test_a_thin_network_that_does_better_is_said_with_its_p():
    common = {"method": "early-bird", "rewind_steps": None, "compress": 0.5, "sparsity": 0.5}
    rows = [row("dense", s, 0, 1.0, method="early-bird", rewind_steps=None) for s in range(3)]
    rows += [row("compact", s, 1, 2 + 0.01 * s, **common) for s in range(3)]
    rows += [row("thin-flops", s, 1, 1.5 - 0.01 * s, **common) for s in range(3)]
    found = summarise(rows)["verdicts"][METRIC]
    assert "Over all levels thin-flops (p 0.00" in found["sentence"]
    assert found["sentence"].endswith("does better: train the thin network.")
    sizes = Evidence(sizes={"early-bird/all/r0/fp32": 2.0})
    alike = [row("compact", s, 1, 1.0 + 0.001 * s, **common) for s in range(3)]
    alike += [row("thin-parameters", s, 1, 2 + 0.01 * s, **common) for s in range(3)]
    kept = summarise([*rows[:3], *alike], evidence=sizes)["verdicts"][METRIC]
    assert kept["controls"]["thin-parameters"]["times_as_large"] == 2.0


def test_dense_runs_are_shared_and_searches_kept_apart():
    rows = won() + [row("ticket", s, 1, 1.5 + NOISE[s], rewind_steps=0) for s in range(3)]
    summary = summarise(rows)
    states = {name: found[METRIC]["state"] for name, found in summary["arms"].items()}
    assert states == {"imp/all/r10/fp32": "wins", "imp/all/r0/fp32": "worse"}
    assert [search_name(key) for key in searches_in(rows)] == [*states]
    (pair,) = summary["comparisons"]
    assert (pair["a"], pair["b"], pair["differs"]) == (*states, "rewind_steps")
    assert pair["p"] < 0.01


def test_the_judged_value_is_the_one_at_the_last_step():
    rows = won() + [row("ticket", s, 1, 9.0, step=50) for s in range(3)]
    assert decide(rows, METRIC)["state"] == "wins"


def test_rows_in_any_order_and_json():
    rows = search([NOISE, NOISE, shifted(0.3)], reinit=BAD * 3, shuffle=BAD * 3)
    assert decide(rows[::-1], METRIC) == decide(rows, METRIC)
    summary = summarise(rows)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["primary"], summary["rule"]) == (METRIC, 2)
    assert summarise([])["verdicts"] == {}


@pytest.mark.parametrize(
    ("sparsity", "text"),
    [(0.8926, "89.3%"), (0.0, "0.0%"), (0.99951, "99.95%"), (0.99999, "99.999%"), (1.0, "100.0%")],
)
def test_percent_never_rounds_up_to_all(sparsity, text):
    assert percent(sparsity) == text


# --- comparisons ---------------------------------------------------------------------------------


def against(a, b, dense=(0.0,) * 4, **changes):
    rows = search(a, dense=dense)
    other = search(b, dense=dense)
    rows += [row(r.arm, r.seed, r.round, r.value, **changes) for r in other]
    return [each for each in summarise(rows)["comparisons"] if each["metric"] == METRIC]


def test_a_comparison_over_levels_is_a_t_test_of_seed_means():
    a = [(0.10, 0.12, 0.09, 0.11), (0.2, 0.23, 0.21, 0.19)]
    b = [(0.13, 0.14, 0.14, 0.12), (0.3, 0.26, 0.24, 0.25)]
    (found,) = against(a, b, method="one-shot")
    gaps = np.mean(np.array(a) - np.array(b), axis=0)
    test = stats.ttest_1samp(gaps, 0.0)
    assert (found["p"], found["ratio"]) == pytest.approx((test.pvalue, math.exp(gaps.mean())))
    low, high = test.confidence_interval()
    assert found["interval"] == pytest.approx([math.exp(low), math.exp(high)])
    assert (found["levels"], found["differs"]) == (2, "method")
    by = found["by_level"]
    assert [level["sparsity"] for level in by] == [0.2, 0.36]
    small, large = sorted(by, key=lambda level: level["p"])
    assert small["p_holm"] == pytest.approx(2 * small["p"])
    assert large["p_holm"] == pytest.approx(max(2 * small["p"], large["p"]))


def test_only_equal_levels_of_arms_that_differ_in_one_thing_are_compared():
    a, b = [(0.1, 0.2, 0.3, 0.4)], [(0.5, 0.5, 0.5, 0.4)]
    assert len(against(a, b, precision="bf16")) == 1
    assert against(a, b, precision="bf16", method="one-shot") == []
    assert against(a, b, method="one-shot", sparsity=0.3) == []


def test_methods_without_a_rewind_point_differ_from_others_in_the_method_alone():
    a, b = [(0.1, 0.2, 0.3, 0.4)], [(0.5, 0.5, 0.5, 0.4)]
    (found,) = against(a, b, method="random", rewind_steps=0)
    assert found["differs"] == "method"
    assert against(a, b, method="one-shot", rewind_steps=0) == []
    assert against(a, b, method="random", rewind_steps=0, precision="bf16") == []
    assert {*NEVER_REWOUND} == {*NO_REWIND}


def test_networks_cut_by_the_same_share_are_compared_whatever_weights_are_left():
    rows = []
    for precision, sparsity, by in (("fp32", 0.37, 0.0), ("bf16", 0.36, 0.1)):
        common = {"method": "early-bird", "rewind_steps": None, "precision": precision}
        rows += [row("dense", s, 0, 1.0, **common) for s in range(3)]
        place = {"compress": 0.2, "sparsity": sparsity, "sparsity_all": sparsity}
        rows += [row("compact", s, 1, math.exp(by + NOISE[s]), **place, **common) for s in range(3)]
    (found,) = summarise(rows)["comparisons"]
    assert (found["differs"], found["levels"]) == ("precision", 1)
    assert found["ratio"] == pytest.approx(math.exp(-0.1))


def test_arms_that_prune_other_networks_are_compared_at_equal_sparsity_of_all():
    a, b = [(0.1, 0.2, 0.3, 0.4)], [(0.5, 0.5, 0.5, 0.4)]
    (near,) = against(a, b, networks="decoder", sparsity=0.5, sparsity_all=0.19)
    assert near["by_level"][0]["interpolated"] is False
    assert against(a, b, networks="decoder", sparsity_all=0.3) == []
    # Between levels at 0.1 and 0.3 of all parameters, 0.18 lies at 0.4 of the way.
    rows = search(a, dense=(0.0,) * 4)
    for number, (share, xs) in enumerate(((0.1, (0.0,) * 4), (0.3, (1.0, 1.0, 1.0, 0.9))), 1):
        rows += [row("ticket", s, number, math.exp(x), networks="decoder", sparsity=share * 2,
                     sparsity_all=share) for s, x in enumerate(xs)]  # fmt: skip
    (found,) = [e for e in summarise(rows)["comparisons"] if e["metric"] == METRIC]
    assert found["by_level"][0]["interpolated"] is True
    gaps = np.array(a[0]) - np.array([0.4, 0.4, 0.4, 0.36])
    assert found["ratio"] == pytest.approx(math.exp(gaps.mean()))


# --- planning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_power_is_that_of_the_noncentral_t(seeds):
    spread = Spread(0.05**2, 1, 1.0)
    expected = stats.nct.sf(
        stats.t.ppf(0.95, seeds - 1), seeds - 1, (W - 0.01) * math.sqrt(seeds) / 0.05
    )
    assert match_power(seeds, W, 0.01, spread) == pytest.approx(expected, rel=1e-6)


def test_seeds_to_match_are_the_fewest_with_80_percent_power():
    spread = Spread(0.05**2, 6, 0.5)
    for loss in (0.0, 0.03, 0.06):
        seeds = seeds_to_match(math.log(1.1), loss, spread)
        assert match_power(seeds, math.log(1.1), loss, spread) >= 0.8
        assert seeds == 3 or match_power(seeds - 1, math.log(1.1), loss, spread) < 0.8
    assert seeds_to_match(W, W, spread) is None
    assert seeds_to_match(W, 0.0, Spread(0.0, 6, 0.5)) == 3
    assert seeds_to_match(W, W - 1e-9, spread) is None


# --- anybody's tables ----------------------------------------------------------------------------


CSV = """arm,seed,sparsity,metric,value,model
full,0,0,psnr,30,a
full,1,0,psnr,31,a
full,2,0,psnr,29,a
sparse,0,0.5,psnr,30.2,a
sparse,1,0.5,psnr,31.1,a
sparse,2,0.5,psnr,29,a
fresh,0,0.5,psnr,20,a
fresh,1,0.5,psnr,21,a
fresh,2,0.5,psnr,22,a
"""
WORDS = {"better": "higher", "margin": 0.05, "dense": "full", "ticket": "sparse",
         "controls": ("fresh",)}  # fmt: skip


def test_anybodys_table(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    found = tombola.verdict(path, **WORDS)["verdicts"]["psnr"]
    assert (found["state"], found["frontier"], found["margin_share"]) == ("wins", 0.5, 0.05)
    with pytest.raises(ConfigError, match="say which is better"):
        tombola.verdict(path, dense="full", ticket="sparse")
    with pytest.raises(ConfigError, match="give a margin"):
        tombola.verdict(path, better="higher", dense="full", ticket="sparse")
    with pytest.raises(ConfigError, match="call that arm 'ticket'"):
        tombola.verdict(path, better="higher", margin=0.05)
    with pytest.raises(ConfigError, match="no row is of metric 'fid'; there are: psnr"):
        tombola.verdict(path, metric="fid")


def test_other_columns_tell_variants_apart(tmp_path):
    both = CSV + "".join(line.replace(",a", ",b") + "\n" for line in CSV.splitlines()[1:])
    path = tmp_path / "mine.csv"
    path.write_text(both.replace("sparse,0,0.5,psnr,30.2,b", "sparse,0,0.5,psnr,3,b"))
    arms = tombola.verdict(path, **WORDS)["arms"]
    assert [found["psnr"]["state"] for found in arms.values()] == ["wins", "undecided"]
    assert list(arms) == ["model=a", "model=b"]


def test_a_column_that_tells_every_row_apart_is_refused():
    rows = drawn({})
    with pytest.raises(ConfigError, match=r"column .hours. has 9 values .* leave that column out"):
        tombola.verdict([{**each, "hours": place} for place, each in enumerate(rows)])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("sparse,0,half,psnr,1,a", "line 11, column sparsity: 'half' is no number"),
        ("sparse,0,1.5,psnr,1,a", "line 11, column sparsity: '1.5'; it takes a number from 0 to 1"),
        ("sparse,x,0.5,psnr,1,a", "line 11, column seed: 'x' is no number"),
        ("sparse,0.5,0.5,psnr,1,a", "line 11, column seed: '0.5' is no whole number"),
        ("sparse,0,0.5,psnr,much,a", "line 11, column value: 'much' is no number"),
        ("sparse,0,0.5,,1,a", "line 11: no metric"),
        ("sparse,0,0.5,psnr", "line 11: 6 columns"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, text):
    path = tmp_path / "mine.csv"
    path.write_text(CSV + line + "\n")
    with pytest.raises(DataError, match=text.replace("(", r"\(")):
        tombola.verdict(path, **WORDS)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        tombola.verdict(tmp_path / "none.csv")
    path = tmp_path / "mine.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no CSV file"):
        tombola.verdict(path)
    path.write_text("arm,seed,sparsity,metric,value\n")
    with pytest.raises(DataError, match="has no rows"):
        tombola.verdict(path)


# --- folders judged again ------------------------------------------------------------------------


def folder(tmp_path, rows, **config):
    write_results(tmp_path / "results.csv", rows)
    write_costs(tmp_path / "costs.csv", [])
    resolved = {"margins": fixed_margins(), "task": "linear-ae"}
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "resolved": resolved}))
    summary = {"primary": METRIC, "trivial": {METRIC: 3.0}, **config}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_folder_is_judged_again_with_another_margin_and_it_is_said(tmp_path):
    out = folder(tmp_path, search([shifted(0.03)], reinit=BAD, shuffle=BAD))
    assert judge_again(out) is True
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["verdicts"][METRIC]["state"], summary["rule"]) == ("wins", 2)
    assert judge_again(out) is False  # by today's rule already
    judge_again(out, {METRIC: "2%"})
    found = json.loads((out / "summary.json").read_text())["verdicts"][METRIC]
    assert (found["state"], found["margin_share"]) == ("undecided", 0.02)
    assert found["margin_changed"] == "from 5% to 2%"
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["verdict"] == {METRIC: 0.02}
    assert config["resolved"]["margins_first"] == fixed_margins()
    judge_again(out, {METRIC: 0.05})  # back: nothing is changed against the first
    assert json.loads((out / "summary.json").read_text())["verdicts"][METRIC]["state"] == "wins"
    with pytest.raises(ConfigError, match="knows no margin of 'elbow'"):
        judge_again(out, {"elbow": 0.1})


def test_a_folder_that_is_judged_again_keeps_its_first_search(tmp_path):
    rows = [replace(r, precision="bf16") for r in search([NOISE])] + search([shifted(0.5)])
    arms = {"imp/all/r10/bf16": {}, "imp/all/r10/fp32/c0.2": {METRIC: {"state": "wins"}}}
    out = folder(tmp_path, rows, arms=arms, verdicts=arms["imp/all/r10/fp32/c0.2"])
    judge_again(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdicts"] == summary["arms"]["imp/all/r10/fp32"]
    assert summary["verdicts"][METRIC]["state"] == "worse"


def test_a_table_in_a_folder_of_ours_is_judged_with_what_the_folder_knows(tmp_path):
    out = folder(tmp_path, won(), trivial={METRIC: 1.005})
    judge_again(out)
    kept = json.loads((out / "summary.json").read_text())["verdicts"]
    assert kept[METRIC]["state"] == "not trained"
    assert json.loads(json.dumps(tombola.verdict(out / "results.csv")["verdicts"])) == kept
    assert tombola.verdict(out)["verdicts"][METRIC]["state"] == "not trained"
    elsewhere = tmp_path / "copy.csv"
    elsewhere.write_bytes((out / "results.csv").read_bytes())
    assert tombola.verdict(elsewhere)["verdicts"][METRIC]["state"] == "wins"


def test_torch_is_not_imported():
    code = "import sys, tombola; tombola.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
