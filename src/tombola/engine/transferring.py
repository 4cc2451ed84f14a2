"""Searches in several tasks whose tickets go from one into the other: one graph and one store.

The folder is that of the main task's search; of every other task it has tickets, models, samples
and log under ``transfer/<task>/``. The tables at the top hold all tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tombola.config.sections import Config
from tombola.config.streams import open_streams
from tombola.engine.earlier import (
    SEARCH_AND_TRANSFER,
    inherit,
    read_earlier,
    refuse_changes,
    watched_groups,
)
from tombola.engine.executors.protocol import load_executor
from tombola.engine.meanwhile import Known, Meanwhile, part_of
from tombola.engine.mending import prepare_store
from tombola.engine.progress import Progress
from tombola.engine.rejudging import refuse_other_judges
from tombola.engine.search import (
    Request,
    Result,
    absent,
    carry_graph,
    context_fields,
    gone_if_refused,
)
from tombola.engine.status_file import StatusFile
from tombola.metrics.transfers import transfer_verdicts
from tombola.plan import transfer
from tombola.plan.cells import Plan
from tombola.plan.plans import search as plan_search
from tombola.plan.setting import Setting, resolve
from tombola.plan.transfer import Route, TicketFacts
from tombola.results.exports import Exports
from tombola.results.output import Output, resolved, task_name
from tombola.results.spending import behind, spent
from tombola.store.lock import locked
from tombola.store.runs import Store, finite, healed, write_json
from tombola.store.tables import Row, write_costs, write_results
from tombola.store.transfer_tables import TRANSFERRED, RouteKey, as_ticket, rows_of
from tombola.store.unfinished import in_progress

Settings = dict[str, Setting]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferRequest:
    """What is to go from where to where, and into which folder."""

    configs: Mapping[str, Config]
    """Task -> its config, its matched network the only one pruned; the first is the main one."""
    routes: tuple[Route, ...]
    data_dir: Path | None
    out: Path
    command: str
    search: bool = False
    """Whether the main task has its ordinary search too (``find --transfer-to``)."""
    ticket: TicketFacts | None = None
    """The file that is transferred, instead of chains of the source."""
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 -> path of that file."""
    chains: int = 1
    """How many trainings can be under way at once."""

    @property
    def recipe(self) -> str:
        """The kind of command: what may be added to its folder goes by it."""
        if self.ticket is not None:
            return f"transfer:{self.ticket.sha256}"
        return SEARCH_AND_TRANSFER if self.search else "transfer"

    @property
    def main(self) -> str:
        """The task that the folder is about."""
        return next(iter(self.configs))

    def of(self, name: str) -> Request:
        """One task's part, as searches have it."""
        return Request(
            config=self.configs[name],
            data_dir=self.data_dir,
            out=self.out,
            command=self.command,
            recipe=self.recipe,
            planner=plan_search,
            chains=self.chains,
            inputs=self.inputs,
        )


