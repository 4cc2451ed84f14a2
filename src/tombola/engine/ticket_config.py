"""Which config does a ticket ask for? The one it was found with, the caller's words over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tombola.config.registry import DATA, TASKS, is_file_spec, split_file_spec
from tombola.config.sections import Config, build
from tombola.errors import ConfigError, TicketError, escape
from tombola.store.format import TICKET_FORMAT, Header, expect

NEEDED = ("task", "data_hash", "method", "seed", "round", "rewind_step", "config")
"""What a ticket's manifest must say so that its training can be repeated."""


def ticket_config(
    ticket: Path, manifest: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> Config:
    """The config that a ticket was found with, the caller's tables over it.

    TicketError if it does not say how it was found, or is of another task than the caller's.
    """
    unsaid = [key for key in NEEDED if manifest.get(key) is None]
    if unsaid:
        raise TicketError(
            f"{ticket} does not say how it was found (no {', '.join(unsaid)} in its manifest); "
            "take a ticket written by tombola find"
        )
    spec = tables["task"]["name"]
    name = split_file_spec(spec)[1] if is_file_spec(spec) else spec
    if manifest["task"] != name:
        raise TicketError(
            f"{ticket} is a ticket of task {escape(manifest['task'])}, not of {name}; "
            "give the task it was found with"
        )
    stored = manifest["config"]
    merged: dict[str, dict[str, Any]] = {}
    for section in {*stored, *tables}:
        table = stored.get(section, {})
        merged[section] = {
            **(table if isinstance(table, Mapping) else {}),
            **tables.get(section, {}),
        }
    # The file names its task, data, criterion and judge; only the caller's words may lead to a file
    # of code (design 3.5). Nothing is selected here, so the criterion is not asked for.
    for section in ("task", "data"):
        merged[section]["name"] = tables[section]["name"]
    merged.get("prune", {}).pop("criterion", None)
    merged.setdefault("judge", {})["features"] = tables.get("judge", {}).get("features", "")
    return build(merged)


def rebuild_config(header: Header, task: str | None, data: str | None) -> Config:
    """The config that ``verify --rebuild`` trains a ticket's start weights with.

    ``task`` and ``data`` name the code and images where the manifest names none that is built in.
    TicketError for what is no ticket or does not say how it was found, ConfigError if the task or
    data must be named.
    """
    expect(header, TICKET_FORMAT)
    path, manifest = Path(header.path), header.manifest
    tables = {
        "task": {"name": task or _known(path, manifest, "task", TASKS.names())},
        "data": {"name": data or _known(path, manifest, "data", DATA.names())},
        "search": {"optimizer_at_rewind": "fresh"},  # of what comes after the start weights
    }
    return ticket_config(path, manifest, tables)


def _known(path: Path, manifest: Mapping[str, Any], key: str, names: list[str]) -> str:
    """The built-in task or data that a manifest names: only the caller may name another."""
    name = manifest.get(key)
    if isinstance(name, str) and name in names:
        return name
    say = "--task path/to/file.py:Class" if key == "task" else "--data folder:PATH or FILE.py:NAME"
    raise ConfigError(
        f"{escape(path, 400)} is of {key} {escape(name)}, which is not built in; say with {say} "
        "what to train with"
    )
