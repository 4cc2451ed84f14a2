"""What a verdict says in one plain English sentence, for the first line of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tombola.metrics.levels import needed_of

_THIN = "train the thin network"
"""The advice where a search found nothing that a thin network has not."""


def sentence(verdict: Mapping[str, Any]) -> str:
    """One sentence for a verdict of ``statistics.verdict``; names are as they came, unescaped.

    A second one where a thin network did as well as a smaller one that was searched for.
    """
    said = _of_state(verdict)
    return said if _THIN in said else said + _thin_is_as_good(verdict)


def _of_state(verdict: Mapping[str, Any]) -> str:
    state, reason = verdict["state"], verdict["reason"]
    if state == "wins":
        return _wins(verdict)
    if state == "worse":
        return _worse(verdict)
    if state == "not enough runs":
        return _not_enough(verdict)
    if state.startswith("matches"):
        so_do = [n for n, c in verdict["controls"].items() if c["state"] == "not worse"]
        thin = [
            name
            for name in so_do
            if name.startswith("thin-") and not verdict["controls"][name].get("times_as_large")
        ]
        if verdict["arm"] == "compact" and thin:
            return (
                f"{_matching(verdict)}, but so does {_and(thin)}: {_THIN}, no search is needed"
                f"{_then_worse(verdict)}."
            )
        verb = "does" if len(so_do) == 1 else "do"
        return (
            f"{_matching(verdict)}, but so {verb} {_and(so_do)}: "
            f"these runs show no winning ticket{_then_worse(verdict)}."
        )
    if reason == "no controls":
        lacking = [n for n in needed_of(verdict["arm"]) if n not in verdict["controls"]]
        those = "the controls" if len(lacking) > 1 else "the control"
        return (
            f"{_matching(verdict)}, but without {those} {_or(lacking)} a match cannot be told "
            f"from a win{_then_worse(verdict)}."
        )
    if reason == "controls undecided":
        open_ones = [n for n, c in verdict["controls"].items() if c["state"] == "undecided"]
        return (
            f"{_matching(verdict)}, but {verdict['seeds']} seeds cannot say whether "
            f"{_and(open_ones)} would do as well{_then_worse(verdict)}."
        )
    if reason == "margin too wide":
        return (
            f"No verdict on {_metric(verdict)}: the margin, {verdict['margin']:.3g}, is wider than "
            f"half the gap between dense and reinit at {percent(verdict['gap_sparsity'])} sparsity "
            f"({verdict['gap']:.3g}), so matching dense would prove little."
        )
    return _noise(verdict)


def _thin_is_as_good(verdict: Mapping[str, Any]) -> str:
    """At which levels a thin network's mean is no worse than that of channels searched for."""
    if verdict["arm"] != "compact" or verdict["state"] == "not enough runs":
        return ""
    found: dict[str, list[str]] = {}
    larger: dict[str, list[str]] = {}
    for level in verdict["levels"]:
        for name, control in level["controls"].items():
            gap = control["gap_mean"]
            if name.startswith("thin-") and gap is not None and gap <= 0:
                kind = larger if control.get("times_as_large") else found
                kind.setdefault(name, []).append(percent(level["sparsity"]))
    said = ""
    if found:
        where = _and([f"{name} (at {_and(levels)})" for name, levels in found.items()])
        verb = "do" if len(found) > 1 else "does"
        said = f" In the mean {where} {verb} as well or better: {_THIN}."
    for name, levels in larger.items():
        said += (
            f" At {_and(levels)} {name} does as well too, but with more parameters than the "
            "ticket: it cannot be made so thin."
        )
    return said


def percent(sparsity: float) -> str:
    """0.8926 -> 89.3%; more digits rather than 100% for anything less."""
    for digits in range(1, 12):
        text = f"{100 * sparsity:.{digits}f}%"
        if sparsity >= 1 or not text.startswith("100"):
            return text
    return f"{100 * sparsity!r}%"


