"""What do kept searches say of the paper's claims? One line a claim, from a folder's claims.toml.

The file is a list of ``[[claim]]``: ``says`` (the claim, in our words), ``paper`` (its number
there), ``of`` (the reproduction that is about it), ``search`` (a folder beside the file), and a
rule as those of ``files/``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.cli.reproduce import claims
from tombola.cli.reproduce.outcomes import OPEN, Outcome
from tombola.errors import ConfigError

FILE = "claims.toml"
_TEXTS = ("says", "paper", "of", "search")


@dataclass(frozen=True)
class Claim:
    """A claim, the folder that is asked, and what it says."""

    says: str
    paper: str
    of: str
    search: Path
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        texts = {name: str(getattr(self, name)) for name in _TEXTS}
        return texts | self.outcome.as_dict()


def judge_kept(root: Path) -> list[Claim]:
    """Every claim of ``root/claims.toml`` held to its search; ConfigError if it is not as above."""
    path = root / FILE
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; give a folder of kept searches with a {FILE}, such as "
            "docs/results of the repository"
        ) from error
    found = table.get("claim")
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{path} has no [[claim]]; docs/reproduce.md tells how one is written")
    return [_judge_claim(root, given) for given in found]


def _judge_claim(root: Path, given: Mapping[str, Any]) -> Claim:
    for name in _TEXTS:
        if not isinstance(given.get(name), str):
            raise ConfigError(f"{root / FILE}: a claim has no {name}: {dict(given)!r:.80}")
    claims.read(given["of"])
    rule = {key: value for key, value in given.items() if key not in _TEXTS}
    claims.check_rules(FILE, [rule], searches=1)
    from tombola.cli.reproduce import rules
    from tombola.report.folder import read_folder

    folder = read_folder(root / given["search"])
    outcome = rules.judge(rule, folder)
    resolved = folder.config.get("resolved") or {}
    steps, epoch = resolved.get("steps") or 0, resolved.get("epoch_steps") or 0
    if outcome.state != OPEN and steps < epoch:
        # How sparse networks start to learn is no answer to how well they end.
        why = {"state": OPEN, "why": "trained for under one epoch"}
        outcome = Outcome(**outcome.as_dict() | why)
    return Claim(given["says"], given["paper"], given["of"], folder.out, outcome)


def kept_text(found: Sequence[Claim]) -> str:
    """A line a claim, as a Markdown table."""
    lines = ["| claim | paper | here | n | state | search |", "|---" * 6 + "|"]
    for each in found:
        made = each.outcome
        why = f": {made.why}" if made.state == OPEN and made.why not in ("", made.state) else ""
        name, seeds = each.search.name, made.n if made.n is not None else "-"
        link = f"[{name}]({each.search.as_posix()})"
        cells = (each.says, each.paper, _number(made), seeds, f"{made.state}{why}", link)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _number(made: Outcome) -> str:
    """The number with its bounds: a bracket of sparsities, a share in percent, or a ratio."""
    if made.unit == "sparsity":
        edge = "no level" if made.low is None else f"{100 * made.low:.1f}%"
        return edge if made.high is None else f"{edge}, worse from {100 * made.high:.1f}%"
    if made.number is None:
        return "-"
    share = made.unit == "of dense"
    number, low, high = (
        None if each is None else f"{100 * each:.0f}%" if share else f"{each:.3g}"
        for each in (made.number, made.low, made.high)
    )
    return f"{number} {made.unit}" + (f" ({low} to {high})" if low and high else "")
