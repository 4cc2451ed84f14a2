"""What each command does once its words are parsed; cheap checks first, torch only when needed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tombola.cli import listing
from tombola.cli.words import checked, checked_out, data_dir_of, tables_of, ticket_checked
from tombola.config import values
from tombola.config.limits import integer
from tombola.config.registry import TASKS
from tombola.data.checks import check_source, data_root
from tombola.errors import ConfigError
from tombola.metrics.rules import by_importance
from tombola.store.runs import finite

if TYPE_CHECKING:
    from tombola.engine.search import Request, Result


WATCH_SECONDS = 5.0
"""How often ``status --watch`` looks."""
MOST_SAMPLES = 100_000
"""More images than this, a file each, are a slip of the hand."""


def answer(options: argparse.Namespace, found: Any, text: str) -> int:
    """Print what came of a command, as text or as one JSON value; returns exit code 0.

    On the stdout of the command itself: whatever else is printed meanwhile goes to stderr. Numbers
    that JSON does not have are null, as in the files.
    """
    if getattr(options, "json", False):
        text = json.dumps(finite(found), sort_keys=True, allow_nan=False)
    print(text, file=options.stdout)
    return 0


def planned(
    options: argparse.Namespace, tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str]
) -> int:
    """Print a dry run: a config that ``--config`` reads back, the rest as comments in it."""
    text = values.to_toml(tables) + "\n".join(f"# {line}" for line in notes)
    return answer(options, {"config": tables, "notes": list(notes)}, text)


def search_request(options: argparse.Namespace) -> Request:
    """What the words of ``tombola find`` ask for; UserError for those that it refuses."""
    config, data_dir, out = checked(options, tables_of(options))
    from tombola.engine.request import find_request

    return find_request(config, data_dir, out, options.words)


def do_find(options: argparse.Namespace) -> int:
    """``tombola find``."""
    request = search_request(options)
    return _dry_run(request, options) if options.dry_run else _carry_out(request, options)


def do_train(options: argparse.Namespace) -> int:
    """``tombola train``."""
    tables = tables_of(options)
    ticket = None if options.ticket is None else Path(options.ticket)
    if ticket is None:
        tables.setdefault("search", {}).setdefault("seeds", 1)
        tables["search"].setdefault("rewind", "0it")
        config, data_dir, out = checked(options, tables)
    else:
        if options.seeds is not None:
            raise ConfigError(
                "--seeds does not go with --ticket: a ticket is of one seed; leave --seeds out"
            )
        config, data_dir, out = ticket_checked(options, tables, ticket)
    if options.compact and ticket is None:
        raise ConfigError("--compact cuts the channels of a ticket; give one with --ticket")
    from tombola.engine.request import train_request

    request = train_request(config, data_dir, out, options.words, ticket, compact=options.compact)
    return _dry_run(request, options) if options.dry_run else _carry_out(request, options)


def _carry_out(request: Request, options: argparse.Namespace) -> int:
    from tombola import api
    from tombola.cli.bar import Bar
    from tombola.report.tables import verdict_table

    result = api.carry_out(request, Bar())
    sought = any(row.arm in ("ticket", "compact") for row in result.rows)
    searched = sought and options.function == "do_find"
    text = verdict_table(result.summary) if searched else _values(result)
    answer(options, result.summary, f"{text}\nreport: {result.out / 'report.html'}")
    return 1 if all_diverged(result) else 0


def _values(result: Result) -> str:
    """What ``train`` measured, a line each; parts of other numbers are in results.csv alone."""
    from tombola.report.curves import PART

    shown = [row for row in result.rows if not PART.fullmatch(row.metric)]
    shown.sort(key=lambda row: (row.arm, row.precision, row.seed, by_importance(row.metric)))
    return "\n".join(
        f"{row.arm} seed {row.seed}: {row.metric} {row.value:.6g} (n {row.n}, step {row.step})"
        for row in shown
    )


def all_diverged(result: Result) -> bool:
    """Whether no training came to an end; says so."""
    if not any(row.metric not in ("diverged", "not-run") for row in result.rows):
        print(
            "error: every seed diverged; lower task.learning_rate with --set and run again",
            file=sys.stderr,
        )
        return True
    return False


def _dry_run(request: Request, options: argparse.Namespace) -> int:
    from tombola.engine.dry_run import describe

    return planned(options, *describe(request))


def do_export(options: argparse.Namespace) -> int:
    """``tombola export``."""
    from tombola.tickets import export_facts as facts

    _check_model(options.file, options.task)
    facts.target(options.file, options.to, options.out)
    if options.to == "onnx":
        facts.need("onnx", "onnxruntime")
    from tombola.engine import exporting

    made = exporting.export(options.file, options.to, options.out, options.task)
    text = (
        f"{made.path}: {made.bytes:,} bytes; its images differ from PyTorch's by at most "
        f"{made.largest_difference:.2g} in [-1, 1] (allowed: {made.tolerance:g})"
    )
    return answer(options, vars(made) | {"path": str(made.path)}, text)


def _check_model(path: str, task: str | None) -> None:
    """UserError unless a file is a sound model, of a task that is registered or named."""
    from tombola.store.container import read_header, verify_file
    from tombola.store.format import MODEL_FORMAT, expect
    from tombola.tickets.inspection import registered_task

    header = read_header(path)
    expect(header, MODEL_FORMAT)
    verify_file(path)
    TASKS.check(task or registered_task(path, header.manifest))


def do_sample(options: argparse.Namespace) -> int:
    """``tombola sample``."""
    integer("--n", options.n, low=1, high=MOST_SAMPLES)
    out = checked_out(options.out)
    from tombola.tickets.export_facts import refuse_exported

    refuse_exported(options.file)
    _check_model(options.file, options.task)
    if options.data is not None:
        check_source(options.data, data_dir_of(options))
    from tombola.engine import sampling

    paths = sampling.sample(
        Path(options.file),
        options.n,
        out,
        seed=options.seed,
        task=options.task,
        data=options.data or "",
        data_dir=data_dir_of(options),
    )
    made = {"images": [str(path) for path in paths[:-1]], "grid": str(paths[-1])}
    return answer(options, made, f"{len(paths) - 1} images and {paths[-1]}")


def do_inspect(options: argparse.Namespace) -> int:
    """``tombola inspect``."""
    from tombola.tickets.difference import difference, difference_text
    from tombola.tickets.inspection import describe, describe_text

    files = [*([options.file] if options.file else []), *(options.diff or [])]
    if len(files) != (2 if options.diff else 1):
        wanted = "two tickets with --diff" if options.diff else "one file, or two with --diff"
        raise ConfigError(f"inspect got {len(files)} files; give {wanted}")
    info = difference(*files) if options.diff else describe(*files)
    return answer(options, info, (difference_text if options.diff else describe_text)(info))


def do_verify(options: argparse.Namespace) -> int:
    """``tombola verify``."""
    from tombola.engine.ticket_config import rebuild_config
    from tombola.store.container import read_header, verify_file

    asked = options.task, options.data
    header = read_header(options.file)
    if options.rebuild:
        check_source(rebuild_config(header, *asked).data.name, data_dir_of(options))
    verify_file(options.file)
    lines = [f"{options.file}: sound"]
    if options.rebuild:
        from tombola.cli.bar import Bar
        from tombola.engine.rebuild import rebuild

        lines += rebuild(options.file, *asked, data_dir_of(options), Bar()).splitlines()
    found = {"file": options.file, "format": header.format, "sound": True, "rebuilt": lines[1:]}
    return answer(options, found, "\n".join(lines))


def do_status(options: argparse.Namespace) -> int:
    """``tombola status``."""
    out = _run_directory(options.dir)
    from tombola.store.status import read_status, status_text

    shown = ""
    while True:
        found = read_status(out)
        text = status_text(out, found)
        if text != shown:
            answer(options, found, text)
            options.stdout.flush()
        if not options.watch or found["state"] != "running":
            return 0
        shown = text
        time.sleep(WATCH_SECONDS)


def do_report(options: argparse.Namespace) -> int:
    """``tombola report``."""
    out = _run_directory(options.dir)
    from tombola.report.folder import read_folder
    from tombola.report.judging import judge_again
    from tombola.report.page import write_report
    from tombola.store.unfinished import progress_text

    margins = [text.partition("=") for text in options.margin]
    for name, equals, value in margins:
        if not (name and equals and value):
            raise ConfigError(f"--margin got {name + equals + value!r}; write it as fcd=5%")
    judge_again(out, {name: value for name, _, value in margins})
    path = str(write_report(out))
    summary = read_folder(out).summary
    found = {"report": path} | {k: v for k, v in summary.items() if k == "progress"}
    told = progress_text(summary)
    return answer(options, found, f"{path} ({told})" if told else path)


def do_verdict(options: argparse.Namespace) -> int:
    """``tombola verdict``."""
    from tombola.report.comparisons import bounds_table
    from tombola.report.judging import verdict
    from tombola.report.tables import verdict_table

    margin = options.margin
    found = verdict(
        options.file,
        metric=options.metric,
        better=options.better,
        margin=None if margin is None else values.parse_margin("--margin", margin),
        dense=options.dense,
        ticket=options.ticket,
        controls=tuple(name.strip() for name in options.controls.split(",") if name.strip()),
    )
    text = f"{bounds_table(found)}\n\n{verdict_table(found)}"
    return answer(options, found, text)


def _run_directory(given: str) -> Path:
    """The directory as a path; ConfigError, before plots are imported, if no search wrote it."""
    out = Path(given)
    if not (out / "config.json").is_file():
        what = "has no config.json" if out.is_dir() else "is no directory"
        raise ConfigError(f"{given!r} {what}; give the directory that tombola find or train wrote")
    return out


def do_figure(options: argparse.Namespace) -> int:
    """``tombola figure``."""
    out = _run_directory(options.dir)
    wanted = [text.strip() for text in (options.sparsity or "").split(",") if text.strip()]
    if options.sparsity is not None and not wanted:
        raise ConfigError("--sparsity is empty; give levels such as 0.5,0.9, or leave it out")
    sparsities = [float(values.decimal_fraction("sparsity", text)) for text in wanted]
    if options.readme:
        from tombola.report.headline import write_headline as write
    else:
        from tombola.report.figure import write_figure as write
    paths = [str(p) for p in write(out, images=options.images, sparsities=sparsities)]
    return answer(options, {"figures": paths}, "\n".join(paths))


def do_list(options: argparse.Namespace) -> int:
    """``tombola list``."""
    found: Any = {what: [{"name": name} for name in names] for what, names in listing.all_names()}
    if options.json and options.what in (None, "tasks"):
        from tombola.cli.task_table import task_table

        found["tasks"] = task_table()
    if options.what is None:
        return answer(options, found, listing.everything())
    return answer(options, found[options.what], listing.lines(options.what))


def do_doctor(options: argparse.Namespace) -> int:
    """``tombola doctor``."""
    if options.data_dir is not None:
        data_root(Path(options.data_dir))
    from tombola.cli.doctor import examine, lines

    found = examine(data_dir_of(options))
    return answer(options, found, lines(found))
