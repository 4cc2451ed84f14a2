"""What does a verdict say in plain English? One sentence for the first line of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tombola.metrics.rules import metric_words

ALPHA_ADVICE = 0.05
"""Two-sided p below which a thin network is said to do better than one that was searched for."""


def write_sentence(verdict: Mapping[str, Any]) -> str:
    """The state, the frontier, the first worse level, and why nothing more can be said."""
    said = _of_state(verdict)
    for more in (_settling(verdict), _judges_noise(verdict), _changed(verdict)):
        said += f" {more}" if more else ""
    return said


def _of_state(verdict: Mapping[str, Any]) -> str:
    state = str(verdict["state"])
    if state == "not trained":
        return _not_trained(verdict)
    if verdict["gate"] is not None:
        return f"No verdict on {_metric(verdict)}: its judge failed its gate ({verdict['gate']})."
    if state == "not enough runs":
        return _not_enough(verdict)
    if state == "worse":
        return _worse(verdict)
    if state == "undecided":
        return _undecided(verdict)
    matching = (
        f"A ticket at {level_text(verdict, verdict['frontier'])} matches dense on "
        f"{_metric(verdict)} (less than {margin_text(verdict)} worse)"
    )
    if state == "wins":
        return _wins(verdict)
    if state.startswith("matches, but"):
        alike = _open(verdict, "not worse")
        verb = "does" if len(alike) == 1 else "do"
        return (
            f"{matching}, but so {verb} {join_words(alike)}: these runs show no winning ticket"
            f"{_beyond(verdict)}."
        )
    if state == "matches; no controls":
        return (
            f"{matching}, but no control was trained there ({join_words(verdict['needed'])}), so a "
            f"match cannot be told from a win{_beyond(verdict)}."
        )
    lacking = [name for name in verdict["needed"] if name not in verdict["controls"]]
    undecided = _open(verdict, "undecided")
    parts = []
    if undecided:
        parts.append(f"{verdict['seeds']} seeds cannot say that {_are_worse(undecided)}")
    if lacking:
        parts.append(f"{join_words(lacking)} {'was' if len(lacking) == 1 else 'were'} not trained")
    return f"{matching}, but {' and '.join(parts)}{_beyond(verdict)}."


def _are_worse(names: Sequence[str]) -> str:
    return f"{join_words(names)} {'is' if len(names) == 1 else 'are'} worse"


def _open(verdict: Mapping[str, Any], state: str) -> list[str]:
    """The controls that decide and have a state."""
    controls = verdict["controls"]
    return [n for n in verdict["needed"] if n in controls and controls[n]["state"] == state]


def _wins(verdict: Mapping[str, Any]) -> str:
    beaten = join_words(verdict["needed"])
    proof = f"it is less than {margin_text(verdict)} worse than dense, and {beaten} are worse"
    if len(verdict["needed"]) == 1:
        proof = f"it is less than {margin_text(verdict)} worse than dense, and {beaten} is worse"
    if not verdict["needed"]:
        proof = f"it is less than {margin_text(verdict)} worse than dense"
    where = f"A ticket at {level_text(verdict, verdict['frontier'])}"
    if verdict["at_least"]:
        return (
            f"{where}, the sparsest level searched, wins on {_metric(verdict)} ({proof}): a "
            "winning ticket is at least that sparse."
        )
    return f"{where} wins on {_metric(verdict)} ({proof}){_beyond(verdict)}."


def _worse(verdict: Mapping[str, Any]) -> str:
    first = verdict["levels"][0]
    return (
        f"Already at {level_text(verdict, first['sparsity'])}, the least sparse level searched, "
        f"the ticket is worse than dense on {_metric(verdict)} by more than {margin_text(verdict)}"
        f"{_divergence(first)}: no ticket wins."
    )


def _undecided(verdict: Mapping[str, Any]) -> str:
    levels = verdict["levels"]
    place = f"the first level, {level_text(verdict, levels[0]['sparsity'])}," if levels else "none"
    text = (
        f"Undecided on {_metric(verdict)}: at {place} the ticket is neither shown to match dense "
        f"within {margin_text(verdict)} nor to be worse by more"
    )
    if verdict["first_worse"] is not None:
        text += f"; at {percent(verdict['first_worse'])} it is worse"
    return f"{text}; {plan_text(verdict['planning'])}."


def _beyond(verdict: Mapping[str, Any]) -> str:
    """What is known above the frontier."""
    edge, first = verdict["frontier"], verdict["first_worse"]
    above = [level for level in verdict["levels"] if level["sparsity"] > edge]
    if first is not None and first > edge:
        worse = next(level for level in above if level["sparsity"] == first)
        open_ones = any(level["sparsity"] < first for level in above)
        between = "; between them these seeds cannot tell" if open_ones else ""
        return f"; at {percent(first)} it is worse than dense{_divergence(worse)}{between}"
    if above:
        return (
            f"; above it, up to {percent(above[-1]['sparsity'])}, {verdict['seeds']} seeds cannot "
            f"tell: {plan_text(verdict['planning'])}"
        )
    return ""


def plan_text(planning: Mapping[str, Any]) -> str:
    """How many seeds would decide, in words."""
    none, seen = planning["seeds_if_no_loss"], planning["seeds_at_loss_seen"]
    if none is None:
        return "how many seeds would decide is not known"
    if seen is None:
        return (
            f"{none} seeds would show a match if there is no loss; the loss seen is at the margin, "
            "where no number of seeds will decide"
        )
    if seen == none:
        return f"about {none} seeds would show a match"
    return f"{none} seeds would show a match if there is no loss, {seen} at the loss seen"


def _not_trained(verdict: Mapping[str, Any]) -> str:
    learning = verdict["learning"]
    shares = {seed: s for seed, s in learning["shares"].items() if s is None or s < 0.5}
    seed, share = min(shares.items(), key=lambda item: -math.inf if item[1] is None else item[1])
    come = (
        "nothing that was trained is better than that"
        if share is None
        else "it is worse than that"
        if share < 0
        else f"it has come {100 * share:.0f}% of the way from that to the best seen, "
        f"{learning['best']:.3g}, and half is asked"
    )
    others = f" ({len(shares)} of {len(learning['shares'])} seeds)" if len(shares) > 1 else ""
    return (
        f"The dense network is not trained, so no ticket of it is judged on {_metric(verdict)}: a "
        f"trivial answer gets {learning['trivial']:.3g}, and in seed {seed}{others} {come}. Train "
        "longer."
    )


def _not_enough(verdict: Mapping[str, Any]) -> str:
    seeds, lost = verdict["seeds"], verdict["dense_diverged"]
    dropped = f" ({lost} more diverged already when dense)" if lost else ""
    return (
        f"Not enough runs for a verdict on {_metric(verdict)}: {seeds} training "
        f"{'seed' if seeds == 1 else 'seeds'}{dropped}, and it takes three."
    )


def _settling(verdict: Mapping[str, Any]) -> str:
    learning = verdict["learning"]
    if learning["settled"] is not False or verdict["state"] == "not trained":
        return ""
    return (
        f"The training was too short to settle ({100 * learning['moved']:.2g}% in the last fifth)."
    )


def _judges_noise(verdict: Mapping[str, Any]) -> str:
    noise, margin = verdict["sampling_sd"], verdict["margin"]
    if noise is None or not margin or noise <= margin / 3:
        return ""
    return (
        f"Judged anew on other samples one network varies by {noise:.2g}, more than a third of the "
        f"margin ({margin:.2g}): more samples, not more seeds, would decide."
    )


def _changed(verdict: Mapping[str, Any]) -> str:
    what = verdict["margin_changed"]
    return f"Margin changed after results were there, {what}." if what else ""


def advise_thin(verdict: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """A second sentence where a thin dense network is shown to do better than one searched for."""
    better = []
    for found in comparisons:
        above = found["ratio"] is not None and found["ratio"] > 1
        above = above or (found["difference"] is not None and found["difference"] > 0)
        if above and found["p"] is not None and found["p"] < ALPHA_ADVICE:
            name = str(found["b"]).rpartition(": ")[2]
            control = verdict["controls"].get(name, {})
            times = control.get("times_as_large")
            larger = f", which has {times:.2g} times the parameters" if times else ""
            better.append(f"{name} (p {found['p']:.2g}{larger})")
    if not better:
        return ""
    verb = "does" if len(better) == 1 else "do"
    return f" Over all levels {join_words(better)} {verb} better: train the thin network."


def level_text(verdict: Mapping[str, Any], sparsity: float) -> str:
    """``78.4% sparsity``, with the share of channels that was cut where levels are shares."""
    found = next((lv for lv in verdict["levels"] if lv["sparsity"] == sparsity), None)
    share = found["compress"] if found else None
    return f"{percent(sparsity)} sparsity" + (f" (compress {share:g})" if share else "")


def percent(sparsity: float) -> str:
    """0.8926 -> 89.3%; more digits rather than 100% for anything less."""
    for digits in range(1, 12):
        text = f"{100 * sparsity:.{digits}f}%"
        if sparsity >= 1 or not text.startswith("100"):
            return text
    return f"{100 * sparsity!r}%"


def margin_text(verdict: Mapping[str, Any]) -> str:
    """The margin of a verdict in words: ``5%``, or ``0.02``."""
    share = verdict["margin_share"]
    return f"{verdict['margin']:.3g}" if share is None else f"{100 * share:.3g}%"


def _divergence(level: Mapping[str, Any]) -> str:
    """How many tickets diverged at a level, in brackets; empty if none did."""
    if not level["diverged"]:
        return ""
    return f" ({level['diverged']} of {level['seeds']} seeds diverged)"


def _metric(verdict: Mapping[str, Any]) -> str:
    return metric_words(str(verdict["metric"]))


def join_words(names: Sequence[str]) -> str:
    """a, b and c."""
    *others, last = names or [""]
    return f"{', '.join(others)} and {last}" if others else last
