"""A search from its config to its folder: check, plan, run, write; the same call again resumes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.config.registry import is_file_spec
from tombola.config.sections import Config
from tombola.config.streams import open_streams
from tombola.data.checks import check_source
from tombola.engine.context import Context
from tombola.engine.earlier import (
    first_margins,
    inherit,
    read_earlier,
    refuse_changes,
    watched_groups,
)
from tombola.engine.executors.protocol import Work, carry_out, load_executor
from tombola.engine.meanwhile import Known, Meanwhile, count_trainings, part_of
from tombola.engine.mending import prepare_store
from tombola.engine.phases import Phases
from tombola.engine.progress import Progress
from tombola.engine.rejudging import refuse_other_judges
from tombola.engine.status_file import StatusFile
from tombola.plan.cells import Plan
from tombola.plan.chain import few_draws
from tombola.plan.setting import Setting, resolve
from tombola.results.exports import Exports
from tombola.results.output import Output, resolved, task_name
from tombola.store.graph import Graph, Node
from tombola.store.lock import locked
from tombola.store.runs import Store, healed, write_json
from tombola.store.tables import Row


@dataclass(frozen=True)
class Result:
    """What a search leaves behind."""

    out: Path
    summary: dict[str, Any]
    rows: list[Row]

    @property
    def tickets(self) -> list[Path]:
        """The ticket files, sorted by name."""
        return sorted((self.out / "tickets").rglob("*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """A search and where it goes."""

    config: Config
    data_dir: Path | None
    out: Path
    command: str
    recipe: str
    """The kind of command: what may be added to its folder goes by it."""
    planner: Callable[[Setting], Plan]
    chains: int = 1
    """How many trainings can be under way at once."""
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 -> path of ticket files that are taken in."""
    made: tuple[Path, ...] = ()
    """Files and folders that were made for it, to be taken away again if it is refused."""


def default_out(config: Config, data_dir: Path | None, method: str) -> Path:
    """``runs/<task>-<data>-<method>``."""
    name = config.task.name
    task = name.rpartition(":")[2] if is_file_spec(name) else name
    return Path("runs") / f"{task}-{check_source(config.data.name, data_dir)}-{method}"


def prepare(request: Request) -> tuple[Setting, Plan]:
    """Resolve a request against what its folder has already, and plan its runs."""
    earlier = read_earlier(request.out)
    config = inherit(request.config, earlier)
    load_executor(config.run.executor)  # a file of the user's is read before anything is written
    setting = resolve(config, request.data_dir, request.chains)
    setting = dataclasses.replace(
        setting,
        watched=watched_groups(config, earlier),
        margins_first=first_margins(request.out, earlier),
    )
    if earlier is not None:
        refuse_changes(earlier, told(request, setting), request.out)
    plan = request.planner(setting)
    plan.families = {task_name(setting): setting.task.family}
    if earlier is not None:
        refuse_other_judges(plan, request.out, earlier, told(request, setting))
    return setting, plan


def told(request: Request, setting: Setting) -> dict[str, Any]:
    """What ``config.json`` keeps of a request."""
    return resolved(setting, request.command, request.recipe)


def run(
    request: Request,
    progress: Progress | None = None,
    page: Callable[[Path], object] = lambda out: None,
) -> Result:
    """Carry a request out and write its folder; a second call reuses every run that is whole.

    ``page`` is called with the folder now and then, when its tables are of what is done so far.
    """
    open_streams()
    progress = StatusFile(progress or Progress(), request.out)
    made = absent(request.out)
    with locked(request.out, progress.note) as lock:
        with gone_if_refused((*request.made, *made)):
            setting, plan = prepare(request)
        store = Store(request.out / "store")
        write_json(request.out / "config.json", told(request, setting))
        fields = context_fields(request, setting, store)
        if few := few_draws(setting):
            progress.note(few)
        before = store.finished()

        def work() -> Result:
            earlier = prepare_store(plan, store, progress.note)
            phases = Phases(setting, plan, store, note=progress.note, expect=progress.expect)
            output = Output(setting, phases.plan, store, request.out)

            def tables(known: Known) -> None:
                part = part_of(output, known.done)
                part.write(known.runs, known.progress)
                part.write_costs()

            with Meanwhile(
                progress, [phases.plan], store, tables=tables, page=lambda: page(request.out)
            ) as meanwhile:
                runs = carry_graph(
                    setting,
                    phases.plan,
                    store,
                    {**fields, "earlier": earlier},
                    before,
                    lock=lock,
                    meanwhile=meanwhile,
                    phases=phases,
                )
            phases.settle()
            whole = Output(setting, phases.plan, store, request.out)
            summary = whole.write(runs)
            Exports(whole).write(summary)
            whole.write_costs()
            return Result(request.out, summary, list(whole.rows()))

        return healed(store, work)


