"""How sparse does a ticket still win? The verdict of docs/method.md over training seeds.

d is the loss of quality of the ticket against the dense run of its seed, positive = worse. A level
*matches* if the one-sided 95% upper t bound of d is below the margin, is *worse* if the lower bound
is above it, else *undecided*. It *wins* if it matches and every default control that was asked for
is worse than the ticket: paired by seed, one-sided p < 0.025 after Holm over the levels.

Choices where the definition leaves room:
- A dense run that diverged takes its seed out of everything, and is counted.
- A diverged ticket, and each later round of its chain that was not run, makes its level worse.
- A diverged control counts as worse than the ticket of its seed: see ``intervals.p_positive``.
- A value that is not finite counts as diverged. A level with fewer than three seeds is undecided.
- "So does CONTROL" is said only if that control itself matches dense at the ticket's highest
  matching level. If it neither matches dense nor is shown worse than the ticket, the level, and so
  the verdict, is undecided. A control matches, and is tested, on three seeds or more.
- Without a default control matching cannot be told from winning: undecided, and so it is said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tombola.errors import ConfigError
from tombola.metrics.intervals import (
    LEAST_SEEDS,
    decidable_margin,
    deviation,
    interval,
    seeds_for_margin,
)
from tombola.metrics.levels import (
    DEFAULT_CONTROLS,
    OWN_ARMS,
    Losses,
    Measurement,
    SearchKey,
    belongs,
    gather,
    needed_of,
    number_or_none,
    own_arm,
    read_levels,
    search_key,
)
from tombola.metrics.rules import (
    CURVE_ONLY,
    PRIMARY_ORDER,
    Rule,
    metric_kind,
    register_rule,
    rule_of,
)
from tombola.metrics.sentences import sentence

__all__ = [
    "CURVE_ONLY",
    "DEFAULT_CONTROLS",
    "OWN_ARMS",
    "Rule",
    "SearchKey",
    "arm_name",
    "decidable_margin",
    "interval",
    "metric_kind",
    "register_rule",
    "rule_of",
    "search_key",
    "searches_in",
    "seeds_for_margin",
    "summarise",
    "verdict",
]


def arm_name(key: SearchKey) -> str:
    """``method/networks/r<rewind>/<precision>``, and ``/c<compress>`` where it applies."""
    name = f"{key.method}/{key.networks}/r{key.rewind_steps or 0}/{key.precision}"
    return name if key.compress is None else f"{name}/c{key.compress:g}"


def searches_in(rows: Iterable[Measurement]) -> list[SearchKey]:
    """The searches whose tickets are among the rows, in order of appearance."""
    return list(dict.fromkeys(search_key(row) for row in rows if row.arm in OWN_ARMS))


def withhold_levels(levels: Iterable[dict[str, Any]]) -> None:
    """Take back what levels say of dense where there is no verdict; the numbers stay."""
    for level in levels:
        level |= {"state": "undecided", "wins": False}


def _gap(losses: Losses, levels: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """(mean loss of reinit over dense, sparsity) at the last level where reinit was run."""
    for level in reversed(levels):
        above = losses.above_dense("reinit", level["round"])
        if above:
            return sum(above) / len(above), level["sparsity"]
    return None


def _decide(
    levels: Sequence[Mapping[str, Any]], controls: Sequence[str], arm: str
) -> dict[str, Any]:
    """The state over all levels: a fixed sequence, read upwards to the first that does not match.

    Each level is tested at 5% only because all before it matched. To go on beyond one that does not
    match would give every later level a chance of its own to name a false winner.
    """
    worse = [level for level in levels if level["state"] == "worse"]
    first_worse = worse[0]["sparsity"] if worse else None
    needed = needed_of(arm)
    asked = [name for name in needed if name in controls]
    matching = list(itertools.takewhile(lambda level: level["state"] == "matches", levels))
    wins = [level for level in matching if level["wins"]]
    headline = (wins or matching or list(levels))[-1 if matching else 0]
    state: str = "undecided"
    reason: str | None = "noise"
    if wins:
        state, reason = "wins", None
    elif levels[0]["state"] == "worse":
        state, reason = "worse", None
    elif matching:
        so_do = [n for n in asked if headline["controls"][n]["state"] == "not worse"]
        if so_do:
            state, reason = f"matches but so does {so_do[0]}", None
        else:
            reason = "controls undecided" if len(asked) == len(needed) else "no controls"
    return {
        "state": state,
        "reason": reason,
        "sparsity": headline["sparsity"] if wins else None,
        "bracket": [headline["sparsity"] if wins else None, first_worse],
        "at_least": bool(wins) and headline is levels[-1],
        "matches_up_to": matching[-1]["sparsity"] if matching else None,
        "controls": {
            name: {**headline["controls"][name], "sparsity": headline["sparsity"]}
            for name in controls
        },
    }


def verdict(
    rows: Iterable[Measurement],
    metric: str,
    *,
    controls: Sequence[str] | None = None,
    margin: float | None = None,
    search: SearchKey | None = None,
) -> dict[str, Any]:
    """The verdict on one metric of one search (default: the first among the rows), JSON-ready.

    ``controls``: those asked for (default: the default controls found); margin in the unit of the
    table. ConfigError for a metric without a direction or a margin that is not positive. Numbers in
    the result are in the metric's own unit, null where unbounded or not to be had; ``bracket`` is
    [highest winning, first worse]; ``decidable_margin`` is from the dense runs' deviation over
    seeds, ``gap`` is reinit's mean loss of quality against dense at the last level.
    """
    rule = rule_of(metric, None if margin is None else {metric_kind(metric): margin})
    if rule is None:
        raise ConfigError(f"metric {metric!r} has no direction, so it has a curve but no verdict")
    rows = list(rows)
    key = search or next(iter(searches_in(rows)), SearchKey("", "", None, "", None))
    losses, arm = gather(rows, metric, key), own_arm(key)
    if controls is None:
        controls = [name for name in needed_of(arm) if name in losses.arms]
    seeds = sorted({s for number in losses.sparsity for s in losses.at(arm, number)})
    dense = [losses.dense[seed] for seed in seeds]
    loss = sum(dense) / len(dense) if dense else math.nan
    width = rule.margin * abs(loss) if rule.share else rule.margin
    levels = read_levels(losses, arm, controls, width)
    gap = _gap(losses, levels) if "reinit" in controls else None
    empty = {"sparsity": None, "bracket": [None, None], "at_least": False, "matches_up_to": None}
    result: dict[str, Any] = {"state": "undecided", "reason": None, **empty, "controls": {}}
    if len(seeds) < LEAST_SEEDS:
        result["state"] = "not enough runs"
    else:
        result |= _decide(levels, controls, arm)
        if gap is not None and width > gap[0] / 2:
            result |= {"state": "undecided", "reason": "margin too wide", **empty}
            withhold_levels(levels)
    result |= {
        "metric": metric,
        "arm": arm,
        "better": rule.better,
        "margin": number_or_none(width),
        "margin_share": rule.margin if rule.share else None,
        "decidable_margin": number_or_none(decidable_margin(dense)),
        "seeds": len(seeds),
        "seeds_needed": _seeds_needed(dense, width),
        "dense_mean": number_or_none(loss if rule.better == "lower" else -loss),
        "dense_sd": number_or_none(deviation(dense)),
        "dense_diverged": len(losses.dense_diverged),
        "gap": number_or_none(gap[0]) if gap else None,
        "gap_sparsity": gap[1] if gap else None,
        "levels": levels,
    }
    result["sentence"] = sentence(result)
    return result


def summarise(
    rows: Iterable[Measurement],
    *,
    controls: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    primary: str | None = None,
    margins: Mapping[str, float] | None = None,
    searches: Sequence[SearchKey] = (),
) -> dict[str, Any]:
    """Every verdict of a results.csv: {"verdicts": {metric: ...}, "primary", "arms"}.

    ``verdicts`` are those of the first search, ``arms`` maps each search's ``arm_name`` to its own.
    ``controls``: those asked for, of all searches or by method.
    ``searches`` gives their order (default: of appearance). ``primary`` names a metric or a kind;
    by default a Frechet distance, else the reconstruction error, else the ELBO; null without any.
    """
    rows = list(rows)
    arms: dict[str, dict[str, Any]] = {}
    for key in searches or searches_in(rows):
        own = [row for row in rows if belongs(row, key)]
        judged = {row.metric for row in own if row.arm in ("dense", *OWN_ARMS)}
        asked = controls[key.method] if isinstance(controls, Mapping) else controls
        metrics = sorted(metric for metric in judged if rule_of(metric, margins))
        arms[arm_name(key)] = {
            metric: verdict(
                own,
                metric,
                controls=asked,
                margin=_overriding(metric, margins),
                search=key,
            )
            for metric in metrics
        }
    verdicts = next(iter(arms.values()), {})
    return {"verdicts": verdicts, "primary": _primary(verdicts, primary), "arms": arms}


def _overriding(metric: str, margins: Mapping[str, float] | None) -> float | None:
    margins = margins or {}
    return margins.get(metric, margins.get(metric_kind(metric)))


def _primary(verdicts: Mapping[str, Any], wished: str | None) -> str | None:
    order = (wished, *PRIMARY_ORDER) if wished else PRIMARY_ORDER
    for name in order:
        for metric in verdicts:
            if name in (metric, metric_kind(metric)):
                return metric
    return next(iter(verdicts), None)


def _seeds_needed(dense: Sequence[float], margin: float) -> int | None:
    try:
        return seeds_for_margin(deviation(dense), margin)
    except ConfigError:  # one seed, a dense mean of 0, or beyond any number of seeds
        return None