class _TaskOutput(Output):
    """What one task leaves; what was trained before may have been another task's."""

    def __init__(self, settings: Settings, name: str, plan: Plan, store: Store, out: Path) -> None:
        super().__init__(settings[name], plan, store, out)
        self.macs = {task_name(each): each.work.step_macs for each in settings.values()}

    def flops_of(self, record: Mapping[str, Any]) -> int:
        """The work of a whole training of a task's own networks."""
        name = record["config"]["task"]["name"]
        return 2 * self.macs[name] * self.steps_of(record)

    def transfer(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The verdicts of one transfer into this task; none by a judge that failed its gate."""
        return transfer_verdicts(rows, as_ticket(rows), self.evidence())


def prepare(request: TransferRequest) -> tuple[Settings, dict[str, Plan]]:
    """Resolve every task against what the folder has already, and plan the runs of all."""
    earlier = read_earlier(request.out)
    settings = {
        name: resolve(inherit(config, earlier), request.data_dir, request.chains)
        for name, config in request.configs.items()
    }
    main = settings[request.main]
    load_executor(main.config.run.executor)
    watched = watched_groups(main.config, earlier)
    settings[request.main] = dataclasses.replace(main, watched=watched)
    if earlier is not None:
        now, others = told(request, settings), earlier.get("transfer", {}).get("tasks", {})
        refuse_changes(earlier, now, request.out)
        for name, each in now["transfer"]["tasks"].items():
            if name in others:
                refuse_changes(others[name], each, request.out)
    plans = _plans(request, settings)
    first = next(iter(plans.values()))
    first.families = {task_name(each): each.task.family for each in settings.values()}
    if earlier is not None:
        refuse_other_judges(first, request.out, earlier, told(request, settings))
    return settings, plans


def _plans(request: TransferRequest, settings: Settings) -> dict[str, Plan]:
    """The plan of every task that has rows of its own, the main one's first: one graph."""
    if request.ticket is not None:
        (route,) = request.routes
        return {route.target: transfer.from_file(settings[route.target], route, request.ticket)}
    plans = transfer.between(settings, request.routes)
    if request.search:
        found = plan_search(settings[request.main])
        transfer.joined(plans, found)
        plans = {request.main: found, **plans}
    return plans


def run(
    request: TransferRequest,
    progress: Progress | None = None,
    page: Callable[[Path], object] = lambda out: None,
) -> Result:
    """Carry a transfer out and write its folder; a second call reuses every run that is whole.

    ``page`` is called with the folder now and then, when its tables are of what is done so far.
    """
    open_streams()
    progress = StatusFile(progress or Progress(), request.out)
    made = absent(request.out)
    with locked(request.out, progress.note) as lock:
        with gone_if_refused(made):
            settings, plans = prepare(request)
        store = Store(request.out / "store")
        write_json(request.out / "config.json", told(request, settings))
        main, fields = settings[request.main], _fields(request, settings, store)
        before = store.finished()

        def outputs() -> dict[str, _TaskOutput]:
            made = {}
            for name, plan in plans.items():
                folder = request.out if name == request.main else request.out / "transfer" / name
                made[name] = _TaskOutput(settings, name, plan, store, folder)
            return made

        shared = outputs()

        def tables(known: Known) -> None:
            parts = {name: part_of(output, known.done) for name, output in shared.items()}
            _write(request, parts, known.runs, known.progress)

        def work() -> Result:
            first = next(iter(plans.values()))
            earlier = prepare_store(first, store, progress.note)
            with Meanwhile(
                progress,
                list(plans.values()),
                store,
                tables=tables,
                page=lambda: page(request.out),
            ) as meanwhile:
                runs = carry_graph(
                    main,
                    first,
                    store,
                    {**fields, "earlier": earlier},
                    before,
                    lock=lock,
                    meanwhile=meanwhile,
                )
            whole = outputs()
            summary = _write(request, whole, runs)
            return Result(request.out, summary, [r for o in whole.values() for r in o.rows()])

        return healed(store, work)


def told(request: TransferRequest, settings: Settings) -> dict[str, Any]:
    """What ``config.json`` keeps: the main task's, and under ``transfer`` the routes and others."""
    others = {name: each for name, each in settings.items() if name != request.main}
    return {
        **resolved(settings[request.main], request.command, request.recipe),
        "transfer": {
            "search": request.search,
            "routes": [
                {
                    "source": route.source,
                    "target": route.target,
                    "networks": route.networks,
                    "layers": [dataclasses.asdict(layer) for layer in route.matching.layers],
                }
                for route in request.routes
            ],
            "tasks": {
                name: resolved(each, request.command, request.recipe)
                for name, each in others.items()
            },
        },
    }


def _fields(request: TransferRequest, settings: Settings, store: Store) -> dict[str, Any]:
    """The plain fields of stages.Context, for the runs of all tasks."""
    each = [context_fields(request.of(name), setting, store) for name, setting in settings.items()]
    tasks = {task_name(setting): setting.config.task.name for setting in settings.values()}
    kept = {0}.union(*(fields["keep_steps"] for fields in each))
    shared = {key: any(fields[key] for fields in each) for key in ("moments", "course")}
    return {**each[0], **shared, "tasks": tasks, "keep_steps": sorted(kept)}


def _write(
    request: TransferRequest,
    outputs: Mapping[str, _TaskOutput],
    runs: Mapping[str, int],
    progress: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The tables of all tasks, and each task's files; returns the object of summary.json.

    ``progress``: as of ``Output.write``; the files are not written then.
    """
    for output in outputs.values():
        transfer.settled(output.plan, output.record, output.setting)
    rows = {name: list(output.rows()) for name, output in outputs.items()}
    costs = {name: list(output.cost_rows()) for name, output in outputs.items()}
    summaries = {
        name: output.summary(
            [row for row in rows[name] if row.arm not in TRANSFERRED],
            costs[name],
            runs,
        )
        for name, output in outputs.items()
    }
    write_results(request.out / "results.csv", [row for each in rows.values() for row in each])
    every = [row for each in rows.values() for row in each]
    main = outputs[request.main]
    found: dict[str, Any] = finite(
        {
            **summaries[request.main],
            "runs": {**runs, "diverged": sum(s["runs"]["diverged"] for s in summaries.values())},
            "cost": spent(
                [row for name, output in outputs.items() for row in output.once(costs[name])],
                behind(
                    main.plan.graph,
                    main.record,
                    main.flops_of,
                    [cell for output in outputs.values() for cell in output.plan.cells],
                ),
            ),
            "transfer": _verdicts(request, summaries, outputs, every),
        }
    )
    summary = in_progress(found, progress)
    write_json(request.out / "summary.json", summary)
    for name, output in outputs.items() if progress is None else ():
        output.out.mkdir(parents=True, exist_ok=True)
        Exports(output).write(summaries[name])
    sized = [row for output in outputs.values() for row in output.cost_rows()]
    write_costs(request.out / "costs.csv", sized)
    return summary


def _verdicts(
    request: TransferRequest,
    summaries: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, _TaskOutput],
    rows: Sequence[Row],
) -> dict[str, Any]:
    """What summary.json tells of the transfers: every route's verdicts, and other tasks' own."""
    found = []
    for route in request.routes:
        key = RouteKey(
            task_name(outputs[route.target].setting),
            route.matching.target,
            f"{route.source}.{route.matching.source}",
        )
        counts = {s: route.matching.count(s) for s in ("matched", "resized", "skipped")}
        verdicts = outputs[route.target].transfer(rows_of(rows, key))
        found.append({**key._asdict(), "layers": counts, **verdicts})
    others = {name: each for name, each in summaries.items() if name != request.main}
    return {
        "search": request.search,
        "routes": found,
        "tasks": {
            name: {key: each[key] for key in ("verdicts", "primary", "floor", "collapsed")}
            for name, each in others.items()
        },
    }
