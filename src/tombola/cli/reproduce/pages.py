"""How is a reproduction shown? As a list, as the paper's claim beside our numbers, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.cli.reproduce.claims import ROOT, Reproduction, Scale
from tombola.cli.reproduce.outcomes import Outcome

NONE = "-"


@dataclass(frozen=True)
class Answer:
    """A reproduction at one scale, and what its searches say."""

    made: Reproduction
    scale: Scale
    state: str
    outcomes: Sequence[Outcome]

    @property
    def folder(self) -> Path:
        """Where claims.md and claims.json go."""
        return ROOT / f"{self.made.name}-{self.scale.name}"

    @property
    def drawing(self) -> Path:
        """Quality against sparsity of the first search, the claimed sparsity marked."""
        return self.folder / "quality.svg"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.made.name,
            "title": self.made.title,
            "claim": self.made.claim,
            "source": self.made.source,
            "claimed_sparsity": self.made.sparsity,
            "scale": self.scale.name,
            "core_hours": self.scale.core_hours,
            "note": self.scale.note,
            "state": self.state,
            "drawing": str(self.drawing) if self.drawing.is_file() else None,
            "claims": [outcome.as_dict() for outcome in self.outcomes],
            "searches": [
                {
                    "command": search.command,
                    "folder": str(search.folder),
                    "report": str(report) if (report := _report(search.folder)) else None,
                }
                for search in self.scale.searches
            ],
        }


def _report(folder: Path) -> Path | None:
    path = folder / "report.html"
    return path if path.is_file() else None


def hours_text(hours: float | None) -> str:
    """Core-hours with the unit; a question mark where nobody knows."""
    return "? h" if hours is None else f"{hours:g} h"


def list_text(answers: Sequence[Answer]) -> str:
    """One line a reproduction: its scales with their core-hours and states."""
    names = dict.fromkeys(answer.made.name for answer in answers)
    lines = []
    for name in names:
        own = [answer for answer in answers if answer.made.name == name]
        cells = (f"{a.scale.name} {hours_text(a.scale.core_hours)}: {a.state}" for a in own)
        lines.append((name, own[0].made.source, own[0].made.title, "; ".join(cells)))
    head = ("name", "of the paper", "what", "scales (core-hours): state of what was run here")
    text = _aligned([head, *lines])
    return f"{text}\ntombola reproduce NAME --scale minutes|laptop|gpu runs one of them."


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def table_text(answers: Sequence[Answer]) -> str:
    """Every claim beside our number, as a Markdown table."""
    head = "| name | scale | asked | ours | 95% interval | n | state |"
    lines = [
        f"| {answer.made.name} | {answer.scale.name} | {_row(outcome)} |"
        for answer in answers
        for outcome in answer.outcomes
    ]
    return "\n".join([head, "|---" * 7 + "|", *lines])


def _row(outcome: Outcome) -> str:
    ours = NONE if outcome.number is None else f"{outcome.number:.4g} {outcome.unit}"
    known = outcome.low is not None or outcome.high is not None
    bounds = f"{_short(outcome.low)} to {_short(outcome.high)}" if known else NONE
    why = f" ({outcome.why})" if outcome.why and outcome.why != outcome.state else ""
    seeds = NONE if outcome.n is None else str(outcome.n)
    return " | ".join((outcome.text, ours, bounds, seeds, outcome.state + why))


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def answer_text(answer: Answer) -> str:
    """The whole of one reproduction: claim, numbers, commands and pages, as Markdown."""
    made, scale = answer.made, answer.scale
    parts = [
        f"# {made.title}",
        f"{made.name}, scale {scale.name} ({hours_text(scale.core_hours)} of one core). "
        f"State: {answer.state}.",
        f"The paper ({made.source}): {made.claim}",
        *([scale.note] if scale.note else []),
        table_text([answer]),
        *([f"Quality against sparsity: {answer.drawing}"] if answer.drawing.is_file() else []),
    ]
    for number, search in enumerate(scale.searches, 1):
        lines = [f"{number}. `{search.command}`"]
        if report := _report(search.folder):
            lines.append(f"   - page: {report}")
            lines.append(f"   - pictures: `tombola figure {search.folder}`")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def json_text(found: Mapping[str, Any]) -> str:
    """As claims.json has it."""
    return json.dumps(found, indent=2, sort_keys=True) + "\n"
