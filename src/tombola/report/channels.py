"""When did the channels settle, and on what? The watches behind early-bird tickets, told."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tombola.metrics.verdict.sentences import percent
from tombola.report.curves import Drawn, label_of
from tombola.report.families import watched_of
from tombola.report.tables import NONE, Table

MOST_DRAWS = 64
"""Draws shown along each axis of a heat map: more would be smaller than a dot."""
NEAR = 0.02
"""How far thin-flops may be from the work it is made to have before that is said."""
_RULES = {
    "paper": "in less than {delta:g} of its channels",
    "corrected": "by less than {delta:g} of what two random masks of as many channels would show",
}


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One seed of a watch: when its channels were cut, and what was kept."""

    seed: str
    step: int
    steps: int
    forced: bool
    kept: dict[str, tuple[int, int]]
    """Network -> channels after and before."""
    overlap: dict[str, tuple[float, float]]
    """Network -> share of the channels that the end of dense training keeps too, and by chance."""
    largest: dict[int, dict[str, float]]
    """Step -> network -> the distance that the rule compared; empty if too few masks were drawn."""
    draws: int = 0
    """How many masks were drawn."""
    thin_flops: dict[str, float] = field(default_factory=dict)
    """Network -> the multiply-adds of thin-flops, as a share of the smaller network's."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The watches of one search, over its seeds."""

    search: Drawn
    rule: str
    settle: str
    delta: float
    left: dict[str, str]
    """What could not be cut -> why."""
    by_scale: tuple[str, ...]
    draws: list[int]
    """Steps of the first seed's draws."""
    matrix: dict[str, list[list[float]]]
    """Network -> the distances of the first seed's masks from each other, at ``draws``."""
    seeds: list[Seed]

    @property
    def networks(self) -> list[str]:
        """The networks whose channels were ranked, by name."""
        return sorted({network for seed in self.seeds for network in seed.kept})

    @property
    def forced(self) -> list[Seed]:
        """The seeds whose channels were cut before they had settled."""
        return [seed for seed in self.seeds if seed.forced]


def watched_in(summary: Mapping[str, Any], searches: Iterable[Drawn]) -> list[Watched]:
    """What summary.json tells of the watches, one a search of channels; empty without any."""
    found = ((search, watched_of(summary, search)) for search in searches)
    return [_watched(search, told) for search, told in found if told.get("seeds")]


def _watched(search: Drawn, told: Mapping[str, Any]) -> Watched:
    return Watched(
        search=search,
        rule=str(told.get("rule", "")),
        settle=str(told.get("settle", "")),
        delta=float(told.get("delta") or 0.0),
        left={str(name): str(why) for name, why in (told.get("left") or {}).items()},
        by_scale=tuple(map(str, told.get("by_scale") or ())),
        draws=list(told.get("draws") or ()),
        matrix=dict(told.get("matrix") or {}),
        seeds=[_seed(name, seed) for name, seed in sorted(told["seeds"].items(), key=_by_number)],
    )


def _by_number(item: tuple[str, Any]) -> tuple[int, str]:
    return (int(item[0]) if item[0].isdecimal() else 0, item[0])


def _seed(name: str, told: Mapping[str, Any]) -> Seed:
    kept: dict[str, tuple[int, int]] = {}
    for group, (before, after) in (told.get("widths") or {}).items():
        network = str(group).partition(".")[0]
        left, whole = kept.get(network, (0, 0))
        kept[network] = (left + after, whole + before)
    largest = {int(step): dict(distances)
               for step, distances in (told.get("largest") or {}).items() if distances}  # fmt: skip
    return Seed(
        seed=name,
        step=int(told.get("step") or 0),
        steps=int(told.get("steps") or 0),
        forced=bool(told.get("forced")),
        kept=kept,
        overlap={network: (share, chance)
                 for network, (share, chance) in (told.get("overlap") or {}).items()},
        largest=dict(sorted(largest.items())),
        draws=len(told.get("largest") or {}),
        thin_flops={str(name): float(share)
                    for name, share in (told.get("thin_flops") or {}).items()},
    )  # fmt: skip


def settled_table(group: Sequence[Watched]) -> Table:
    """One row a share of channels and seed: when it was cut, how, and what was kept."""
    networks = sorted({network for watched in group for network in watched.networks})
    rows = [
        (f"{watched.search.compress:g},\u00a0seed\u00a0{seed.seed}",
         f"{seed.step:,}\u00a0of\u00a0{seed.steps:,}",
         "FORCED" if seed.forced else "settled",
         *(cell for network in networks for cell in _cells(seed, network)))
        for watched in group for seed in watched.seeds
    ]  # fmt: skip
    columns = ("compress", "cut at step", "found or forced",
               *(name for network in networks
                 for name in (f"{network}: channels kept", "kept at the end too")))  # fmt: skip
    note = (
        "Kept at the end too: the share of the kept channels that the scores at the end of dense "
        "training choose as well; in brackets what chance gives."
    )
    return Table("When each cut was made", columns, tuple(rows), note)


def _cells(seed: Seed, network: str) -> tuple[str, str]:
    if network not in seed.kept:
        return NONE, NONE
    left, whole = seed.kept[network]
    share = seed.overlap.get(network)
    both = NONE if share is None else f"{100 * share[0]:.0f}%\u00a0({100 * share[1]:.0f}%)"
    return f"{left:,}\u00a0of\u00a0{whole:,}", both


