"""What a search left in its folder, read for whatever is to be shown of it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tombola.config.atomic import write_atomic
from tombola.errors import ConfigError, DataError
from tombola.report import shapes
from tombola.store.tables import (
    DIVERGED,
    CostRow,
    KeyColumns,
    Row,
    columns,
    read_costs,
    read_results,
)

R = TypeVar("R", bound=KeyColumns)
MOST_BYTES = 1 << 26
"""Of a file that is read: a search of 50,000 trainings writes less."""
MOST_WRITTEN_BYTES = 1 << 24
"""Of a page or picture: those of a large search take a quarter of it."""
MOST_CHARACTERS = 40_000
"""Of a text in config.json, which may tell a long command."""
_NEEDED = ("config.json", "results.csv", "summary.json")


@dataclass(frozen=True)
class Folder:
    """The tables of a run directory."""

    out: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[Row]
    costs: list[CostRow]


def read_folder(out: Path) -> Folder:
    """Read config.json, results.csv, summary.json and costs.csv (which may be missing).

    ConfigError if ``out`` is no run directory, DataError if a table in it is not as it should be.
    """
    missing = [name for name in _NEEDED if not (out / name).is_file()]
    if missing and (out / "config.json").is_file() and (out / "store").is_dir():
        raise ConfigError(
            f"{str(out)!r}: no training has been judged yet; run the same command to go on"
        )
    if missing:
        what = "is no directory" if not out.is_dir() else f"has no {', '.join(missing)}"
        raise ConfigError(
            f"{str(out)!r} {what}; give the directory that tombola find or train wrote"
        )
    costs = [out / "costs.csv"] if (out / "costs.csv").is_file() else []
    for path in (*(out / name for name in _NEEDED), *costs):
        if (size := path.stat().st_size) > MOST_BYTES:
            raise _unfit(path, f"it has {size:,} bytes; at most {MOST_BYTES:,} are read")
    return Folder(
        out=out,
        config=_read_json(out / "config.json", shapes.CONFIG, MOST_CHARACTERS),
        summary=_read_json(out / "summary.json", shapes.SUMMARY),
        rows=_checked(out / "results.csv", read_results),
        costs=[row for path in costs for row in _checked(path, read_costs)],
    )


def _unfit(path: Path, why: object) -> DataError:
    return DataError(
        f"{path} is not as a search writes it: {why}; run the search's command again to write it "
        "anew"
    )


def _checked(path: Path, read: Callable[[Path], list[R]]) -> list[R]:
    """The rows of a table; DataError for what no search measures."""
    rows = read(path)
    try:
        shapes.check_rows(rows)
    except shapes.UnfitError as error:
        raise _unfit(path, error) from error
    return rows


def ended(folder: Folder) -> Folder:
    """Without the costs of trainings that diverged: what they cost is no cost of their result."""
    names = (*columns(KeyColumns), "draw")
    gone = {
        tuple(getattr(row, name) for name in names) for row in folder.rows if row.metric == DIVERGED
    }
    own = [c for c in folder.costs if tuple(getattr(c, name) for name in names) not in gone]
    return replace(folder, costs=own)


def _read_json(
    path: Path, shape: shapes.Shape, most_characters: int = shapes.MOST_CHARACTERS
) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; run the search's command again to write it anew"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds a {type(value).__name__}, not an object; "
            "run the search's command again to write it anew"
        )
    try:
        shapes.check_amount(value, most_characters)
        shape(value, path.name)
    except shapes.UnfitError as error:
        raise _unfit(path, error) from error
    return value


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; ConfigError if the directory does not take it.

    A full disk is no fault of the directory: OSError, as when any other file is written. DataError
    for a page or picture that is larger than any of a search.
    """
    if len(content) > MOST_WRITTEN_BYTES:
        raise DataError(
            f"{path} would have {len(content):,} bytes, more than {MOST_WRITTEN_BYTES:,}: the "
            "files that it is made from tell more than a search writes"
        )
    try:
        write_atomic(path, content)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; make the directory writable"
        ) from error
