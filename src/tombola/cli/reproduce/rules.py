"""Does a claim hold, does it not, or is it open? Rules over what a search left in its folder.

    holds: shown. does not hold: the contrary is shown. open: neither, or dense has not learnt.

Every rule is asked of the numbers that the verdict gives (docs/method.md, "The verdict"); nothing
is decided anew but shares of cost and metrics that have no verdict, from t intervals over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tombola.cli.reproduce.outcomes import HOLDS, NOT, OPEN, Outcome, Rule, words_of
from tombola.config.values import parse_rewind, percent_of
from tombola.metrics.intervals import interval
from tombola.metrics.rules import metric_kind
from tombola.report.folder import Folder, ended

LEVEL = 0.05
"""p below which one thing is better than another."""
NEAR = 0.001
"""Sparsities that differ by less are the same: the paper gives three digits."""


def judge(rule: Rule, folder: Folder) -> Outcome:
    """What a rule says of a search that was run to its end."""
    return Outcome(words_of(rule), **_KINDS[rule["rule"]](rule, folder))


def _opened(why: str) -> dict[str, Any]:
    return {"state": OPEN, "why": why}


def _arm(folder: Folder, text: str | None) -> str | None:
    """The name in summary.json of a search such as ``imp/all/5%``; parts left out: any."""
    parts = (text or "").split("/")
    steps = (folder.config.get("resolved") or {}).get("steps")
    for name in folder.summary.get("arms") or {}:
        have = name.split("/")
        asked = [p for p in parts if p]
        if len(asked) > 2:
            value, unit = parse_rewind(asked[2])
            step = percent_of(value, steps) if unit == "%" and steps else int(value)
            asked[2] = f"r{step}"
        if have[: len(asked)] == asked:
            return str(name)
    return None


def _verdict(rule: Rule, folder: Folder, arm: str | None) -> Mapping[str, Any] | str:
    """The verdict that a rule asks for, or why there is none."""
    if arm is None:
        return f"there is no search {rule.get('arm', '')}".rstrip()
    verdicts = (folder.summary.get("arms") or {}).get(arm) or {}
    return _of_metric(rule, verdicts, folder.summary.get("primary"))


def _of_metric(
    rule: Rule, verdicts: Mapping[str, Any], primary: str | None
) -> Mapping[str, Any] | str:
    wanted = rule.get("metric", primary)
    for metric, verdict in verdicts.items():
        if wanted in (metric, metric_kind(metric)):
            return dict(verdict)
    return f"there is no verdict by {wanted}"


def _believed(verdict: Mapping[str, Any]) -> str:
    """Why a verdict may not be counted; empty where it may."""
    learning = verdict.get("learning") or {}
    if learning.get("learnt") is False or verdict.get("state") == "not trained":
        return "dense has not learnt"
    if learning.get("settled") is False:
        return "dense has not settled: its training is too short"
    return "its judge failed its gate" if verdict.get("gate") else ""


def _counted(found: dict[str, Any], *verdicts: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, but open where one of the verdicts behind it may not be counted."""
    why = next(filter(None, map(_believed, verdicts)), "")
    return found | _opened(why) if why else found


def _state_is(rule: Rule, folder: Folder) -> dict[str, Any]:
    if "route" in rule:
        return _route_is(rule, folder)
    verdict = _verdict(rule, folder, _arm(folder, rule.get("arm")))
    if isinstance(verdict, str):
        return _opened(verdict)
    state = str(verdict["state"])
    matches = state == "wins" or state.startswith("matches")
    lost = state.startswith("matches, but")
    shown = {
        "wins": (state == "wins", lost or state == "worse"),
        "matches": (matches, state == "worse"),
        "worse": (state == "worse", matches),
    }[rule["is"]]
    at = verdict.get("frontier")
    levels = verdict.get("levels") or ()
    level: Mapping[str, Any] = next((v for v in levels if at in (None, v["sparsity"])), {})
    ratio = level.get("ratio") is not None
    found = {
        "state": HOLDS if shown[0] else NOT if shown[1] else OPEN,
        "why": state,
        "number": level.get("ratio" if ratio else "difference"),
        "low": level.get("lower"),
        "high": level.get("upper"),
        "n": verdict.get("seeds"),
        "unit": "times dense" if ratio else "more loss than dense",
    }
    return _counted(found, verdict)


def _route_is(rule: Rule, folder: Folder) -> dict[str, Any]:
    """A transfer, such as ``vae.decoder->dcgan``, against the target's own tickets."""
    source, _, target = str(rule["route"]).partition("->")
    routes = (folder.summary.get("transfer") or {}).get("routes") or ()
    route = next((r for r in routes if (r["source"], r["target"]) == (source, target)), None)
    if route is None:
        return _opened(f"there is no route {rule['route']}")
    verdict = _of_metric(rule, route.get("metrics") or {}, route.get("primary"))
    if isinstance(verdict, str):
        return _opened(verdict)
    state = str(verdict["state"])
    good = state in ("equal", "transferred better")
    found = {
        "state": HOLDS if good else NOT if state == "transferred worse" else OPEN,
        "why": state,
        "number": verdict.get("d_mean"),
        "low": verdict.get("low"),
        "high": verdict.get("high"),
        "n": verdict.get("seeds"),
        "unit": "more loss than the own ticket",
    }
    return _counted(found, verdict.get("as_ticket") or {})


