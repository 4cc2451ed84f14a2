"""How do the words of a transfer become a request? Tasks, their matched networks, their configs."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tombola.config.registry import TASKS, file_sha256
from tombola.config.sections import Config
from tombola.data.checks import check_source
from tombola.engine import transferring
from tombola.engine.dry_run import disk, disk_bytes, seeds_line, work
from tombola.engine.mending import whole_runs
from tombola.engine.progress import Progress
from tombola.engine.search import Result, default_out
from tombola.engine.transfer_config import TicketFile, ticket_file
from tombola.engine.transferring import TransferRequest
from tombola.errors import ConfigError, UserError
from tombola.plan.setting import seconds_per_step
from tombola.plan.transfer import Route, TicketFacts, sketch
from tombola.plan.trial import task_options
from tombola.report.page import write_report
from tombola.sparsity.names import plain_state
from tombola.store.runs import Store
from tombola.tickets.graft import Sketch, lines, match


def search_request(
    configs: Mapping[str, Config], data_dir: Path | None, out: Path | None, command: str
) -> TransferRequest:
    """``find SRC --transfer-to``: the first task's search, and its tickets in the other tasks."""
    source, *targets = configs
    sketches = {name: sketch(config, data_dir) for name, config in configs.items()}
    (asked,) = configs[source].prune.networks
    network = None if asked == "all" else asked
    routes = tuple(_route(sketches, source, target, network) for target in targets)
    config = configs[source]
    return TransferRequest(
        configs=_pruned(configs, routes, source),
        routes=routes,
        data_dir=data_dir,
        out=out or default_out(config, data_dir, config.search.method[0]),
        command=command,
        search=True,
        chains=_chains(configs),
    )


def matrix_request(
    configs: Mapping[str, Config], data_dir: Path | None, out: Path | None, command: str
) -> TransferRequest:
    """``transfer --matrix``: every ordered pair of tasks, with the controls of each."""
    if len(configs) < 2:
        raise ConfigError(
            f"--matrix got {', '.join(configs)}; give two tasks or more, such as vae,dcgan"
        )
    (asked,) = next(iter(configs.values())).prune.networks
    if asked != "all":
        raise ConfigError(
            f"prune.networks is {asked!r}, but a matrix prunes what is matched in each task; "
            "leave it at all"
        )
    sketches = {name: sketch(config, data_dir) for name, config in configs.items()}
    routes = tuple(_route(sketches, a, b, None) for a, b in itertools.permutations(configs, 2))
    data = check_source(next(iter(configs.values())).data.name, data_dir)
    return TransferRequest(
        configs=_pruned(configs, routes, None),
        routes=routes,
        data_dir=data_dir,
        out=out or Path("runs") / f"{'+'.join(configs)}-{data}-transfer",
        command=command,
        chains=_chains(configs),
    )


def file_request(
    ticket: Path,
    configs: Mapping[str, Config],
    data_dir: Path | None,
    out: Path | None,
    command: str,
) -> TransferRequest:
    """``transfer TICKET TASK``: what one file holds, in a task; nothing of its source is trained.

    TicketError for a file that is no sound ticket of single weights.
    """
    ((target, config),) = configs.items()
    held = ticket_file(ticket)
    source = _sketched(held)
    facts = TicketFacts(
        sha256=file_sha256(ticket),
        method=held.method,
        rewind_step=held.rewind_step,
        round=held.round,
    )
    sketches = {"": source, target: sketch(config, data_dir)}
    route = _route(sketches, "", target, None)
    route = dataclasses.replace(route, source=source.task)
    search = dataclasses.replace(config.search, rounds=1, sparsity=(), rewind=("0it",))
    return TransferRequest(
        configs={
            target: dataclasses.replace(_one_network(config, route.matching.target), search=search)
        },
        routes=(route,),
        data_dir=data_dir,
        out=out or default_out(config, data_dir, f"transfer-{facts.sha256[:8]}"),
        command=command,
        ticket=facts,
        inputs={facts.sha256: str(ticket.absolute())},
        chains=2 * config.search.seeds,
    )


def _sketched(found: TicketFile) -> Sketch:
    """The pruned networks of a ticket file, with the roles that its task gives them."""
    registered = found.task in TASKS.names()
    # A name from a file goes into tables only if it could be a task's.
    known = found.task if registered or found.task.isidentifier() else "ticket"
    roles: Mapping[str, str] = {}
    shapes = dict(found.shapes)
    if registered:
        roles = TASKS.load(found.task).roles
        for network, names in _in_order(found).items():
            if network in shapes and shapes[network].keys() == set(names):
                shapes[network] = {name: shapes[network][name] for name in names}
    named = {network: roles.get(network, network) for network in shapes}
    return Sketch(task=known, roles=named, shapes=shapes)


