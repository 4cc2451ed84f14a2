"""What the commands do that take tickets elsewhere: to other tasks, scripts and people."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tombola.cli.commands import all_diverged, answer, planned
from tombola.cli.words import check_numbers, checked, checked_out, tables_of
from tombola.config import sections as configs
from tombola.config.registry import TASKS
from tombola.config.sections import Config
from tombola.engine.transfer_config import configs_of, ticket_file
from tombola.errors import ConfigError

if TYPE_CHECKING:
    from tombola.engine.transferring import TransferRequest


def do_run(options: argparse.Namespace) -> int:
    """``tombola run``."""
    out = None if options.out is None else checked_out(options.out)
    check_numbers(options)
    tables: dict[str, dict[str, object]] = {"search": {"seeds": 1}, "prune": {}, "train": {}}
    for section, names in (
        ("search", ("rounds", "rate", "sparsity", "rewind", "controls", "seeds")),
        ("train", ("steps",)),
    ):
        for name in names:
            value = getattr(options, name)
            if value is not None:
                tables[section][name] = value
    if options.prune is not None:
        tables["prune"]["networks"] = options.prune
    if options.exclude is not None:
        tables["prune"]["exclude"] = [name.strip() for name in options.exclude.split(",")]
    config = configs.build(tables)
    from tombola.loops import asking

    request = asking.request_of(
        config,
        options.script,
        out,
        options.words,
        name=options.name or "",
        same_script=options.same_script,
    )
    if options.dry_run:
        return planned(options, *asking.describe(request))
    from tombola.loops import running
    from tombola.report.tables import verdict_table

    summary = running.run_script(request, lambda line: print(line, file=sys.stderr, flush=True))
    report = request.out / "report.html"
    answer(options, summary, f"{verdict_table(summary)}\nreport: {report}")
    runs = summary["runs"]
    if runs["diverged"] < runs["trained"] + runs["reused"]:
        return 0
    print("error: every training diverged; see to the script's learning rate", file=sys.stderr)
    return 1


def search_request(options: argparse.Namespace) -> TransferRequest:
    """What ``tombola find SRC --transfer-to TASK[,TASK]`` asks for; UserError if it is refused."""
    targets = _names("--transfer-to", options.transfer_to)
    made, data_dir, out = _transfer_checked(options, [options.task, *targets])
    from tombola.engine import transfers

    return transfers.search_request(made, data_dir, out, options.words)


def do_find(options: argparse.Namespace) -> int:
    """``tombola find SRC --transfer-to TASK[,TASK]``."""
    return _transfer(search_request(options), options)


def do_transfer(options: argparse.Namespace) -> int:
    """``tombola transfer TICKET TASK``, or ``tombola transfer --matrix TASK,TASK``."""
    if options.matrix is not None:
        if options.ticket is not None:
            raise ConfigError(
                f"transfer got {options.ticket!r} and --matrix; give TICKET TASK, or --matrix alone"
            )
        names = _names("--matrix", options.matrix)
        if len(names) < 2:
            raise ConfigError(f"--matrix got {options.matrix}; give two tasks or more: vae,dcgan")
        made, data_dir, out = _transfer_checked(options, names)
        from tombola.engine import transfers

        return _transfer(transfers.matrix_request(made, data_dir, out, options.words), options)
    if options.ticket is None or options.task is None:
        raise ConfigError("transfer takes TICKET TASK, or --matrix TASK,TASK; see transfer --help")
    for name in ("rounds", "rate", "sparsity", "rewind"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name} goes with --matrix: a ticket file has one level and rewind step already"
            )
    ticket = Path(options.ticket)
    ticket_file(ticket)
    made, data_dir, out = _transfer_checked(options, [options.task])
    from tombola.engine import transfers

    request = transfers.file_request(ticket, made, data_dir, out, options.words)
    return _transfer(request, options)


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{option} names no task; give one or more, such as dcgan")
    return names


def _transfer_checked(
    options: argparse.Namespace, names: list[str]
) -> tuple[dict[str, Config], Path | None, Path | None]:
    """The config of every task, and what else can be told of a transfer without torch."""
    tables = tables_of(options)
    for name in names:
        TASKS.check(name)
    made = configs_of({**tables, "task": {**tables.get("task", {}), "name": names[0]}}, names)
    first = tables.get("task", {}).get("name", names[0])
    if first != names[0]:
        raise ConfigError(f"task.name is {first!r}, but the transfer is of {names[0]}")
    _, data_dir, out = checked(options, next(iter(made.values())).tables())
    return made, data_dir, out


def _transfer(request: TransferRequest, options: argparse.Namespace) -> int:
    """Say what matches, then plan or carry out a transfer, and print what came of it."""
    from tombola.cli.bar import Bar
    from tombola.engine import transfers
    from tombola.report.tables import verdict_table
    from tombola.report.transfer import transfer_text

    if options.dry_run:
        return planned(options, *transfers.describe(request))
    for line in transfers.report_lines(request):
        print(line, file=sys.stderr, flush=True)
    result = transfers.carry_out(request, Bar())
    parts = [verdict_table(result.summary)] if request.search else []
    text = "\n\n".join([*parts, transfer_text(result.summary)])
    answer(options, result.summary, f"{text}\nreport: {result.out / 'report.html'}")
    return 1 if all_diverged(result) else 0


def do_publish(options: argparse.Namespace) -> int:
    """``tombola publish FILE hub:USER/NAME``."""
    from tombola.tickets.card import publish

    made = publish(
        options.file,
        options.target,
        private=options.private,
        license=options.license,
        send=not options.dry_run,
    )
    for named in made.paths:
        print(f"note: the file names {named}, which all who have it see", file=sys.stderr)
    found = {"place": made.place.text, "url": made.url, "card": made.card, "paths": made.paths}
    text = f"{made.place.text}: {made.url}"
    if options.dry_run:
        text = f"{made.card}\nnothing was sent; {made.place.text} would get this card and the file"
    return answer(options, found, text)
