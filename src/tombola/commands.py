"""What each command does once its words are parsed; cheap checks first, torch only when needed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tombola import config as configs
from tombola import values
from tombola.config import Config
from tombola.data.checks import check_source, data_root
from tombola.errors import ConfigError
from tombola.metrics.rules import by_importance, rule_of
from tombola.registry import DATA, TASKS, is_file_spec

if TYPE_CHECKING:
    from tombola.engine.search import Request, Result

_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Where Linux shows a driver that torch's CUDA may use: NVIDIA's, that of WSL, ROCm's."""
_FLAGS = {
    "task": ("task", "name"),
    "preset": ("task", "preset"),
    "data": ("data", "name"),
    "skip_broken": ("data", "skip_broken"),
    "steps": ("train", "steps"),
    "epochs": ("train", "epochs"),
    "precision": ("train", "precision"),
    "prune": ("prune", "networks"),
    "method": ("search", "method"),
    "rounds": ("search", "rounds"),
    "rate": ("search", "rate"),
    "sparsity": ("search", "sparsity"),
    "rewind": ("search", "rewind"),
    "compress": ("prune", "compress"),
    "round_to": ("prune", "round_to"),
    "controls": ("search", "controls"),
    "seeds": ("search", "seeds"),
    "workers": ("run", "workers"),
    "threads": ("run", "threads"),
    "device": ("run", "device"),
    "keep": ("run", "keep"),
}
"""Option -> (section, key) of the config."""


