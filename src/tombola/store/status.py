"""How far is a search, wherever it runs? Read from its folder, without torch.

``status.json`` is what a search under way tells (``engine.status_file``), ``.lock`` who works in
the folder, ``summary.json`` what is judged, and ``failed.json`` of a run that it was given up.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tombola.config.atomic import alive
from tombola.store.runs import FAILED
from tombola.store.unfinished import progress_text

STATUS = "status.json"
SILENT_SECONDS = 120.0
"""A search on another machine that told nothing for so long is not taken for a running one."""


def read_status(out: Path) -> dict[str, Any]:
    """What is known of the search in a folder, as JSON values.

    ``state``: running, stopped or whole; ``holder``: process, host and since when; ``steps`` and
    ``runs`` done and of how many, ``left_seconds``, ``under_way`` (label and seconds),
    ``told_seconds`` (since it last told) while it runs; ``trainings`` that are judged; ``failed``
    (label and why); ``command`` that goes on.
    """
    told, holder = _read(out / STATUS), _read(out / ".lock")
    config, summary = _read(out / "config.json"), _read(out / "summary.json")
    now = time.time()
    silent = now - _write_time(out / STATUS)
    if holder.get("host") == socket.gethostname():
        running = isinstance(holder.get("pid"), int) and alive(holder["pid"])
    else:
        running = bool(holder) and silent < SILENT_SECONDS
    whole = bool(summary) and not progress_text(summary)
    found: dict[str, Any] = {
        "state": "running" if running else "whole" if whole else "stopped",
        "trainings": summary.get("progress"),
        "failed": list(_read_failed(out)),
        "command": config.get("command"),
    }
    if running:
        begun = told.get("under_way") or []
        found |= {key: told.get(key) for key in ("steps", "runs", "left_seconds")}
        found["under_way"] = [
            {"label": each["label"], "seconds": max(0.0, now - each["since"])} for each in begun
        ]
        found |= {"holder": holder, "told_seconds": silent if told else None}
    return found


def status_text(out: Path, found: Mapping[str, Any]) -> str:
    """Lines on :func:`read_status`."""
    return "\n".join(_lines(out, found))


def _lines(out: Path, found: Mapping[str, Any]) -> Iterator[str]:
    state, steps = found["state"], found.get("steps")
    if state == "running":
        pid, host, since = (found["holder"].get(key, "?") for key in ("pid", "host", "since"))
        yield f"{out}: running since {since} (process {pid} on {host})"
    elif state == "stopped" and found["command"]:
        yield f"{out}: stopped; to go on: {found['command']}"
    else:
        yield f"{out}: {state}"
    if steps:
        left = found.get("left_seconds")
        about = "" if left is None else f", about {_duration(left)} left"
        yield f"{steps['done']:,} of {steps['of']:,} steps{about}"
    for each in found.get("under_way", ()):
        yield f"under way for {_duration(each['seconds'])}: {each['label']}"
    if text := progress_text({"progress": found["trainings"]}):
        yield text
    for each in found["failed"]:
        yield f"failed: {each['label']} ({each['why']})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _read_failed(out: Path) -> Iterator[dict[str, str]]:
    for path in sorted((out / "store").glob(f"*.part/{FAILED}")):
        record = _read(path)
        yield {key: str(record.get(key, "?")) for key in ("label", "why")}


def _write_time(path: Path) -> float:
    """When a file was written last; long ago if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
