"""Is a transferred ticket as good as the target's own, and is it better than its controls?

Per level, d is the loss of the transferred ticket less that of the own ticket of the same seed,
positive = worse. Two one-sided t tests at 5% (Schuirmann 1987), which is to say a 90% t interval of
the mean of d: *equal* if it lies inside +- the margin, *transferred worse* if all of it lies beyond
the margin, *transferred better* if all of it lies below minus the margin, else *undecided*. Over
levels the same is asked of each seed's mean of d. The margin is the metric's. Fewer than three
seeds: *not enough runs*.

A transferred ticket that diverged is worse than any margin, an own ticket that diverged makes it
better; a seed in which both did is left out. Whether the transferred ticket matches dense and beats
its mask shuffled and the own mask with weights drawn anew is asked as of any ticket (``verdict``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tombola.metrics.intervals import bounds, p_positive
from tombola.metrics.rules import metric_kind, metric_words
from tombola.metrics.verdict.decide import Evidence, choose_primary, decide
from tombola.metrics.verdict.losses import (
    Losses,
    Measurement,
    SearchKey,
    default_controls,
    gather,
    number_or_none,
    search_key,
)
from tombola.metrics.verdict.sentences import percent
from tombola.metrics.verdict.sequence import LEAST_SEEDS

EQUAL, WORSE, BETTER = "equal", "transferred worse", "transferred better"


def transfer_verdicts(
    rows: Sequence[Measurement],
    as_ticket: Sequence[Measurement],
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """{"primary": metric, "metrics": {metric: verdict}} of one transfer, JSON-ready.

    ``rows``: dense, own ``ticket`` and ``transferred``, as of one search; ``as_ticket``: the
    transferred ticket and its controls under the names of a ticket's own. None is given in a metric
    whose judge failed its gate.
    """
    evidence = evidence or Evidence()
    key = next((search_key(row) for row in rows if row.arm != "dense"), None)
    if key is None:
        return {"primary": None, "metrics": {}}
    names = sorted({row.metric for row in rows if evidence.rule(row.metric)})
    found = {name: transfer_verdict(rows, as_ticket, name, key, evidence) for name in names}
    return {"primary": choose_primary(found), "metrics": found}


def transfer_verdict(
    rows: Sequence[Measurement],
    as_ticket: Sequence[Measurement],
    metric: str,
    key: SearchKey,
    evidence: Evidence,
) -> dict[str, Any]:
    """One metric of one transfer: over levels, by level, and the ticket's own verdict there."""
    rule = evidence.rule(metric)
    assert rule is not None
    losses = gather(rows, metric, key, rule, raw=True)
    measured = any(row.arm == "ticket" for row in rows)
    margin = losses.width
    against = decide(as_ticket, metric, search=key, evidence=evidence)
    levels = [
        {
            **{key: level[key] for key in ("round", "sparsity", "sparsity_all")},
            "against_dense": level["state"],
            **_level(losses, level["round"], margin, measured),
        }
        for level in against["levels"]
    ]
    over: dict[str, Any] = {"state": None}
    if measured:
        over = _state(list(_over(losses, levels).values()), margin)
    gate = evidence.gates.get(metric_kind(metric))
    if gate is not None and measured:
        over["state"] = "undecided"
    result = {
        "metric": metric,
        "better": rule.better,
        "margin": number_or_none(margin),
        "margin_share": rule.margin if rule.share else None,
        **over,
        "levels": levels,
        "beats": {
            name: against["controls"].get(name, {}).get("state", "not asked")
            for name in default_controls("ticket")
        },
        "as_ticket": against,
    }
    words = metric_words(metric)
    result["sentence"] = (
        _sentence(result)
        if gate is None
        else f"No verdict on {words}: its judge failed its gate ({gate})."
    )
    return result


def _differences(losses: Losses, number: int) -> dict[int, float]:
    """Seed -> loss of the transferred ticket less that of the own; nan where both diverged."""
    place = next((level for level in losses.levels if level.round == number), None)
    if place is None:
        return {}
    own, other = losses.first_at("ticket", place), losses.first_at("transferred", place)
    return {
        seed: math.nan if math.isinf(own[seed]) and math.isinf(value) else value - own[seed]
        for seed, value in sorted(other.items())
        if seed in own
    }