def _in_order(found: TicketFile) -> dict[str, list[str]]:
    """Network -> its tensors in the order of its modules, which a file does not keep.

    Empty if the task cannot be made with the options in the file; nothing else depends on them.
    """
    kind = TASKS.load(found.task)
    allowed = kind.options()
    try:
        task = kind(**{k: v for k, v in found.options.items() if k in allowed})
        with torch.device("meta"):
            made = task.networks(task.image_shape(3))
    except (UserError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError):
        return {}
    return {network: list(plain_state(module)) for network, module in made.items()}


def _route(sketches: Mapping[str, Sketch], source: str, target: str, network: str | None) -> Route:
    found = match(sketches[source], sketches[target], network)
    return Route(source=source, target=target, matching=found)


def _pruned(
    configs: Mapping[str, Config], routes: Sequence[Route], search: str | None
) -> dict[str, Config]:
    """Every task's config with its matched network the only one pruned.

    Targets have one control, their own mask with new weights; ConfigError if two routes of a task
    are about different networks.
    """
    found: dict[str, str] = {}
    for route in routes:
        ends = ((route.source, route.matching.source), (route.target, route.matching.target))
        for name, network in ends:
            if found.setdefault(name, network) != network:
                raise ConfigError(
                    f"{name} is matched by its {found[name]} in one transfer and by its {network} "
                    "in another; ask for them in two commands"
                )
    made = {}
    for name, config in configs.items():
        made[name] = _one_network(config, found[name])
        if name != search:
            alone = dataclasses.replace(config.search, controls=("reinit",))
            made[name] = dataclasses.replace(made[name], search=alone)
    return made


def _one_network(config: Config, network: str) -> Config:
    return dataclasses.replace(config, prune=dataclasses.replace(config.prune, networks=(network,)))


def _chains(configs: Mapping[str, Config]) -> int:
    return 4 * len(configs) * next(iter(configs.values())).search.seeds


def report_lines(request: TransferRequest) -> list[str]:
    """What is matched, resized and skipped of every network: said before anything trains."""
    return [
        line
        for route in request.routes
        for line in lines(route.matching, route.source, route.target)
    ]


def carry_out(request: TransferRequest, progress: Progress | None = None) -> Result:
    """Run a transfer and write its report."""
    result = transferring.run(request, progress, write_report)
    write_report(request.out)
    return result


def describe(request: TransferRequest) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What ``--dry-run`` tells: tables that ``--config`` reads back, and lines on the plan."""
    settings, plans = transferring.prepare(request)
    main = settings[request.main]
    tables = request.configs[request.main].tables()
    tables["task"] = {"name": main.config.task.name, "preset": main.config.task.preset}
    for name, setting in settings.items():
        options = task_options(setting.task).items()
        tables["task"] |= {f"{name}.{key}": value for key, value in options}
    if not request.search:
        tables["prune"]["networks"] = ["all"]
    first = next(iter(plans.values()))
    graph = first.graph
    todo = graph.missing(whole_runs(first, Store(request.out / "store")))
    kinds, left = Counter(n.kind for n in graph), Counter(n.kind for n in todo)
    notes = [*report_lines(request), f"out: {request.out}", "graph:"]
    notes += [f"  {kind}: {kinds[kind]} runs, {kinds[kind] - left[kind]} of them done"
              for kind in sorted(kinds)]  # fmt: skip
    total, size = 0.0, 0
    for name, setting in settings.items():
        own = [n for n in todo if n.kind == "train" and n.config["task"]["name"] == name]
        seconds = seconds_per_step(setting)
        steps = sum(node.steps for node in own)
        total += steps * seconds
        size += disk_bytes(sum(setting.parameters.values()), len(own))
        notes.append(f"work of {name}: {work(setting)}")
        notes.append(
            f"left of {name}: {steps} training steps in {len(own)} trainings of {setting.steps}, "
            f"{seconds * 1e3:.3g} ms a step"
        )
    notes.append(f"{main.workers} workers: about {total / main.workers / 60:.3g} minutes, "
                 "judging apart")  # fmt: skip
    return tables, [*notes, disk(size), seeds_line(request.out, main)]
