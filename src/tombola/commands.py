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
from tombola.data.checks import check_source
from tombola.errors import ConfigError, TicketError
from tombola.registry import DATA, TASKS

if TYPE_CHECKING:
    from tombola.engine.search import Request, Result

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
        tables = {
            k: dict(v)
            for k, v in values.read_toml(Path(options.config)).items()
            if isinstance(v, dict)
        }
    for name, (section, key) in _FLAGS.items():
        value = getattr(options, name, None)
        if value is not None:
            tables.setdefault(section, {})[key] = value
    for text in options.set:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
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


def check_out(out: Path) -> None:
    """ConfigError if a folder cannot be there because a file is."""
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"--out {out}: {place} is a file; give a folder")
            if not os.access(place, os.W_OK):
                raise ConfigError(f"cannot write to {place}; choose another folder with --out")
            return


def do_find(options: argparse.Namespace) -> int:
    """``tombola find``."""
    tables = tables_of(options)
    config, data_dir, out = _checked(options, tables)
    from tombola import api

    request = api.find_request(config, data_dir, out, _command())
    return _dry_run(request) if options.dry_run else _carry_out(request, options)


def do_train(options: argparse.Namespace) -> int:
    """``tombola train``."""
    tables = tables_of(options)
    ticket = None if options.ticket is None else Path(options.ticket)
    if ticket is None:
        tables.setdefault("search", {}).setdefault("seeds", 1)
        tables["search"].setdefault("rewind", "0it")
        config, data_dir, out = _checked(options, tables)
    else:
        if options.seeds is not None:
            raise ConfigError(
                "--seeds does not go with --ticket: a ticket is of one seed; leave --seeds out"
            )
        config, data_dir, out = _ticket_checked(options, tables, ticket)
    from tombola import api

    request = api.train_request(config, data_dir, out, _command(), ticket)
    return _dry_run(request) if options.dry_run else _carry_out(request, options)


def _ticket_checked(
    options: argparse.Namespace, tables: dict[str, dict[str, Any]], ticket: Path
) -> tuple[Config, Path | None, Path | None]:
    from tombola.sparsity.container import read_manifest, verify_file
    from tombola.tickets_config import ticket_config

    verify_file(ticket)
    manifest = read_manifest(ticket)
    # A name in a file may only choose among what is built in, never a file or folder to read.
    if "name" not in tables.setdefault("data", {}) and manifest.get("data") in DATA.names():
        tables["data"]["name"] = manifest["data"]
    tables["data"].setdefault("name", "digits")
    _checked(options, {k: tables[k] for k in ("task", "data")})
    if "rewind_step" not in manifest:
        raise TicketError(f"{ticket} is a model, not a ticket; give a file from OUT/tickets")
    config = ticket_config(ticket, manifest, tables)
    data_dir = data_dir_of(options)
    out = None if options.out is None else Path(options.out)
    return config, data_dir, out


def _checked(
    options: argparse.Namespace, tables: dict[str, dict[str, Any]]
) -> tuple[Config, Path | None, Path | None]:
    """Everything that can be told without torch: names, numbers, paths."""
    config = configs.build(tables)
    data_dir = data_dir_of(options)
    check_source(config.data.name, data_dir)
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_out(out)
    if config.run.device.startswith("cuda") and not Path("/proc/driver/nvidia").exists():
        raise ConfigError(
            f"device {config.run.device!r} is not there (no CUDA driver found); "
            "use --device cpu or auto"
        )
    return config, data_dir, out


def _carry_out(request: Request, options: argparse.Namespace) -> int:
    from tombola import api
    from tombola.bar import Bar
    from tombola.report.tables import verdict_table

    result = api.carry_out(request, Bar())
    if options.json:
        print(json.dumps(result.summary, sort_keys=True))
    else:
        searched = any(row.arm == "ticket" for row in result.rows) and options.function == "do_find"
        print(verdict_table(result.summary) if searched else _values(result))
        print(f"report: {result.out / 'report.html'}")
    return 1 if _all_diverged(result) else 0


def _values(result: Result) -> str:
    """What ``train`` measured, a line each."""
    return "\n".join(
        f"{row.arm} seed {row.seed}: {row.metric} {row.value:.6g} (n {row.n}, step {row.step})"
        for row in result.rows
    )


def _all_diverged(result: Result) -> bool:
    """Whether no seed's dense run, or first ticket, came to an end."""
    if not any(row.metric not in ("diverged", "not-run") for row in result.rows):
        print(
            "error: every seed diverged; lower task.learning_rate with --set and run again",
            file=sys.stderr,
        )
        return True
    return False


def _dry_run(request: Request) -> int:
    from tombola.dry_run import describe

    print(describe(request), end="")
    return 0


def do_sample(options: argparse.Namespace) -> int:
    """``tombola sample``."""
    if options.n < 1:
        raise ConfigError(f"--n got {options.n}; it takes a whole number of at least 1")
    out = Path(options.out)
    check_out(out)
    from tombola.sparsity.container import verify_file

    verify_file(options.file)
    if options.task is not None:
        TASKS.check(options.task)
    from tombola import api

    paths = api.sample(
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
    from tombola.sparsity.inspection import describe, describe_text

    info = describe(options.file)
    print(json.dumps(info, sort_keys=True) if options.json else describe_text(info))
    return 0


def do_verify(options: argparse.Namespace) -> int:
    """``tombola verify``."""
    from tombola.sparsity.container import verify_file

    verify_file(options.file)
    print(f"{options.file}: sound")
    return 0


def do_report(options: argparse.Namespace) -> int:
    """``tombola report``."""
    from tombola.report.page import write_report

    print(write_report(Path(options.dir)))
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
    from tombola.metrics.rules import CURVE_ONLY

    built = (
        "reconstruction_error",
        "elbo",
        "reconstruction",
        *CURVE_ONLY,
        "fid",
        "kid",
        "fcd-<data>-<hash8>",
        "kcd-<data>-<hash8>",
    )
    return sorted(set(built))


def do_doctor(options: argparse.Namespace) -> int:
    """``tombola doctor``."""
    from tombola.doctor import examine, lines

    found = examine(data_dir_of(options))
    print(json.dumps(found, sort_keys=True) if options.json else lines(found))
    return 0


def _command() -> str:
    import shlex

    return shlex.join(["tombola", *sys.argv[1:]])