def _frontier_at_least(rule: Rule, folder: Folder) -> dict[str, Any]:
    verdict = _verdict(rule, folder, _arm(folder, rule.get("arm")))
    if isinstance(verdict, str):
        return _opened(verdict)
    frontier, worse, value = verdict.get("frontier"), verdict.get("first_worse"), rule["value"]
    if frontier is not None and frontier >= value - NEAR:
        state, why = HOLDS, ""
    elif worse is not None and worse <= value + NEAR:
        state, why = NOT, f"shown to be worse at {100 * worse:.3g}%"
    else:
        last = max((lv["sparsity"] for lv in verdict.get("levels") or ()), default=0.0)
        short = last < value - NEAR
        state = OPEN
        why = f"no level reaches {100 * value:g}%" if short else "not shown to match or be worse"
    found = {
        "state": state,
        "why": why,
        "number": frontier,
        "low": frontier,
        "high": worse,
        "n": verdict.get("seeds"),
        "unit": "sparsity",
    }
    return _counted(found, verdict)


def _comparison_better(rule: Rule, folder: Folder) -> dict[str, Any]:
    sides, verdicts = [], []
    for side in (rule["a"], rule["b"]):
        search, colon, arm = str(side).partition(": ")
        name = _arm(folder, search)
        verdict = _verdict({**rule, "arm": search}, folder, name)
        if isinstance(verdict, str):
            return _opened(verdict)
        verdicts.append(verdict)
        sides.append(f"{name}{colon}{arm}")
    wanted = rule.get("metric", folder.summary.get("primary"))
    for found in folder.summary.get("comparisons") or ():
        pair = [found["a"], found["b"]]
        if wanted in (found["metric"], metric_kind(found["metric"])) and sorted(pair) == sorted(
            sides
        ):
            return _counted(_compared(found, turned=pair != sides), *verdicts)
    return _opened("they were not compared: fewer than 3 seeds or no level in common")


def _compared(found: Mapping[str, Any], *, turned: bool) -> dict[str, Any]:
    """Of a comparison: ratios of loss, or differences; ``turned``: of b against a."""
    ratio = found.get("ratio") is not None
    numbers = [found["ratio" if ratio else "difference"], *found["interval"]]
    if turned:
        middle, low, high = (None if v is None else 1 / v if ratio else -v for v in numbers)
        numbers = [middle, high, low]
    number, p = numbers[0], found.get("p")
    even = 1.0 if ratio else 0.0
    clear = p is not None and p < LEVEL and number is not None and number != even
    state = OPEN if not clear else HOLDS if number < even else NOT
    return {
        "state": state,
        "why": "" if p is None else f"p = {p:.2g}",
        "number": number,
        "low": numbers[1],
        "high": numbers[2],
        "n": found.get("seeds"),
        "unit": "times the loss" if ratio else "more loss",
    }


def _cost_share_at_most(rule: Rule, folder: Folder) -> dict[str, Any]:
    name = _arm(folder, rule["arm"])
    verdict = _verdict(rule, folder, name)
    if isinstance(verdict, str) or name is None:
        return _opened(str(verdict))
    method, networks, _, precision = name.split("/")
    what, costs = rule.get("of", "flops"), ended(folder).costs
    whole = {row.seed: getattr(row, f"train_{what}") for row in costs
             if row.arm == "dense" and row.precision in ("", precision)}  # fmt: skip
    shares: dict[int, float] = {}
    for row in costs:
        own = (row.method, row.networks, row.precision) == (method, networks, precision)
        fits = row.compress in (None, rule.get("compress", row.compress))
        if own and row.arm == verdict["arm"] and fits and whole.get(row.seed):
            paid = getattr(row, f"train_{what}"), getattr(row, f"search_{what}")
            if paid[0] is not None:  # the dearest level or share, if none is named
                share = (paid[0] + (paid[1] or 0)) / whole[row.seed]
                shares[row.seed] = max(share, shares.get(row.seed, 0.0))
    return _counted(_below([*shares.values()], rule["value"], "of dense"), verdict)


def _measured_below(rule: Rule, folder: Folder) -> dict[str, Any]:
    """A metric without a verdict: the ticket's against another arm's, over levels, by seed."""
    name = _arm(folder, rule.get("arm"))
    verdict = _verdict({}, folder, name)
    if isinstance(verdict, str) or name is None:
        return _opened(str(verdict))
    method, networks, step, precision = name.split("/")
    values: dict[tuple[str, int, int], list[float]] = {}
    for row in folder.rows:
        alike = row.arm == "dense" or (
            row.method == method
            and row.networks == networks
            and f"r{row.rewind_steps or 0}" == step
        )
        fits = row.metric == rule["metric"] and row.precision in ("", precision)
        if alike and fits and math.isfinite(row.value):
            values.setdefault((row.arm, row.round, row.seed), []).append(float(row.value))
    gaps: dict[int, list[float]] = {}
    for (arm, number, seed), own in values.items():
        than = rule["than"]
        other = values.get((than, 0 if than == "dense" else number, seed))
        if arm == verdict["arm"] and other:
            gap = sum(own) / len(own) - sum(other) / len(other)
            gaps.setdefault(seed, []).append(gap)
    means = [sum(each) / len(each) for each in gaps.values()]
    return _counted(_below(means, 0.0, f"more than {rule['than']}"), verdict)


def _below(values: Sequence[float], bound: float, unit: str) -> dict[str, Any]:
    """Whether the mean of one value a seed is shown to be at most a bound: its 95% interval."""
    if len(values) < 3:
        return _opened(f"{len(values)} seeds have both numbers; 3 are needed")
    mean, low, high = interval(values)
    state = HOLDS if high <= bound else NOT if low > bound else OPEN
    numbers = {"number": mean, "low": low, "high": high}
    return {"state": state, "why": "", **numbers, "n": len(values), "unit": unit}


_KINDS: Mapping[str, Callable[[Rule, Folder], dict[str, Any]]] = {
    "state_is": _state_is,
    "frontier_at_least": _frontier_at_least,
    "comparison_better": _comparison_better,
    "cost_share_at_most": _cost_share_at_most,
    "measured_below": _measured_below,
}
