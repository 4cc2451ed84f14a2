"""What does the rule say of a table? Of a folder judged again, and of anybody's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tombola.config.values import parse_margin
from tombola.errors import ConfigError, DataError
from tombola.metrics.rules import Rule, changed_margins, fixed_margins, metric_kind
from tombola.metrics.transfers import transfer_verdicts
from tombola.metrics.verdict.decide import RULE_VERSION, Evidence, summarise
from tombola.metrics.verdict.evidence import failed_gates, larger_than_cut
from tombola.metrics.verdict.losses import DEFAULT_CONTROLS
from tombola.metrics.verdict.tables import judge_table
from tombola.report.folder import Folder, read_folder
from tombola.store.runs import finite, write_json
from tombola.store.tables import CostRow, Row
from tombola.store.transfer_tables import TRANSFERRED, RouteKey, as_ticket, rows_of


def verdict(
    rows_or_path: Iterable[Mapping[str, Any]] | str | Path,
    *,
    metric: str | None = None,
    better: str | None = None,
    margin: float | None = None,
    dense: str = "dense",
    ticket: str = "ticket",
    controls: Sequence[str] = DEFAULT_CONTROLS,
) -> dict[str, Any]:
    """The verdicts of anybody's results, by the rule that ``tombola find`` is judged by.

    Rows are dicts, or the path of a CSV file, with the columns arm, seed, metric, value and
    sparsity (in [0, 1]) or round (whole; 0 for dense); optional: sparsity_all, step, draw, and any
    others, which tell variants of a search apart. ``metric``: only this one. ``better``: "lower" or
    "higher", asked for where Tombola does not know the metric; ``margin``: a share of the dense
    value, above 0 (asked for with it). ``dense``, ``ticket``: what those arms are called;
    ``controls``: the arms that must be worse than the ticket where it is to win.

    Returns {"verdicts": {metric: ...}, "comparisons": [...], "arms", "primary"} as summary.json
    has them. A results.csv in a folder of Tombola's is judged with what the folder knows besides:
    its margins, trivial answers, gates. DataError naming row and column, ConfigError for what
    cannot be judged. Source: docs/method.md, "The verdict".
    """
    own = None
    if isinstance(rows_or_path, str | Path):
        path = Path(rows_or_path)
        rows_or_path = path / "results.csv" if path.is_dir() else path
        own = _own_folder(Path(rows_or_path))
    if own is not None and (better, margin) == (None, None):
        evidence = evidence_of(own.config, own.summary, own.costs)
    else:
        evidence = None
    return judge_table(
        rows_or_path,
        metric=metric,
        better=better,
        margin=margin,
        names=(dense, ticket),
        controls=controls,
        evidence=evidence,
    )


def _own_folder(path: Path) -> Folder | None:
    """The folder of Tombola's that a results.csv lies in; None where it lies elsewhere."""
    if path.name != "results.csv" or not (path.parent / "config.json").is_file():
        return None
    try:
        return read_folder(path.parent)
    except (ConfigError, DataError):
        return None


def judge_again(out: Path, margins: Mapping[str, Any] | None = None) -> bool:
    """Write a folder's verdicts into its summary.json anew, if its rule or margins are others.

    ``margins``: kind or name of a metric -> a number, or a text such as ``2%``; they are kept in
    config.json beside those that the search began with. Nothing is trained. Returns whether it
    wrote. ConfigError for a margin that is none, or a folder that is none.
    """
    folder = read_folder(out)
    asked = {name: parse_margin(name, value) for name, value in (margins or {}).items()}
    if not asked and folder.summary.get("rule") == RULE_VERSION:
        return False
    config = _with_margins(folder.config, asked)
    summary = {**folder.summary, **judge_folder(folder, config)}
    # Versions before the second rule had an arm for every share of channels.
    first = "/".join((first_of(folder.summary) or "").split("/")[:4])
    summary["verdicts"] = summary["arms"].get(first, summary["verdicts"])
    summary["primary"] = summary["primary"] or folder.summary.get("primary")
    if asked:
        write_json(out / "config.json", config)
    write_json(out / "summary.json", finite(summary))
    return True