def tables_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The tables that the words of a command give: config file, then flags, then ``--set``."""
    tables: dict[str, dict[str, Any]] = {}
    if options.config is not None:
        tables = values.read_toml(Path(options.config))
    for name, (section, key) in _FLAGS.items():
        value = getattr(options, name, None)
        if value is not None:
            tables.setdefault(section, {})[key] = value
    for text in options.set:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not section or not key:
            raise ConfigError(
                f"--set got {text!r}; write it as section.key=value, such as task.width=16"
            )
        tables.setdefault(section, {})[key] = values.parse_value(value)
    given = tables.get("train", {})
    if options.steps is not None and options.epochs is None:
        given["epochs"] = 0.0
    if options.epochs is not None and options.steps is None:
        given["steps"] = 0
    for name in ("steps", "epochs", "rounds", "seeds"):
        value = getattr(options, name, None)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} got {value:g}; it takes a number above 0")
    return tables


def data_dir_of(options: argparse.Namespace) -> Path | None:
    """Where data sets lie: ``--data-dir``, else TOMBOLA_DATA, else nowhere in particular."""
    given = options.data_dir or os.environ.get("TOMBOLA_DATA")
    return Path(given) if given else None


def checked_out(text: str) -> Path:
    """The folder of ``--out``; ConfigError if it cannot be there because a file is."""
    if not text:
        raise ConfigError("--out is empty; give a folder")
    out = Path(text)
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"--out {out}: {place} is a file; give a folder")
            if not os.access(place, os.W_OK):
                raise ConfigError(f"cannot write to {place}; choose another folder with --out")
            break
    return out


def do_find(options: argparse.Namespace) -> int:
    """``tombola find``."""
    tables = tables_of(options)
    config, data_dir, out = checked(options, tables)
    from tombola import api

    request = api.find_request(config, data_dir, out, options.words)
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
        config, data_dir, out = _ticket_checked(options, tables, ticket)
    if options.compact and ticket is None:
        raise ConfigError("--compact cuts the channels of a ticket; give one with --ticket")
    from tombola import api

    request = api.train_request(
        config, data_dir, out, options.words, ticket, compact=options.compact
    )
    return _dry_run(request, options) if options.dry_run else _carry_out(request, options)


def _ticket_checked(
    options: argparse.Namespace, tables: dict[str, dict[str, Any]], ticket: Path
) -> tuple[Config, Path | None, Path | None]:
    from tombola.sparsity.container import read_header, verify_file
    from tombola.sparsity.layout import TICKET_FORMAT, expect
    from tombola.tickets_config import ticket_config

    header = read_header(ticket)
    expect(header, TICKET_FORMAT)
    verify_file(ticket)
    manifest = header.manifest
    # A name in a file may only choose among what is built in, never a file or folder to read.
    if "name" not in tables.setdefault("data", {}) and manifest.get("data") in DATA.names():
        tables["data"]["name"] = manifest["data"]
    tables["data"].setdefault("name", "digits")
    _, data_dir, out = checked(options, tables)
    config = ticket_config(ticket, manifest, tables)
    check_device(config.run.device)
    return config, data_dir, out


def checked(
    options: argparse.Namespace, tables: dict[str, dict[str, Any]]
) -> tuple[Config, Path | None, Path | None]:
    """Everything that can be told without torch: names, numbers, paths."""
    config = configs.build(tables)
    data_dir = data_dir_of(options)
    check_source(config.data.name, data_dir)
    if not is_file_spec(config.task.name):  # a user's file may bring rules of its own
        rule_of("", config.verdict.margins)
    check_device(config.run.device)
    out = None if options.out is None else checked_out(options.out)
    return config, data_dir, out


def check_device(name: str) -> None:
    """ConfigError if CUDA is asked for and this machine has no driver for it."""
    if name.startswith("cuda") and sys.platform == "linux":
        if not any(Path(place).exists() for place in _DRIVERS):
            raise ConfigError(
                f"device {name!r} is not there (no CUDA driver found); use --device cpu or auto"
            )


def _carry_out(request: Request, options: argparse.Namespace) -> int:
    from tombola import api
    from tombola.bar import Bar
    from tombola.report.tables import verdict_table

    result = api.carry_out(request, Bar())
    if options.json:
        print(json.dumps(result.summary, sort_keys=True))
    else:
        sought = any(row.arm in ("ticket", "compact") for row in result.rows)
        searched = sought and options.function == "do_find"
        print(verdict_table(result.summary) if searched else _values(result))
        print(f"report: {result.out / 'report.html'}")
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
    from tombola.dry_run import describe

    tables, notes = describe(request)
    if options.json:
        print(json.dumps({"config": tables, "notes": notes}, sort_keys=True))
    else:
        print(values.to_toml(tables) + "".join(f"# {line}\n" for line in notes), end="")
    return 0


def do_export(options: argparse.Namespace) -> int:
    """``tombola export``."""
    from tombola.exported import facts, files

    _check_model(options.file, options.task)
    facts.target(options.file, options.to, options.out)
    if options.to == "onnx":
        files.need("onnx", "onnxruntime")
    from tombola import exporting

    made = exporting.export(options.file, options.to, options.out, options.task)
    if options.json:
        print(json.dumps(vars(made) | {"path": str(made.path)}, sort_keys=True))
        return 0
    print(
        f"{made.path}: {made.bytes:,} bytes; its images differ from PyTorch's by at most "
        f"{made.largest_difference:.2g} in [-1, 1] (allowed: {made.tolerance:g})"
    )
    return 0


def _check_model(path: str, task: str | None) -> None:
    """UserError unless a file is a sound model, of a task that is registered or named."""
    from tombola.sparsity.container import read_header, verify_file
    from tombola.sparsity.inspection import registered_task
    from tombola.sparsity.layout import MODEL_FORMAT, expect

    header = read_header(path)
    expect(header, MODEL_FORMAT)
    verify_file(path)
    TASKS.check(task or registered_task(path, header.manifest))


def do_sample(options: argparse.Namespace) -> int:
    """``tombola sample``."""
    if options.n < 1:
        raise ConfigError(f"--n got {options.n}; it takes a whole number of at least 1")
    out = checked_out(options.out)
    from tombola.exported import facts, files

    if facts.format_of(options.file):
        facts.check_sampling(options.file, files.read(options.file).facts, options.task)
    else:
        _check_model(options.file, options.task)
    if options.data is not None:
        check_source(options.data, data_dir_of(options))
    from tombola import sampling

    paths = sampling.sample(
        Path(options.file),
        options.n,
        out,
        seed=options.seed,
        task=options.task,
        data=options.data or "",
        data_dir=data_dir_of(options),
    )
    print(f"{len(paths) - 1} images and {paths[-1]}")
    return 0


def do_inspect(options: argparse.Namespace) -> int:
    """``tombola inspect``."""
    from tombola.sparsity.difference import difference, difference_text
    from tombola.sparsity.inspection import describe, describe_text

    files = [*([options.file] if options.file else []), *(options.diff or [])]
    if len(files) != (2 if options.diff else 1):
        wanted = "two tickets with --diff" if options.diff else "one file, or two with --diff"
        raise ConfigError(f"inspect got {len(files)} files; give {wanted}")
    info = difference(*files) if options.diff else describe(*files)
    text = difference_text if options.diff else describe_text
    print(json.dumps(info, sort_keys=True) if options.json else text(info))
    return 0


def do_verify(options: argparse.Namespace) -> int:
    """``tombola verify``."""
    from tombola.sparsity.container import verify_file

    verify_file(options.file)
    print(f"{options.file}: sound")
    if options.rebuild:
        from tombola.rebuilding import rebuild

        print(rebuild(options.file, options.task, options.data, data_dir_of(options)))
    return 0


def do_report(options: argparse.Namespace) -> int:
    """``tombola report``."""
    out = _run_directory(options.dir)
    from tombola.report.page import write_report

    print(write_report(out))
    return 0


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
    sparsities = [float(values.decimal_fraction("sparsity", text)) for text in wanted]
    from tombola.report.figure import write_figure

    for path in write_figure(out, images=options.images, sparsities=sparsities):
        print(path)
    return 0


def do_list(options: argparse.Namespace) -> int:
    """``tombola list``."""
    names = {
        "tasks": TASKS.names(),
        "data": [*DATA.names(), "folder:PATH"],
        "methods": list(configs.METHODS),
        "metrics": _metric_names(),
    }[options.what]
    if not options.json:
        print("\n".join(names))
    elif options.what == "tasks":
        from tombola.task_table import task_table

        print(json.dumps(task_table()))
    else:
        print(json.dumps([{"name": name} for name in names]))
    return 0


def _metric_names() -> list[str]:
    from tombola.metrics.judge_files import metric_names
    from tombola.metrics.rules import CURVE_ONLY

    built = (
        "reconstruction_error",
        "elbo",
        "reconstruction",
        "accuracy",
        "precision",
        "recall",
        "density",
        "coverage",
        "class-<nn>",
        *CURVE_ONLY,
        *metric_names("inception").values(),
        *metric_names("<data>-<hash8>").values(),
    )
    return sorted(set(built))


def do_doctor(options: argparse.Namespace) -> int:
    """``tombola doctor``."""
    if options.data_dir is not None:
        data_root(Path(options.data_dir))
    from tombola.doctor import examine, lines

    found = examine(data_dir_of(options))
    print(json.dumps(found, sort_keys=True) if options.json else lines(found))
    return 0
