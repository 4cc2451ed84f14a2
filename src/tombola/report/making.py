"""How was this made? Command, versions, hashes and settings, as a search's files have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HASH = re.compile(r"[0-9a-f]{32,128}")


def made(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the last section of the page, from config.json and summary.json."""
    return {
        "command": _text(config.get("command")),
        "made_with": _made_with(config, summary),
        "hashes": _hashes(config, summary),
        "settings": _flat({name: config.get(name) or {} for name in ("config", "resolved")}),
    }


def _hashes(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every hash in the config and the judge's record: data, judge, commit, task file."""
    found = _flat({**config, "judge": summary.get("judge") or {}})
    return [(name.removeprefix("resolved."), text) for name, text in found
            if _HASH.fullmatch(text)]  # fmt: skip


def _made_with(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, machine, device, threads, commit: whatever the config records of them."""
    resolved = config.get("resolved") or {}
    known = {name: resolved[name] for name in ("images", "data_note") if name in resolved}
    run = (config.get("config") or {}).get("run") or {}
    return [
        *_flat(config.get("versions") or {}),
        *_flat({name: run[name] for name in ("device", "workers", "threads") if name in run}),
        *_flat(known),
        *_flat(summary.get("judge") or {}, "judge"),
        *_flat(summary.get("runs") or {}, "runs"),
    ]


def _text(command: Any) -> str:
    """The command line, given as a string or as a list of arguments."""
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested tables as (dotted name, text) pairs in order."""
    return list(_walk(value, name))


def _walk(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "" if value is None else str(value)
