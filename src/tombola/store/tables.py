"""What was measured and what it cost: the rows of results.csv and costs.csv, and their exact bytes.

The bytes are a function of the set of rows: columns in the order of the contract, rows sorted by
the columns in order with numbers as numbers, floats by ``repr``, lines ended by LF, an empty cell
for "does not apply". Torch-free, so that the report can read them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from tombola.config.atomic import write_atomic
from tombola.errors import DataError

DIVERGED = "diverged"
"""Metric name of the event row (value 1) of a run whose loss was not finite."""
NOT_RUN = "not-run"
"""Metric name of the event row (value 1) of a later round of a chain that diverged."""

Number = int | float
_TEXT = frozenset({"task", "data", "method", "arm", "networks", "precision", "metric"})
_WHOLE = frozenset({"rewind_steps", "seed", "round", "n", "step", "draw"})
_REQUIRED = frozenset({"seed", "round", "sparsity", "sparsity_all", "value"})


@dataclass(frozen=True, kw_only=True)
class KeyColumns:
    """The columns that say which training a row is about; None or "" = does not apply."""

    task: str = ""
    data: str = ""
    method: str = ""
    arm: str = ""
    networks: str = ""
    rewind_steps: int | None = None
    precision: str = ""
    compress: Number | None = None
    seed: int
    round: int
    """0 = dense."""
    sparsity: float
    """1 - kept / prunable over the pruned networks."""
    sparsity_all: float
    """1 - kept parameters / all parameters of all networks."""

    def __post_init__(self) -> None:
        # NumPy scalars print as np.float64(...) and -0.0 as -0.0: neither may reach the file.
        for name in columns(type(self)):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    def as_dict(self) -> dict[str, Any]:
        """Column name -> value, in the order of the columns."""
        return {name: getattr(self, name) for name in columns(type(self))}


@dataclass(frozen=True, kw_only=True)
class Row(KeyColumns):
    """One measurement: a row of results.csv."""

    metric: str
    value: Number
    n: int | None = None
    """How many images, or reals and as many fakes, the value was computed from."""
    step: int | None = None
    """Training step at which the network was judged."""
    draw: int | None = None
    """Which draw of a control that is drawn several times, from 1; the column is written only where
    some row has it."""


@dataclass(frozen=True, kw_only=True)
class CostRow(KeyColumns):
    """What one training cost: a row of costs.csv; 1 MAC = 2 FLOPs."""

    train_flops: Number | None = None
    train_seconds: float | None = None
    search_flops: Number | None = None
    """FLOPs of everything trained before it to get the ticket: dense and earlier rounds."""
    search_seconds: float | None = None
    eval_seconds: float | None = None
    macs_per_sample: Number | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    ticket_bytes: int | None = None
    model_bytes: int | None = None
    peak_memory_bytes: int | None = None
    draw: int | None = None
    """As in ``Row``."""


R = TypeVar("R", bound=KeyColumns)


def columns(kind: type[KeyColumns]) -> tuple[str, ...]:
    """The columns of a kind of row, in the order of the file."""
    return tuple(field.name for field in fields(kind))


def _undrawn(kind: type[KeyColumns]) -> tuple[str, ...]:
    """The columns of a file in which no control is drawn several times."""
    return tuple(name for name in columns(kind) if name != "draw")


def to_csv(rows: Iterable[R], kind: type[R]) -> str:
    """The whole file as text: header, then each distinct row once, in canonical order.

    A row given twice (the dense run that two searches share) is written once.
    """
    rows = list(rows)
    drawn = any(getattr(row, "draw", None) is not None for row in rows)
    names = columns(kind) if drawn else _undrawn(kind)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    lines = {tuple(_cell(getattr(row, name)) for name in names): _order(row) for row in rows}
    ordered = sorted(lines, key=lambda line: (lines[line], line))
    writer.writerows(ordered)
    return buffer.getvalue()


def sorted_rows(rows: Iterable[R]) -> list[R]:
    """Rows in canonical order: by the columns in order, numbers as numbers, empty cells first."""
    return sorted(rows, key=_order)


def write_rows(path: Path, rows: Iterable[R], kind: type[R]) -> None:
    """Write the file whole or not at all: a temporary name, flushed to disk, then renamed."""
    write_atomic(path, to_csv(rows, kind).encode("utf-8", "backslashreplace"))


def write_results(path: Path, rows: Iterable[Row]) -> None:
    """Write results.csv."""
    write_rows(path, rows, Row)


def write_costs(path: Path, rows: Iterable[CostRow]) -> None:
    """Write costs.csv."""
    write_rows(path, rows, CostRow)


def read_results(path: Path) -> list[Row]:
    """Rows of results.csv in the file's order; DataError with the line for a file that is not."""
    return _read(path, Row)


def read_costs(path: Path) -> list[CostRow]:
    """Rows of costs.csv in the file's order; DataError with the line for a file that is not."""
    return _read(path, CostRow)


def _read(path: Path, kind: type[R]) -> list[R]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            names = columns(kind) if "draw" in header else _undrawn(kind)
            if tuple(header) != names:
                raise DataError(
                    f"{path} has the columns {_shown(header)!r}, not {','.join(names)!r}; "
                    "run the search's command again to write it anew"
                )
            place = f"{path}, line"
            return [kind(**_parsed(f"{place} {reader.line_num}", cells, names)) for cells in reader]
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give the directory of a search"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a CSV file in UTF-8 ({error}); "
            "run the search's command again to write it anew"
        ) from error


def _parsed(fault: str, cells: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The cells of a line by their columns; DataError that begins with ``fault``."""
    remedy = "run the search's command again to write it anew"
    if len(cells) != len(names):
        raise DataError(f"{fault}: {len(cells)} cells, not {len(names)}; {remedy}")
    values: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            values[name] = _value(name, cell)
        except ValueError:
            need = "a whole number" if name in _WHOLE else "a number"
            raise DataError(f"{fault}: {name} is {cell[:40]!r}, not {need}; {remedy}") from None
    return values


def _value(name: str, cell: str) -> str | Number | None:
    """A cell as the value it stands for; ValueError if it cannot."""
    if name in _TEXT:
        return cell
    if cell == "":
        if name in _REQUIRED:
            raise ValueError(name)
        return None
    try:
        return int(cell)
    except ValueError:
        if name in _WHOLE:
            raise
        return float(cell)


def _plain(name: str, value: Any) -> Any:
    """The value as a plain Python one of the column's type, so that its text is the same always."""
    if name in _TEXT:
        return str(value or "")
    if value is None:
        assert name not in _REQUIRED, f"column {name} is empty"
        return None
    if name in _WHOLE or (hasattr(value, "__index__") and not name.startswith("sparsity")):
        return int(value)
    return float(value) + 0.0  # -0.0 + 0.0 = 0.0


def _cell(value: str | Number | None) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def _order(row: KeyColumns) -> tuple[tuple[int, Any], ...]:
    return tuple(_rank(value) for value in row.as_dict().values())


def _rank(value: str | Number | None) -> tuple[int, Any]:
    """A sort key: empty first, numbers by size, nan last (it compares with nothing)."""
    if value is None:
        return (0, 0)
    if isinstance(value, float) and math.isnan(value):
        return (2, 0)
    return (1, value)


def _shown(header: Sequence[str]) -> str:
    text = ",".join(header)
    return text if len(text) <= 80 else text[:77] + "..."