def _level(losses: Losses, number: int, margin: float, measured: bool) -> dict[str, Any]:
    found = _differences(losses, number).values()
    kept = [d for d in found if not math.isnan(d)]
    return _state(kept, margin) if measured else {"state": None}


def _over(losses: Losses, levels: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Seed -> its mean difference over the levels that it has both tickets of."""
    by_seed: dict[int, list[float]] = {}
    for level in levels:
        for seed, d in _differences(losses, level["round"]).items():
            if not math.isnan(d):
                by_seed.setdefault(seed, []).append(d)
    means = {seed: sum(each) / len(each) for seed, each in by_seed.items()}
    return {seed: d for seed, d in means.items() if not math.isnan(d)}


def _state(differences: Sequence[float], margin: float) -> dict[str, Any]:
    """Differences, one a seed, against +- the margin: the state, the 90% interval, the p of both.

    ``p`` is the larger of the two one-sided tests' (equal if below 0.05).
    """
    mean, low, high = bounds(differences)
    lost = any(d == math.inf for d in differences)
    won = any(d == -math.inf for d in differences)
    if len(differences) < LEAST_SEEDS:
        state = "not enough runs"
    elif lost or won:
        state = "undecided" if lost and won else WORSE if lost else BETTER
    elif low > -margin and high < margin:
        state = EQUAL
    else:
        state = WORSE if low > margin else BETTER if high < -margin else "undecided"
    numbers = dict.fromkeys(("d_mean", "low", "high", "p"), math.nan)
    if not (lost or won) and len(differences) > 1:
        p = max(p_positive([margin + sign * d for d in differences]) for sign in (1, -1))
        numbers = {"d_mean": mean, "low": low, "high": high, "p": p}
    return {
        "state": state,
        "seeds": len(differences),
        **{name: number_or_none(value) for name, value in numbers.items()},
    }


def _sentence(found: Mapping[str, Any]) -> str:
    """One verdict in words; names as they came."""
    if found["state"] is None:  # nothing of its own to be held against
        return str(found["as_ticket"]["sentence"])
    metric = metric_words(str(found["metric"]))
    words = [_over_words(found, metric)]
    called = {"reinit": "the own mask with new weights", "shuffle": "its mask shuffled"}
    beaten = [called[name] for name, state in found["beats"].items() if state == "worse"]
    edge = found["as_ticket"]["frontier"]
    if edge is not None:
        proof = f", and is better there than {' and '.join(beaten)}" if beaten else ""
        words.append(f"The transferred ticket matches dense up to {percent(edge)} sparsity{proof}.")
    return " ".join(words)


def _over_words(found: Mapping[str, Any], metric: str) -> str:
    state, count = found["state"], len(found["levels"])
    if state == "not enough runs":
        seeds = found["seeds"]
        return (
            f"Not enough runs to tell on {metric} whether transferred equals own: {seeds} training "
            f"{'seed' if seeds == 1 else 'seeds'}, and it takes three."
        )
    alike = sum(level["state"] == EQUAL for level in found["levels"])
    said = {
        EQUAL: "the transferred ticket equals the target's own",
        WORSE: "the transferred ticket is worse than the target's own",
        BETTER: "the transferred ticket is better than the target's own",
        "undecided": "it is undecided whether the transferred ticket equals the target's own",
    }[state]
    if found["d_mean"] is None:
        width = "some training diverged"
    else:
        width = (
            f"its loss against that is {found['d_mean']:.3g} in the mean, 90% interval "
            f"{found['low']:.3g} to {found['high']:.3g}, margin {found['margin']:.3g}"
        )
    levels = _counted(count)
    return f"Over {levels} on {metric} {said} ({width}); equal at {alike} of {levels}."


def _counted(levels: int) -> str:
    return f"{levels} {'level' if levels == 1 else 'levels'}"
