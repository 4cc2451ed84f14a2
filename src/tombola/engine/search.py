"""A search from its config to its folder: check, plan, run, write; the same call again resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.config import Config, build
from tombola.data.checks import check_source
from tombola.engine import local_pool
from tombola.engine.exports import Exports
from tombola.engine.output import Output, resolved
from tombola.engine.stages import Context
from tombola.errors import ConfigError, UserError
from tombola.recipes.cells import Plan
from tombola.recipes.setting import Setting, resolve
from tombola.registry import is_file_spec
from tombola.runs.plan import Node
from tombola.runs.results import Row
from tombola.runs.store import Store, locked, write_json

EXTENDABLE = {
    ("search", "seeds"),
    ("search", "rounds"),
    ("search", "controls"),
    ("search", "method"),
    ("search", "rewind"),
    ("prune", "networks"),
    ("prune", "compress"),
    ("train", "precision"),
    ("run", "workers"),
    ("run", "keep"),
}
"""Values that may differ when a search is taken up again: what is there is used again."""


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
    planner: Callable[[Setting], Plan]
    chains: int = 1
    """How many trainings can be under way at once."""
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 -> path of ticket files that are taken in."""
    made: tuple[Path, ...] = ()
    """Files and folders that were made for it, to be taken away again if it is refused."""


class Progress:
    """What is told while runs are carried out; the command line draws a bar from it."""

    def begin(self, steps: int, runs: int) -> None:
        """The training steps and runs that are left."""

    def advance(self, steps: int) -> None:
        """Training steps done since the last call."""

    def finished(self, node: Node) -> None:
        """A run is whole."""

    def end(self) -> None:
        """All runs are done, or the search was interrupted."""


def default_out(config: Config, data_dir: Path | None, method: str) -> Path:
    """``runs/<task>-<data>-<method>``."""
    name = config.task.name
    task = name.rpartition(":")[2] if is_file_spec(name) else name
    return Path("runs") / f"{task}-{check_source(config.data.name, data_dir)}-{method}"


def prepare(request: Request) -> tuple[Setting, Plan]:
    """Resolve a request against what its folder has already, and plan its runs."""
    earlier = read_earlier(request.out)
    config = inherit(request.config, earlier)
    setting = resolve(config, request.data_dir, request.chains)
    if earlier is not None:
        refuse_changes(earlier, resolved(setting, request.command), request.out)
    return setting, request.planner(setting)


def run(request: Request, progress: Progress | None = None) -> Result:
    """Carry a request out and write its folder; a second call reuses every run that is whole."""
    progress = progress or Progress()
    made = absent(request.out)
    with locked(request.out) as lock:
        with gone_if_refused((*request.made, *made)):
            setting, plan = prepare(request)
        store = Store(request.out / "store")
        write_json(request.out / "config.json", resolved(setting, request.command))
        fields = context_fields(request, setting, store)
        runs = carry_graph(setting, plan, store, fields, lock=lock, progress=progress)
        output = Output(setting, plan, store, request.out)
        summary = output.write(runs)
        Exports(output).write(summary)
        return Result(request.out, summary, list(output.rows()))


def carry_graph(
    setting: Setting,
    plan: Plan,
    store: Store,
    fields: Mapping[str, Any],
    *,
    lock: int,
    progress: Progress,
) -> dict[str, int]:
    """Carry out the runs of a plan that are not in the store: how many trainings, new and old.

    ``fields``: the plain fields of stages.Context; ``lock``: descriptor of the folder's lock.
    """
    store.folder.mkdir(exist_ok=True)
    before = store.finished()
    todo = plan.graph.missing(before)
    progress.begin(sum(node.steps for node in todo), len(todo))

    def finished(node: Node) -> None:
        progress.finished(node)
        if setting.config.run.keep != "all":
            discard(node, plan, store)

    try:
        local_pool.run(
            local_pool.Work(
                graph=plan.graph,
                store=store,
                context=fields,
                workers=setting.workers,
                threads=setting.threads,
                lock=lock,
                progress=progress.advance,
                finished=finished,
            )
        )
    finally:
        progress.end()
    # A training that could not begin, as one before it diverged, is neither.
    runs = [
        node.hash in before
        for node in plan.graph
        if node.kind == "train" and "not_run" not in store.record(node.hash)
    ]
    return {"trained": runs.count(False), "reused": runs.count(True)}


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
        "device": config.run.device,
        "keep_steps": sorted({setting.rewind_step(r) for r in config.search.rewind}),
        "inputs": {
            **request.inputs,
            "criterion": config.prune.criterion,
            "features": config.judge.features,
        },
    }
    assert set(fields) < {f.name for f in dataclasses.fields(Context)}
    return fields


def discard(node: Node, plan: Plan, store: Store) -> None:
    """Once a training has been judged by all, the states that were judged on the way may go."""
    train = node.parents.get("train") or node.parents.get("dense")
    if train is None:
        return
    readers = [n for n in plan.graph if train in (n.parents.get("train"), n.parents.get("dense"))]
    if all(store.has(each.hash) for each in readers):
        store.discard_files(train, "judge-*.safetensors")
        store.discard_files(train, "state-*.safetensors")


def read_earlier(out: Path) -> dict[str, Any] | None:
    """The ``config.json`` of an earlier call, if there is one."""
    path = out / "config.json"
    try:
        earlier: dict[str, Any] = json.loads(path.read_text("utf-8"))
        build(earlier["config"])
        run = earlier["config"]["run"]
        _ = run["threads"], run["device"], earlier["resolved"]["data_sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        raise ConfigError(
            f"{path} of an earlier call cannot be used ({type(error).__name__}: {error}); "
            "choose another folder with --out, or delete this one"
        ) from error
    return earlier


def inherit(config: Config, earlier: Mapping[str, Any] | None) -> Config:
    """What the machine decided in the first call (device, threads) stays unless asked otherwise."""
    if earlier is None:
        return config
    run = earlier["config"]["run"]
    changes: dict[str, Any] = {}
    if not config.run.threads:
        changes["threads"] = run["threads"]
    if config.run.device == "auto":
        changes["device"] = run["device"]
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def refuse_changes(earlier: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """ConfigError that shows what differs, unless only extendable values do."""
    differences = []
    defaults = Config().tables()
    for section, table in now["config"].items():
        before = earlier["config"].get(section, {})
        if section != "task":
            # What an older version did not know was as it is now by default.
            before = {**defaults[section], **before}
        for key in sorted({*table, *before}):
            if (section, key) not in EXTENDABLE and before.get(key) != table.get(key):
                differences.append(f"{section}.{key} {before.get(key)!r} -> {table.get(key)!r}")
    if earlier["resolved"]["data_sha256"] != now["resolved"]["data_sha256"]:
        differences.append("the images of the data source")
    if differences:
        raise ConfigError(
            f"{out} holds a search with another config ({'; '.join(differences)}); "
            "choose another folder with --out, or give the values it was begun with"
        )
