"""How is it said that a search is not whole yet? By ``progress`` of summary.json, gone at the end.

``{"done": 9, "of": 31}``: trainings that have been judged, and all there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = ("done", "of")


def in_progress(summary: dict[str, Any], progress: Mapping[str, int] | None) -> dict[str, Any]:
    """summary.json's object on a search that goes on: every sentence in it begins so.

    As it is where ``progress`` is None: the search is whole.
    """
    if progress is None:
        return summary
    summary = {**summary, "progress": dict(progress)}
    routes = (summary.get("transfer") or {}).get("routes") or ()
    found = (
        summary["verdicts"], *summary["arms"].values(), *(route["metrics"] for route in routes)
    )  # fmt: skip
    for verdict in (verdict for verdicts in found for verdict in verdicts.values()):
        verdict["sentence"] = so_far(summary, verdict["sentence"])
    return summary


def progress_text(summary: Mapping[str, Any]) -> str:
    """``in progress: 9 of 31 trainings``; empty for a search that is whole."""
    progress = summary.get("progress")
    done, of = (progress.get(key) if isinstance(progress, Mapping) else None for key in _KEYS)
    whole = not (isinstance(done, int) and isinstance(of, int))
    return "" if whole else f"in progress: {done:,} of {of:,} trainings"


def so_far(summary: Mapping[str, Any], sentence: str) -> str:
    """A sentence on a search as it begins before the search is whole; else as it is."""
    text = progress_text(summary)
    if not text:
        return sentence
    begin = f"{text.replace(':', ',').capitalize()}: "
    return begin + sentence.replace(begin, "")