def rule_words(watched: Watched) -> list[str]:
    """How it was decided that channels had settled, in sentences."""
    least = _RULES.get(watched.rule, "by less than {delta:g}").format(delta=watched.delta)
    # Networks without scales are ranked apart in any case; norm_words names them.
    pooled = [name for name in watched.networks if name in watched.by_scale]
    pool = "Each network ranks its own channels."
    if watched.settle == "pooled" and len(pooled) > 1:
        whose = "all pruned networks" if pooled == watched.networks else " and ".join(pooled)
        pool = f"The channels of {whose} are ranked in one pool."
    words = [
        f"Rule {watched.rule}: a network has settled at the first draw whose mask differs from "
        f"each of the four before it {least}; the cut is made when the last network has.",
        pool if watched.settle in ("pooled", "apart") else "",
        "Settled says that the order of the channels has stopped moving, and not that the order "
        "is worth anything: that is for the comparison with random-channels to say.",
    ]
    return [word for word in words if word]


def forced_words(found: Iterable[Watched], searches: Sequence[Drawn]) -> str:
    """What is to be read before the verdict where channels were cut by force; empty for none."""
    moving: list[tuple[Watched, list[Seed]]] = []
    unjudged: list[tuple[Watched, list[Seed]]] = []
    for watched in found:
        for told, kind in ((True, moving), (False, unjudged)):
            if seeds := [seed for seed in watched.forced if bool(seed.largest) is told]:
                kind.append((watched, seeds))
    words = []
    if moving:
        words.append(
            f"Forced: {_named(moving, searches)}. The channels had not settled by step "
            f"{_last(moving)}, half of the training, and were cut as they then were."
        )
    if unjudged:
        counts = sorted({seed.draws for _, seeds in unjudged for seed in seeds})
        few = " or ".join(map(str, counts)) if counts != [0] else "none"
        words.append(
            f"Forced: {_named(unjudged, searches)}. Too few masks were drawn to judge whether the "
            f"channels had settled: {few} of the five that the rule compares, by step "
            f"{_last(unjudged)}, half of the training. The channels were cut as they then "
            "were; a longer training (--epochs) draws more masks."
        )
    if words:
        words.append("That is no early-bird ticket, only a cut at half time.")
    return " ".join(words)


def _named(found: Iterable[tuple[Watched, list[Seed]]], searches: Sequence[Drawn]) -> str:
    """The searches and their seeds, in words."""
    return "; ".join(
        f"{label_of(watched.search, searches) or 'early-bird'} "
        f"({'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seed.seed for seed in seeds)})"
        for watched, seeds in found
    )


def _last(found: Iterable[tuple[Watched, list[Seed]]]) -> str:
    return f"{max(seed.step for _, seeds in found for seed in seeds):,}"


def left_table(group: Sequence[Watched]) -> Table | None:
    """Which layers could not be cut, and why."""
    left = {name: why for watched in group for name, why in watched.left.items()}
    if not left:
        return None
    return Table("Layers that could not be cut", ("layer", "why"), tuple(sorted(left.items())))


def norm_words(group: Sequence[Watched]) -> str:
    """Which networks were ranked by filter norms, having no scales to go by; empty for none."""
    by_norm = sorted({network for watched in group for network in watched.networks
                      if network not in watched.by_scale})  # fmt: skip
    if not by_norm:
        return ""
    one = len(by_norm) == 1
    return (
        f"Ranked by the norms of their filters, within their own network: {', '.join(by_norm)}, "
        f"{'which has' if one else 'which have'} no normalisation layer whose scales could be read."
    )


def thin_words(group: Iterable[Watched]) -> str:
    """Which networks of thin-flops are not of the work that they should be; empty for none."""
    far: dict[str, list[tuple[float, float]]] = {}
    for watched in group:
        for seed in watched.seeds:
            for network, share in seed.thin_flops.items():
                if round(abs(share - 1), 9) > NEAR:  # 1.02 - 1 is more than 0.02
                    far.setdefault(network, []).append((share, watched.search.compress or 0.0))
    if not far:
        return ""
    said = []
    for network, found in sorted(far.items()):
        share, compress = max(found, key=lambda each: abs(each[0] - 1))
        said.append(f"{network} {100 * share:.1f}% at {compress:g}")
    return (
        f"thin-flops is not within {100 * NEAR:g}% of the multiply-adds of every smaller network, "
        "as whole widths come no nearer, and takes as many steps as make up for it; furthest off "
        f"by network and compress: {', '.join(said)}."
    )


def kept_text(watched: Watched) -> str:
    """A line that heads a search's drawings: how much is kept and when it was cut."""
    cuts = [f"{seed.step:,}{' (FORCED)' if seed.forced else ''}" for seed in watched.seeds]
    many = "steps" if len(cuts) > 1 else "step"
    left = sum(kept for kept, _ in watched.seeds[0].kept.values())
    whole = sum(n for _, n in watched.seeds[0].kept.values())
    share = f", {percent(1 - left / whole)} of the channels removed" if whole else ""
    return f"cut at {many} {', '.join(cuts)} of {watched.seeds[0].steps:,}{share}"


def every(watched: Watched) -> int:
    """Each how many-th draw is shown, so that a heat map has no more than are to be seen."""
    return max(1, -(-len(watched.draws) // MOST_DRAWS))


def distances_csv(watched: Watched) -> str:
    """Both drawings of a search as CSV: what the rule compared, and the first seed's matrix.

    ``pairwise`` lines have the distances to each earlier draw that is shown, and to itself.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("measure", "seed", "network", "step", "distances"))
    for seed in watched.seeds:
        for step, distances in seed.largest.items():
            for network, value in distances.items():
                writer.writerow(("compared", seed.seed, network, step, value))
    step_by = every(watched)
    draws = watched.draws[::step_by]
    for network, table in watched.matrix.items():
        for place, (step, values) in enumerate(zip(draws, table[::step_by], strict=False), 1):
            shown = " ".join(map(str, values[::step_by][:place]))
            writer.writerow(("pairwise", watched.seeds[0].seed, network, step, shown))
    return text.getvalue()
