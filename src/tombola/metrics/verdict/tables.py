"""Anybody's results, judged: rows with an arm, a seed, a level, a metric and a value."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tombola.errors import ConfigError, DataError
from tombola.metrics.rules import Rule, rule_of
from tombola.metrics.verdict.decide import Evidence, summarise
from tombola.metrics.verdict.losses import DEFAULT_CONTROLS, OWN_ARMS
from tombola.metrics.verdict.sequence import LEAST_SEEDS

NEEDED = ("arm", "seed", "metric", "value")
OF_A_SEARCH = ("method", "networks", "precision")
NO_VARIANT = {*NEEDED, *OF_A_SEARCH, "rewind_steps", "compress", "round", "sparsity",
              "sparsity_all", "n", "step", "draw"}  # fmt: skip
"""Columns that do not tell variants of a search apart; every other one does."""
EVENTS = ("diverged", "not-run")
MOST_ROWS = 5_000_000


class _Row(NamedTuple):
    """One measurement, as ``losses`` reads it."""

    method: str
    arm: str
    networks: str
    rewind_steps: int | None
    precision: str
    compress: float | None
    seed: int
    round: int
    sparsity: float
    sparsity_all: float
    metric: str
    value: float
    step: int | None
    draw: int | None


def judge_table(
    rows_or_path: Iterable[Mapping[str, Any]] | str | Path,
    *,
    metric: str | None = None,
    better: str | None = None,
    margin: float | None = None,
    names: tuple[str, str] = ("dense", "ticket"),
    controls: Sequence[str] = DEFAULT_CONTROLS,
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """What ``tombola.verdict`` returns; ``names``: what the dense and the ticket's arm are called.

    ``evidence``: what is known besides, of a folder of Tombola's own.
    """
    rows = list(read_rows(rows_or_path, *names))
    evidence = evidence or _evidence(rows, metric, better, margin)
    wanted = [r for r in rows if metric is None or r.metric == metric or r.metric in EVENTS]
    return judge_rows(wanted, evidence, controls if tuple(controls) != DEFAULT_CONTROLS else None)


def judge_rows(
    rows: Sequence[_Row], evidence: Evidence, controls: Sequence[str] | None = None
) -> dict[str, Any]:
    """The summary of rows that were read; ConfigError where there is nothing to judge."""
    if not any(row.arm in OWN_ARMS for row in rows):
        raise ConfigError(
            "no row is of a ticket; call that arm 'ticket', or say its name (--ticket NAME)"
        )
    found = summarise(rows, controls=controls, evidence=evidence)
    if not found["verdicts"]:
        names = sorted({row.metric for row in rows} - set(EVENTS))
        raise ConfigError(
            f"no verdict: Tombola knows no direction of {', '.join(names) or 'no metric'}; say "
            "which is better (--metric NAME --better lower|higher --margin 5%)"
        )
    return found


def _evidence(
    rows: Sequence[_Row], metric: str | None, better: str | None, margin: float | None
) -> Evidence:
    """The rules that were asked for; ConfigError where they are not whole."""
    if better not in (None, "lower", "higher"):
        raise ConfigError(f"better got {better!r}; it takes lower or higher")
    if margin is not None and not (
        isinstance(margin, int | float) and not isinstance(margin, bool)
        and 0 < margin < math.inf
    ):  # fmt: skip
        raise ConfigError(f"margin got {margin!r}; it takes a number above 0, such as 0.05 for 5%")
    names = sorted({row.metric for row in rows} - set(EVENTS))
    if metric is not None and metric not in names:
        raise ConfigError(f"no row is of metric {metric!r}; there are: {', '.join(names)}")
    if better is None and margin is None:
        return Evidence()
    chosen = [metric] if metric is not None else names
    rules = {}
    for name in chosen:
        known = rule_of(name)
        direction = better or (known.better if known else None)
        width = margin if margin is not None else (known.margin if known else None)
        if direction is None or width is None:
            what = "better (lower or higher)" if direction is None else "a margin (such as 5%)"
            raise ConfigError(f"metric {name!r} is not known to Tombola; give {what} too")
        share = known.share if known is not None else True
        rules[name] = Rule("lower" if direction == "lower" else "higher", width, share)
    return Evidence(rules=rules)


def read_rows(
    rows_or_path: Iterable[Mapping[str, Any]] | str | Path,
    dense: str = "dense",
    ticket: str = "ticket",
) -> Iterable[_Row]:
    """Rows of a file or of dicts, checked; DataError naming row and column."""
    named = isinstance(rows_or_path, str | Path)
    rows = _read_csv(Path(rows_or_path)) if isinstance(rows_or_path, str | Path) else rows_or_path
    where = f"{rows_or_path}, line" if named else "row"
    table, first = list(rows), 2 if named else 1
    arms = {dense: "dense", ticket: "ticket"}
    variants = _Variants.of(table, dense)
    variants.check(table, ticket)
    levels: dict[float, int] = {}
    if table and "round" not in table[0]:
        values = {
            _number(row, "sparsity", f"{where} {number}", high=1.0)
            for number, row in enumerate(table, first)
            if row.get("sparsity") not in (None, "")
        }
        levels = {value: place for place, value in enumerate(sorted(values - {0.0}), 1)}
    for number, row in enumerate(table, first):
        yield _row(row, f"{where} {number}", variants, levels, arms)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            found = []
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames or ())} columns "
                        "are named in the first line, and this one has another number; mend it"
                    )
                found.append(row)
                if len(found) > MOST_ROWS:
                    raise DataError(f"{path} has more than {MOST_ROWS:,} rows; give fewer")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a CSV file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no CSV file ({error}); give one as docs/method.md shows"
        ) from error
    if not found:
        raise DataError(f"{path} has no rows; give at least dense and ticket of three seeds")
    return found


class _Variants(NamedTuple):
    """The columns that tell variants of a search apart: all that are not known and have values."""

    with_dense: tuple[str, ...]
    """Those that dense rows have too: each value has dense networks of its own."""
    shared: tuple[str, ...]
    """Those that dense rows leave empty: their dense networks are the same."""

    @classmethod
    def of(cls, table: Sequence[Mapping[str, Any]], dense: str) -> _Variants:
        """Of a table whose dense arm is called so."""
        names = [name for name in (table[0] if table else ()) if name not in NO_VARIANT]
        several = [n for n in names if len({row.get(n) for row in table} - {None, ""}) > 1]
        own = {n for row in table if row.get("arm") == dense for n in several
               if row.get(n) not in (None, "")}  # fmt: skip
        return cls(tuple(n for n in several if n in own), tuple(n for n in several if n not in own))

    def check(self, table: Sequence[Mapping[str, Any]], ticket: str) -> None:
        """ConfigError where a column tells every training from every other, as a time does."""
        names = (*self.with_dense, *self.shared)
        seeds: dict[tuple[str, ...], set[str]] = {}
        for row in (row for row in table if row.get("arm") == ticket):
            seeds.setdefault(tuple(str(row.get(n)) for n in names), set()).add(str(row.get("seed")))
        whole = set().union(*seeds.values())
        if names and len(whole) >= LEAST_SEEDS > max(map(len, seeds.values())):
            values = {n: len({str(row.get(n)) for row in table}) for n in names}
            column = max(values, key=lambda name: values[name])
            raise ConfigError(
                f"column {column!r} has {values[column]} values and so tells that many searches "
                f"apart, none with {LEAST_SEEDS} seeds; leave that column out"
            )

    @staticmethod
    def name(row: Mapping[str, Any], known: str, columns: Sequence[str]) -> str:
        """What a row is called by a column of ours and some of its own."""
        words = [f"{name}={row[name]}" for name in columns if row.get(name) not in (None, "")]
        return "; ".join([*([str(row[known])] if row.get(known) else []), *words])


def _row(
    row: Mapping[str, Any],
    where: str,
    variants: _Variants,
    levels: Mapping[float, int],
    arms: Mapping[str, str],
) -> _Row:
    for name in NEEDED:
        if row.get(name) in (None, ""):
            raise DataError(f"{where}: no {name}; each row has arm, seed, metric and value")
    if "round" not in row and "sparsity" not in row:
        raise DataError(f"{where}: neither sparsity nor round; each row has one of them")
    arm = arms.get(str(row["arm"]), str(row["arm"]))
    is_dense = arm == "dense"
    sparsity = 0.0 if is_dense else math.nan
    if row.get("sparsity") not in (None, ""):
        sparsity = _number(row, "sparsity", where, high=1.0)
    level = 0 if is_dense else levels.get(sparsity, 0)
    if row.get("round") not in (None, ""):
        level = _whole(row, "round", where)
    if math.isnan(sparsity):
        sparsity = float(level)
    whole = row.get("sparsity_all")
    return _Row(
        method=variants.name(row, "method", variants.shared),
        arm=arm,
        networks=str(row.get("networks") or ""),
        rewind_steps=_whole_or_none(row, "rewind_steps", where),
        precision=variants.name(row, "precision", variants.with_dense),
        compress=None if row.get("compress") in (None, "") else _number(row, "compress", where),
        seed=_whole(row, "seed", where),
        round=level,
        sparsity=sparsity,
        sparsity_all=sparsity if whole in (None, "") else _number(row, "sparsity_all", where),
        metric=str(row["metric"]),
        value=_number(row, "value", where, finite=False),
        step=_whole_or_none(row, "step", where),
        draw=_whole_or_none(row, "draw", where),
    )


def _number(
    row: Mapping[str, Any], name: str, where: str, *, high: float = math.inf, finite: bool = True
) -> float:
    given = row.get(name)
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
        if not (isinstance(given, str) and given.strip().lower() == "nan" and not finite):
            raise DataError(f"{where}, column {name}: {given!r} is no number") from None
    if finite and not (math.isfinite(value) and 0 <= value <= high):
        most = f" to {high:g}" if high < math.inf else " or more"
        raise DataError(f"{where}, column {name}: {given!r}; it takes a number from 0{most}")
    return value


def _whole(row: Mapping[str, Any], name: str, where: str) -> int:
    value = _number(row, name, where)
    if value != int(value):
        raise DataError(f"{where}, column {name}: {row.get(name)!r} is no whole number")
    return int(value)


def _whole_or_none(row: Mapping[str, Any], name: str, where: str) -> int | None:
    return None if row.get(name) in (None, "") else _whole(row, name, where)