def carry_graph(
    setting: Setting,
    plan: Plan,
    store: Store,
    fields: Mapping[str, Any],
    before: set[str],
    *,
    lock: int,
    meanwhile: Meanwhile,
    phases: Phases | None = None,
) -> dict[str, int]:
    """Carry out the runs of a plan that are not in the store: how many trainings, new and old.

    ``fields``: the plain fields of stages.Context; ``before``: the runs that are not counted as
    new, less those that are made again; ``lock``: descriptor of the folder's lock; ``phases``: says
    which of the plan's runs are due, which else are all from the start.
    """
    store.folder.mkdir(exist_ok=True)
    progress = meanwhile.progress
    if setting.images.remarks:
        progress.note(f"{setting.images.name}: {setting.images.remarks}")
    before &= store.finished()
    todo = plan.graph.missing(store.finished())
    progress.begin(sum(node.steps for node in todo), len(todo))

    discards = Discards(plan, store)

    def finished(node: Node) -> None:
        progress.finished(node)
        meanwhile.finished(node)
        if setting.config.run.keep != "all":
            discards.look_again(node)

    try:
        work = Work(
            graph=phases.due if phases else plan.graph,
            more=phases.more if phases else lambda node: (),
            store=store,
            context=fields,
            workers=setting.workers,
            threads=setting.threads,
            lock=lock,
            progress=progress.advance,
            expect=progress.expect,
            started=progress.started,
            finished=finished,
            lost=progress.lose,
            note=progress.note,
        )
        carry_out(work, load_executor(setting.config.run.executor)(work))
    finally:
        progress.end()
    trained = (node.hash for node in plan.graph if node.kind == "train")
    return count_trainings(trained, before, store)


def absent(out: Path) -> list[Path]:
    """What locking a folder would make and is not there yet: its lock, itself, its parents."""
    return [place for place in (out / ".lock", out, *out.parents) if not place.exists()]


@contextlib.contextmanager
def gone_if_refused(made: Iterable[Path]) -> Iterator[None]:
    """If the block fails, take away the files and then the empty folders that were made for it."""
    try:
        yield
    except BaseException:
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        raise


def context_fields(request: Request, setting: Setting, store: Store) -> dict[str, Any]:
    """The plain fields of stages.Context."""
    config = setting.config
    fields = {
        "store": str(store.folder),
        "task": config.task.name,
        "data": config.data.name,
        "data_dir": str(request.data_dir) if request.data_dir else None,
        "skip_broken": config.data.skip_broken,
        "white": config.data.white,
        "device": config.run.device,
        "moments": config.search.optimizer_at_rewind == "restore",
        "course": config.judge.validation_samples > 0 or config.run.keep == "all",
        "keep_steps": sorted({setting.rewind_step(r) for r in config.search.rewind}),
        "inputs": {
            **request.inputs,
            "criterion": config.prune.criterion,
            "features": config.judge.features,
        },
    }
    assert set(fields) < {f.name for f in dataclasses.fields(Context)}
    return fields


class Discards:
    """Once a training has been judged by all, the states that were judged on the way may go.

    That may be at once: nobody judges those of a chain behind a transfer, and one that was made
    again may have been judged before.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self._graph: Graph | None = None
        self._readers: dict[str, list[str]] = {}
        """Training -> the runs that look at it."""

    def look_again(self, node: Node) -> None:
        """Discard what has become of no use now that a run is whole."""
        train = node.hash if node.kind == "train" else next(_looked_at(node), None)
        if train is None:
            return
        if self._graph is not self._plan.graph:  # which grows and shrinks as levels are decided
            self._graph, self._readers = self._plan.graph, defaultdict(list)
            for each in self._graph:
                for name in _looked_at(each):
                    self._readers[name].append(each.hash)
        if all(self._store.has(name) for name in self._readers.get(train, ())):
            if train not in self._plan.kept:
                self._store.discard_files(train, "judge-*.safetensors")
            self._store.discard_files(train, "state-*.safetensors")


def _looked_at(node: Node) -> Iterator[str]:
    """The trainings whose states a run reads."""
    return (node.parents[role] for role in ("train", "dense") if role in node.parents)