def first_of(summary: Mapping[str, Any]) -> str | None:
    """The name of the search whose verdicts are at the top of summary.json, None without any.

    The file has its searches by name, so the order in which they were asked for is not in it.
    """
    arms = summary.get("arms") or {}
    top = summary.get("verdicts")
    return next((name for name, found in arms.items() if found == top), next(iter(arms), None))


def judge_folder(folder: Folder, config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of summary.json that verdicts are in, decided from a folder's tables."""
    evidence = evidence_of(config, folder.summary, folder.costs)
    told = folder.summary.get("transfer")
    if not isinstance(told, Mapping):
        return summarise(folder.rows, evidence=evidence)
    main = str((config.get("resolved") or {}).get("task", ""))
    routes = []
    for route in told.get("routes") or ():
        own = rows_of(folder.rows, RouteKey(*(str(route[name]) for name in RouteKey._fields)))
        routes.append({**route, **transfer_verdicts(own, as_ticket(own), evidence)})
    tasks = {
        name: {**each, **_verdicts_of(folder.rows, name, evidence)}
        for name, each in (told.get("tasks") or {}).items()
    }
    own = [row for row in folder.rows if row.task == main and row.arm not in TRANSFERRED]
    return {
        **summarise(own, evidence=evidence),
        "transfer": {**told, "routes": routes, "tasks": tasks},
    }


def _verdicts_of(rows: Iterable[Row], task: str, evidence: Evidence) -> dict[str, Any]:
    own = [row for row in rows if row.task == task and row.arm not in TRANSFERRED]
    found = summarise(own, evidence=evidence)
    return {key: found[key] for key in ("verdicts", "primary")}


def evidence_of(
    config: Mapping[str, Any], summary: Mapping[str, Any], costs: Iterable[CostRow]
) -> Evidence:
    """What is kept in a folder of what a verdict must know besides its rows."""
    kept = config.get("resolved") or {}
    now = kept.get("margins") or {}
    first = kept.get("margins_first") or now
    primary = summary.get("primary")
    settling = summary.get("settling")
    if settling is None and primary:  # a folder of an older version: the mean over seeds
        moved = summary.get("convergence") or {}
        dense = next((name for name in moved if name.endswith("/dense-round00")), None)
        settling = {primary: {"mean": moved[dense]}} if dense else {}
    known = fixed_margins()
    return Evidence(
        rules={
            name: Rule(rule["better"], rule["margin"], rule["share"])
            for name, rule in now.items()
            if name not in known and metric_kind(name) not in known
        },
        margins={
            name: rule["margin"]
            for name, rule in now.items()
            if rule != known.get(name) and metric_kind(name) in known
        },
        changed=changed_margins(first, now),
        gates=failed_gates(summary.get("judge"), summary.get("classifier")),
        sizes=larger_than_cut(costs),
        trivial=summary.get("trivial") or {},
        settling=settling or {},
        sampling_sd=summary.get("sampling_sd") or {},
    )


def _with_margins(config: Mapping[str, Any], asked: Mapping[str, float]) -> dict[str, Any]:
    """A folder's config with other margins, and those that its search began with beside them."""
    resolved = dict(config.get("resolved") or {})
    before = resolved.get("margins") or fixed_margins()
    for name in asked:
        if name not in before:
            raise ConfigError(
                f"this folder knows no margin of {name!r}; it has: {', '.join(sorted(before))}"
            )
    first = resolved.get("margins_first") or before
    now = {
        name: {**rule, "margin": asked.get(name, rule["margin"])} for name, rule in before.items()
    }
    resolved |= {"margins": now, "margins_first": first}
    tables = dict(config.get("config") or {})
    tables["verdict"] = {**tables.get("verdict", {}), **asked}
    return {**config, "config": tables, "resolved": resolved}
