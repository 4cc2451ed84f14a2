"""What does each reproduction claim, and which searches decide it? The TOML files in ``files/``.

A file has ``title``, ``claim`` (the paper's, in our words), ``source``, perhaps ``sparsity`` (what
is claimed, to be marked in the drawing), rules ``[[holds]]``, and a table a scale with ``commands``
(words of ``tombola find``, without ``--out``), ``core_hours`` and ``note``; a scale may have rules
of its own. ``of = [NAMES]`` instead of commands: the searches of those other files, in order, so
that nothing is trained twice.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError, unknown

FILES = Path(__file__).parent / "files"
ROOT = Path("runs") / "reproduce"
"""Where the searches go, below the folder in which the command is called."""
SCALES = ("minutes", "laptop", "gpu")
_ASKED: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "state_is": (frozenset({"is"}), frozenset({"arm", "route", "metric"})),
    "frontier_at_least": (frozenset({"value"}), frozenset({"arm", "metric"})),
    "comparison_better": (frozenset({"a", "b"}), frozenset({"metric"})),
    "cost_share_at_most": (frozenset({"arm", "value"}), frozenset({"compress", "of"})),
    "measured_below": (frozenset({"metric", "than"}), frozenset({"arm"})),
}
"""Kind of rule -> (keys that it must have, keys that it may have)."""
_WORDS = {
    "is": ("wins", "matches", "worse", "equal"),
    "of": ("flops", "seconds"),
}
_HEAD = {"title": str, "claim": str, "source": str}
_SCALE = {"commands", "core_hours", "note", "holds"}


@dataclass(frozen=True)
class Search:
    """One call of ``tombola find``, and where its folder is."""

    words: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> str:
        """As it would be typed."""
        return shlex.join(["tombola", "find", *self.words, "--out", str(self.folder)])


@dataclass(frozen=True)
class Scale:
    """The searches of one size, and the rules that decide the claim by them."""

    name: str
    searches: tuple[Search, ...]
    rules: tuple[Mapping[str, Any], ...]
    core_hours: float | None
    """An estimate, of one core; None: not known."""
    note: str


@dataclass(frozen=True)
class Reproduction:
    """One table or figure of the paper."""

    name: str
    title: str
    claim: str
    source: str
    sparsity: float | None
    scales: Mapping[str, Scale]

    def scale(self, name: str) -> Scale:
        """One of its scales; ConfigError if it has none of that name."""
        if name not in self.scales:
            has = ", ".join(self.scales) or "none"
            raise ConfigError(f"{self.name} has no scale {name}; it has: {has}")
        return self.scales[name]


def names() -> list[str]:
    """Those of all reproductions: tables, then figures, then those of the appendix."""
    return sorted((path.stem for path in FILES.glob("*.toml")), key=_order)


def _order(name: str) -> tuple[bool, bool, int, str]:
    number = re.sub(r"\D", "", name)
    return not name.startswith("table"), "A" in name, int(number or 0), name


def read(name: str) -> Reproduction:
    """One reproduction; ConfigError for a name that is none or a file that is not as it should."""
    known = names()
    if name not in known:
        raise unknown("reproduction", name, known)
    table = _table(name)
    for key, kind in _HEAD.items():
        if not isinstance(table.get(key), kind):
            raise _unfit(name, f"it has no {key}")
    odd = table.keys() - _HEAD.keys() - {"sparsity", "of", "holds", *SCALES}
    if odd:
        raise _unfit(name, f"{sorted(odd)[0]!r} is no key")
    scales = _borrowed(name, table) if "of" in table else _own_scales(name, table)
    sparsity = table.get("sparsity")
    return Reproduction(name, table["title"], table["claim"], table["source"], sparsity, scales)


def _unfit(name: str, why: str) -> ConfigError:
    name = name if name.endswith(".toml") else f"{name}.toml"
    return ConfigError(f"{name} is not as a reproduction is written: {why}; mend the file")


def _table(name: str) -> dict[str, Any]:
    try:
        return tomllib.loads((FILES / f"{name}.toml").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unfit(name, str(error)) from error


def _own_scales(name: str, table: Mapping[str, Any]) -> dict[str, Scale]:
    found = {}
    for scale in (scale for scale in SCALES if scale in table):
        part = table[scale]
        if odd := part.keys() - _SCALE:
            raise _unfit(name, f"{sorted(odd)[0]!r} is no key of {scale}")
        searches = tuple(
            Search(tuple(shlex.split(command)), ROOT / f"{name}-{scale}" / str(number))
            for number, command in enumerate(part.get("commands", ()), 1)
        )
        if not searches:
            raise _unfit(name, f"{scale} has no commands")
        rules = check_rules(name, part.get("holds", table.get("holds", ())), len(searches))
        hours = part.get("core_hours")
        found[scale] = Scale(scale, searches, rules, hours, part.get("note", ""))
    return found


def _borrowed(name: str, table: Mapping[str, Any]) -> dict[str, Scale]:
    """The scales that all of the named files have, with their searches one after another."""
    others = []
    for other in table["of"]:
        if "of" in _table(other):
            raise _unfit(name, f"{other} borrows its searches itself")
        others.append(read(other))
    found = {}
    for scale in SCALES:
        parts = [each.scales[scale] for each in others if scale in each.scales]
        if len(parts) < len(others):
            continue
        searches = tuple(search for part in parts for search in part.searches)
        own = table.get(scale, {})
        if odd := own.keys() - {"holds", "note"}:
            raise _unfit(name, f"{sorted(odd)[0]!r} is no key of {scale} beside of")
        rules = check_rules(name, own.get("holds", table.get("holds", ())), len(searches))
        hours = [part.core_hours for part in parts]
        whole = None if None in hours else sum(h for h in hours if h is not None)
        notes = dict.fromkeys(filter(None, (own.get("note"), *(part.note for part in parts))))
        found[scale] = Scale(scale, searches, rules, whole, " ".join(notes))
    return found


def check_rules(
    name: str, given: Sequence[Mapping[str, Any]], searches: int
) -> tuple[Mapping[str, Any], ...]:
    """Rules that were checked; each is of one search, counted from 1; ConfigError if odd."""
    for rule in given:
        kind = str(rule.get("rule"))
        if kind not in _ASKED:
            raise _unfit(name, f"{kind!r} is no rule; there are: {', '.join(_ASKED)}")
        needed, allowed = _ASKED[kind]
        keys = rule.keys() - {"rule", "search"}
        if lacking := needed - keys:
            raise _unfit(name, f"{kind} needs {sorted(lacking)[0]}")
        if odd := keys - needed - allowed:
            raise _unfit(name, f"{kind} takes no {sorted(odd)[0]!r}")
        for key in _WORDS.keys() & keys:
            if rule[key] not in _WORDS[key]:
                raise _unfit(name, f"{key} is {rule[key]!r}, none of {', '.join(_WORDS[key])}")
        if ("route" in rule) != (rule.get("is") == "equal"):
            raise _unfit(name, "equal is asked of a route, and of a route nothing else")
        if not 1 <= rule.get("search", 1) <= searches:
            raise _unfit(name, f"search {rule['search']} of {searches}")
    if not given:
        raise _unfit(name, "nothing is asked (holds)")
    return tuple(given)
