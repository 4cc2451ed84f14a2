"""What does a table of results say? Every verdict of every search, decided from rows and evidence.

States: *not trained* (dense has not learnt), *wins*, *matches, but so does CONTROL*, *matches;
controls undecided*, *matches; no controls*, *undecided* (the first level neither matches nor is
worse), *worse* (already at the first level), *not enough runs* (fewer than three seeds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tombola.errors import ConfigError
from tombola.metrics.rules import PRIMARY_ORDER, Rule, metric_kind, rule_of
from tombola.metrics.verdict.comparisons import compare_searches, compare_with_thin
from tombola.metrics.verdict.learning import has_settled, look_at_dense
from tombola.metrics.verdict.losses import (
    OWN_ARMS,
    Level,
    Losses,
    Measurement,
    SearchKey,
    belongs,
    default_controls,
    gather,
    number_or_none,
    own_arm,
    search_name,
    searches_in,
)
from tombola.metrics.verdict.opponents import Opponent, ask_control
from tombola.metrics.verdict.planning import plan_seeds
from tombola.metrics.verdict.sentences import advise_thin, write_sentence
from tombola.metrics.verdict.sequence import (
    LEAST_SEEDS,
    Bounds,
    Spread,
    bounds_of,
    frontier_of,
    spread_over,
    variance_of,
)

RULE_VERSION = 2
"""Of the rule that a summary.json was decided by."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict must know besides the rows; nobody writes into a verdict afterwards."""

    margins: Mapping[str, float] = field(default_factory=dict)
    """By kind or name of a metric, over the table's own."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """Rules of metrics that only this search knows."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """Kind of metric -> what was changed of its margin after results were there."""
    gates: Mapping[str, str] = field(default_factory=dict)
    """Kind of metric -> why the network that measures it may not be believed."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Search -> how many times as large as its ticket thin-parameters is, where it is larger."""
    trivial: Mapping[str, float] = field(default_factory=dict)
    """Metric -> what a trivial answer gets."""
    settling: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)
    """Metric -> seed -> change of dense over the last fifth of its training, as a share."""
    sampling_sd: Mapping[str, float] = field(default_factory=dict)
    """Metric -> deviation of one dense network judged anew on other samples."""

    def rule(self, metric: str) -> Rule | None:
        """The rule of a metric in this search, its margin overridden; None if it has none."""
        kind = metric_kind(metric)
        own = self.rules.get(metric, self.rules.get(kind))
        if own is None:
            known = {name: m for name, m in self.margins.items() if name not in self.rules}
            return rule_of(metric, known)
        return Rule(own.better, self.margins.get(metric, self.margins.get(kind, own.margin)),
                    own.share)  # fmt: skip