def margin_text(verdict: Mapping[str, Any]) -> str:
    """The margin of a verdict in words: ``5% of the dense mean``, or ``0.02``."""
    share = verdict.get("margin_share")
    return f"{verdict['margin']:.3g}" if share is None else f"{100 * share:.3g}% of the dense mean"


def _wins(verdict: Mapping[str, Any]) -> str:
    low, high = verdict["bracket"]
    beaten = [n for n, c in verdict["controls"].items() if c["state"] == "worse"]
    proof = f"less than {margin_text(verdict)} worse than dense, better than {_and(beaten)}"
    equals = [n for n, c in verdict["controls"].items() if c["state"] != "worse"]
    proof += f", though not shown better than {_and(equals)}" if equals else ""
    if verdict["at_least"]:
        return (
            f"A ticket at {percent(low)} sparsity, the sparsest level searched, still wins on "
            f"{_metric(verdict)} ({proof}): a winning ticket is at least that sparse."
        )
    wins = f"A ticket at {percent(low)} sparsity still wins on {_metric(verdict)} ({proof})"
    between = [level for level in verdict["levels"] if level["sparsity"] > low]
    if high is None:
        last = percent(between[-1]["sparsity"])
        return f"{wins}; beyond it, up to {last}, no level is shown to win or to be worse."
    return f"{wins}; at {percent(high)} it is worse than dense{_divergence(verdict, high)}."


def _worse(verdict: Mapping[str, Any]) -> str:
    first = verdict["bracket"][1]
    return (
        f"Already at {percent(first)} sparsity, the least sparse level searched, the ticket is "
        f"worse than dense on {_metric(verdict)} by more than {margin_text(verdict)}"
        f"{_divergence(verdict, first)}: no ticket wins."
    )


def _not_enough(verdict: Mapping[str, Any]) -> str:
    seeds, lost = verdict["seeds"], verdict["dense_diverged"]
    dropped = f" ({lost} more diverged already when dense)" if lost else ""
    return (
        f"Not enough runs for a verdict on {_metric(verdict)}: {seeds} training "
        f"{'seed' if seeds == 1 else 'seeds'}{dropped}, and it takes three."
    )


def _noise(verdict: Mapping[str, Any]) -> str:
    text = (
        f"Undecided on {_metric(verdict)}: no level is shown to match dense within "
        f"{margin_text(verdict)}{_then_worse(verdict)}"
    )
    least, width = verdict["decidable_margin"], verdict["margin"]
    if least is None or width is None or least <= width:
        return f"{text}."
    more = verdict["seeds_needed"]
    wish = f"; about {more} seeds would decide this one" if more else ""
    return f"{text}; {verdict['seeds']} seeds can decide a margin of {least:.3g}{wish}."


def _matching(verdict: Mapping[str, Any]) -> str:
    level = percent(verdict["matches_up_to"])
    return (
        f"A ticket at {level} sparsity matches dense on {_metric(verdict)} "
        f"(less than {margin_text(verdict)} worse)"
    )


def _then_worse(verdict: Mapping[str, Any]) -> str:
    high = verdict["bracket"][1]
    if high is None:
        return ""
    return f"; from {percent(high)} it is worse than dense{_divergence(verdict, high)}"


def _divergence(verdict: Mapping[str, Any], sparsity: float) -> str:
    """How many tickets diverged at a level, in brackets; empty if none did."""
    level = next(level for level in verdict["levels"] if level["sparsity"] == sparsity)
    if not level["diverged"]:
        return ""
    return f" ({level['diverged']} of {level['seeds']} seeds diverged)"


def _metric(verdict: Mapping[str, Any]) -> str:
    return str(verdict["metric"]).replace("_", " ")


def _or(names: Sequence[str]) -> str:
    """a, b or c."""
    return _joined(names, "or")


def _and(names: Sequence[str]) -> str:
    """a, b and c."""
    return _joined(names, "and")


def _joined(names: Sequence[str], word: str) -> str:
    """Names in a sentence, whatever commas are in them."""
    *others, last = names or [""]
    return f"{', '.join(others)} {word} {last}" if others else last
