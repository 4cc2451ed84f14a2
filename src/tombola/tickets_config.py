"""Which config does a ticket ask for? The one it was found with, the caller's words over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tombola.config import Config, build
from tombola.errors import TicketError
from tombola.registry import is_file_spec, split_file_spec
from tombola.sparsity.layout import shown


def ticket_config(
    ticket: Path, manifest: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> Config:
    """The config that a ticket was found with, the caller's tables over it."""
    asked = str(tables["task"]["name"])
    own = manifest.get("task")
    if (split_file_spec(asked)[1] if is_file_spec(asked) else asked) != own:
        raise TicketError(
            f"{ticket} is a ticket of task {shown(own)}, not of {asked}; give its own task"
        )
    stored = manifest.get("config")
    if not isinstance(stored, Mapping):
        raise TicketError(
            f"{ticket} does not say how it was found (no config in its manifest); "
            "take a ticket written by tombola find"
        )
    merged: dict[str, dict[str, Any]] = {}
    for section in {*stored, *tables}:
        table = stored.get(section, {})
        merged[section] = {
            **(table if isinstance(table, Mapping) else {}),
            **tables.get(section, {}),
        }
    # The file names its task; only the caller's name may lead to a file of code (design 3.5).
    for section in ("task", "data"):
        merged[section]["name"] = tables[section]["name"]
    merged.get("prune", {}).pop("criterion", None)
    return build(merged)