def decide(
    rows: Iterable[Measurement],
    metric: str,
    *,
    search: SearchKey | None = None,
    controls: Sequence[str] | None = None,
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """The verdict on one metric of one search (default: the first among the rows), JSON-ready.

    ``controls``: the default controls, each of which must be worse (default: those of the arm).
    Bounds are ratios of loss (1.05: 5% worse than dense) where the metric is judged by ratios, else
    differences in its own unit, positive = worse. ConfigError for a metric without a direction.
    """
    evidence, rows = evidence or Evidence(), list(rows)
    rule = evidence.rule(metric)
    if rule is None:
        raise ConfigError(f"metric {metric!r} has no direction, so it has a curve but no verdict")
    key = search or next(iter(searches_in(rows)), SearchKey("", "", None, ""))
    losses = gather(rows, metric, key, rule)
    return _judge(losses, metric, key, evidence, controls)


def _judge(
    losses: Losses,
    metric: str,
    key: SearchKey,
    evidence: Evidence,
    controls: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The verdict on losses that were gathered."""
    arm = own_arm(key)
    needed = default_controls(arm) if controls is None else tuple(controls)
    above = [losses.above_dense(arm, level) for level in losses.levels]
    spread = spread_over(above)
    bounds = [bounds_of(sample, spread) for sample in above]
    seeds = {seed for sample in above for seed in sample}
    place = frontier_of(bounds, losses.width)
    learning = look_at_dense(losses, evidence.trivial.get(metric), evidence.settling.get(metric))
    gate = evidence.gates.get(metric_kind(metric))
    asked = _ask_all(losses, arm, needed, None if place is None else losses.levels[place])
    if not learning.learnt:
        state, reason = "not trained", None
    elif gate is not None:
        state, reason = "undecided", "judge failed its gate"
    elif len(seeds) < LEAST_SEEDS:
        state, reason = "not enough runs", None
    else:
        state, reason = _state(bounds, losses.width, asked, needed)
    withheld = gate is not None or state in ("not trained", "not enough runs")
    place, times = None if withheld else place, evidence.sizes.get(search_name(key))
    result: dict[str, Any] = {
        "state": state,
        "reason": reason,
        **_bracket(losses, bounds, place, state, withheld),
        "metric": metric,
        "arm": arm,
        "better": losses.rule.better,
        "judged_by": "ratio" if losses.log else "difference",
        "margin": number_or_none(_margin(losses)),
        "margin_share": losses.rule.margin if losses.rule.share else None,
        "margin_changed": evidence.changed.get(metric_kind(metric)),
        "seeds": len(seeds),
        "dense_mean": number_or_none(losses.dense_mean),
        "dense_sd": number_or_none(_deviation(losses, seeds)),
        "dense_diverged": len(losses.dense_diverged),
        "needed": list(needed),
        "controls": {} if withheld else _opponents(losses, asked, times),
        "planning": _planning(losses, bounds, spread),
        "learning": learning.as_dict(has_settled(losses, learning.moved)),
        "sampling_sd": evidence.sampling_sd.get(metric),
        "gate": gate,
    }
    result["sentence"] = write_sentence(result)
    return result


def _bracket(
    losses: Losses, bounds: Sequence[Bounds], place: int | None, state: str, withheld: bool
) -> dict[str, Any]:
    """Every level, and between which of them the true frontier lies."""
    arm = "compact" if "compact" in losses.arms else "ticket"
    levels = [
        _level(losses, arm, level, found, withheld)
        for level, found in zip(losses.levels, bounds, strict=True)
    ]
    for number, level in enumerate(levels):
        # The shares of channels are all of round 1: as levels of one search they are counted.
        level["round"] = level["round"] if level["compress"] is None else number + 1
        level["wins"] = state == "wins" and number == place
    frontier = None if place is None else levels[place]["sparsity"]
    first_worse = next((level["sparsity"] for level in levels if level["worse"]), None)
    return {
        "frontier": frontier,
        "first_worse": first_worse,
        "at_least": place is not None and place == len(levels) - 1,
        # Keys of older versions, derived from these.
        "sparsity": frontier if state == "wins" else None,
        "matches_up_to": frontier,
        "bracket": [frontier, first_worse],
        "levels": levels,
    }


def _opponents(
    losses: Losses, asked: Mapping[str, Opponent], times: float | None
) -> dict[str, Any]:
    """Every control at the frontier, JSON-ready; how many times too large thin-parameters is."""
    found = {name: _control(losses, each) for name, each in asked.items()}
    if times is not None and "thin-parameters" in found:
        found["thin-parameters"]["times_as_large"] = times
    return found


def _ask_all(
    losses: Losses, arm: str, needed: Sequence[str], frontier: Level | None
) -> dict[str, Opponent]:
    """The controls that were trained at the frontier, those that decide first."""
    if frontier is None:
        return {}
    others = [name for name in losses.arms if name not in (arm, *needed)]
    found = {name: ask_control(losses, arm, name, frontier) for name in (*needed, *others)}
    return {name: control for name, control in found.items() if control is not None}


def _state(
    bounds: Sequence[Bounds],
    width: float,
    asked: Mapping[str, Opponent],
    needed: Sequence[str],
) -> tuple[str, str | None]:
    """(state, what it is for) of a search whose dense network has learnt."""
    if frontier_of(bounds, width) is None:
        worse = bool(bounds) and bounds[0].is_worse(width)
        return ("worse", None) if worse else ("undecided", "noise")
    those = {name: asked[name] for name in needed if name in asked}
    open_ones = [name for name, control in those.items() if not control.is_worse]
    alike = [name for name in open_ones if those[name].matches_dense]
    if alike:
        return f"matches, but so does {alike[0]}", None
    if not those:
        return "matches; no controls", None
    decided = not open_ones and len(those) == len(needed)
    return ("wins", None) if decided else ("matches; controls undecided", None)


def _level(
    losses: Losses, arm: str, level: Level, bounds: Bounds, withheld: bool
) -> dict[str, Any]:
    """One level, JSON-ready; what it says of dense is left out where no verdict is given."""
    matches = not withheld and bounds.matches(losses.width)
    worse = not withheld and bounds.is_worse(losses.width)
    back = math.exp if losses.log else float
    numbers = (number_or_none(back(v)) for v in (bounds.mean, bounds.lower, bounds.upper))
    middle, lower, upper = numbers
    sign = 1.0 if losses.rule.better == "lower" else -1.0
    pairs = [
        sign * (losses.value_of(x) - losses.value_of(losses.dense[seed]))
        for seed, x in losses.first_at(arm, level).items()
        if math.isfinite(x)
    ]
    return {
        "round": level.round,
        "compress": level.compress,
        "sparsity": losses.sparsity[level][0],
        "sparsity_all": losses.sparsity[level][1],
        "ratio": middle if losses.log else None,
        "lower": lower,
        "upper": upper,
        "difference": math.fsum(pairs) / len(pairs) if pairs else None,
        "seeds": bounds.seeds,
        "diverged": bounds.diverged,
        "matches": matches,
        "worse": worse,
        "state": "matches" if matches else "worse" if worse else "undecided",
    }


def _control(losses: Losses, control: Opponent) -> dict[str, Any]:
    gap = math.exp(control.gap) if losses.log else control.gap
    worse = control.is_worse
    return {
        "p": number_or_none(control.p),
        "ratio": number_or_none(gap) if losses.log else None,
        "difference": None if losses.log else number_or_none(gap),
        "worse": worse,
        "matches_dense": control.matches_dense,
        "state": "worse" if worse else "not worse" if control.matches_dense else "undecided",
        "runs": control.runs,
        "diverged": control.diverged,
    }


def _planning(losses: Losses, bounds: Sequence[Bounds], spread: Spread) -> dict[str, Any]:
    """Seeds for the first level that neither matches nor is worse, else for the last match."""
    width = losses.width
    of = next((b for b in bounds if not b.matches(width) and not b.is_worse(width)), None)
    matching = [b for b in bounds if b.matches(width)]
    of = of or next(reversed(matching or bounds), None)
    return plan_seeds(width, math.nan if of is None else of.mean, spread)


def _margin(losses: Losses) -> float:
    """The margin in the metric's own unit."""
    rule = losses.rule
    return rule.margin * abs(losses.dense_mean) if rule.share else rule.margin


def _deviation(losses: Losses, seeds: Iterable[int]) -> float:
    return math.sqrt(variance_of([losses.value_of(losses.dense[seed]) for seed in seeds]))


def summarise(
    rows: Iterable[Measurement],
    *,
    controls: Sequence[str] | None = None,
    primary: str | None = None,
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Every verdict of a results.csv, as summary.json has them.

    {"verdicts": {metric: ...}, "primary", "arms", "comparisons", "rule"}: ``verdicts`` are those of
    the first search, ``arms`` maps each search's name to its own. ``controls``: the default
    controls of all searches (default: those of each one's arm). ``primary`` names a metric or a
    kind; by default a Frechet distance, else the reconstruction error, else the ELBO; null without
    any.
    """
    rows, evidence = list(rows), evidence or Evidence()
    searches = searches_in(rows)
    of = {key: [row for row in rows if belongs(row, key)] for key in searches}
    arms: dict[str, dict[str, Any]] = {search_name(key): {} for key in searches}
    comparisons: list[dict[str, Any]] = []
    for metric in sorted({row.metric for row in rows if row.arm in ("dense", *OWN_ARMS)}):
        rule = evidence.rule(metric)
        if rule is None:
            continue
        losses = {key: gather(of[key], metric, key, rule) for key in searches}
        comparisons += compare_searches(metric, losses)
        for key, found in losses.items():
            if not found.dense and own_arm(key) not in found.arms:
                continue
            verdict = _judge(found, metric, key, evidence, controls)
            against = compare_with_thin(metric, key, found)
            comparisons += against
            verdict["sentence"] += advise_thin(verdict, against)
            arms[search_name(key)][metric] = verdict
    verdicts = next(iter(arms.values()), {})
    return {
        "verdicts": verdicts,
        "primary": choose_primary(verdicts, primary),
        "arms": arms,
        "comparisons": comparisons,
        "rule": RULE_VERSION,
    }


def choose_primary(verdicts: Mapping[str, Any], wished: str | None = None) -> str | None:
    """The metric that decides a search, of those that were judged; None without any."""
    order = (wished, *PRIMARY_ORDER) if wished else PRIMARY_ORDER
    for name in order:
        for metric in verdicts:
            if name in (metric, metric_kind(metric)):
                return metric
    return next(iter(verdicts), None)
