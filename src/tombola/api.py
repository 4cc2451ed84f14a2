"""What the command line and Python share: find, train and report as functions, models read."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tombola.config import Config, build
from tombola.data.checks import check_source
from tombola.data.sources import native_channels, save_tensor_source
from tombola.engine import search
from tombola.engine.earlier import DENSE, SEARCH
from tombola.engine.progress import Progress
from tombola.engine.search import Request, Result
from tombola.errors import ConfigError, TicketError
from tombola.hub import resolve
from tombola.limits import before_rivals, needs_early_bird, one_way
from tombola.recipes import recipes
from tombola.recipes.cells import Plan
from tombola.recipes.setting import Setting, make_task, search_chains, task_class
from tombola.recipes.thin import of_width
from tombola.recipes.trial import first_line
from tombola.registry import TASKS, file_sha256
from tombola.report.page import write_report
from tombola.sparsity.inspection import registered_task
from tombola.sparsity.layout import shown
from tombola.sparsity.names import plain_state
from tombola.sparsity.tickets import load_model_file, read_manifest
from tombola.tasks.base import Shape, Task
from tombola.training.trainer import load_any_size, load_weights

FIND_KEYS = {
    "method": "search",
    "rounds": "search",
    "rate": "search",
    "sparsity": "search",
    "rewind": "search",
    "compress": "prune",
    "round_to": "prune",
    "controls": "search",
    "controls_at": "search",
    "draws": "search",
    "stop_after": "search",
    "anyway": "search",
    "seeds": "search",
    "prune": "prune",
    "epochs": "train",
    "steps": "train",
    "precision": "train",
    "preset": "task",
    "workers": "run",
    "threads": "run",
    "device": "run",
    "keep": "run",
}
"""Option of ``find`` -> the config section it belongs to."""


def find(
    task: str | type[Task],
    *,
    data: Any = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Search tickets, as the command ``tombola find`` does, and write the folder and its report.

    ``task``: a registered name, ``path/to/file.py:Class``, or a Task class from a file. ``data``: a
    source's name (default: digits), a uint8 tensor (N, C, H, W), or a Dataset. ``options``: rounds,
    rate, sparsity, seeds, method, rewind, prune, controls, controls_at, draws, stop_after, anyway,
    epochs, steps, precision, preset, workers, threads, device, keep. ``settings``: tables as in a
    config file, which ``options`` win over. UserError for bad input.
    """
    tables = _tables(settings)
    options = {name: value for name, value in options.items() if value is not None}
    for name, value in options.items():
        if name not in FIND_KEYS:
            raise ConfigError(
                f"find has no option {name!r}; it has: {', '.join(FIND_KEYS)}, "
                "and settings for every key of a config file"
            )
        key = "networks" if name == "prune" else name
        value = str(value) if name == "rate" else value
        tables.setdefault(FIND_KEYS[name], {})[key] = value
    before_rivals(tables, {(FIND_KEYS[name], name) for name in options})
    tables.setdefault("task", {})["name"] = task_spec(task)
    one_way(options)
    # refuses names and numbers before images are written
    needs_early_bird(options, build(tables).search.method)
    folder = None if out is None else Path(out)
    made: tuple[Path, ...] = ()
    if data is not None and not isinstance(data, str):
        data, made = _tensor_source(data, folder or Path("runs"))
    if data is not None:
        tables.setdefault("data", {})["name"] = data
    where = Path(data_dir) if data_dir else None
    given = {"data": data, "data_dir": data_dir, "settings": settings, **options}
    words = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    command = f"tombola.find({', '.join([repr(task_spec(task)), *words])})"
    request = find_request(build(tables), where, folder, command)
    return carry_out(dataclasses.replace(request, made=made), progress)


def _tables(settings: Any) -> dict[str, dict[str, Any]]:
    """Copies of the caller's config tables; ConfigError for what are none."""
    given = {} if settings is None else settings
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
        raise ConfigError(
            f"settings got {settings!r}; give a dict of sections, each a dict of keys"
        )
    return {str(name): dict(table) for name, table in given.items()}


def _tensor_source(data: Any, folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Images given from Python as a file named after their content, and what was made for it."""
    made = search.absent(folder)
    temporary = folder / f".data-{os.getpid()}.safetensors"
    save_tensor_source(data, temporary)
    name = f"data-{check_source(f'tensor:{temporary}').removeprefix('tensor-')}.safetensors"
    if not (folder / name).exists():
        made.append(folder / name)
    return f"tensor:{temporary.replace(folder / name)}", tuple(made)


def task_spec(task: str | type[Task]) -> str:
    """A task as the command line names it; a class must come from a file, which workers import."""
    if isinstance(task, str):
        return task
    given: Any = task
    if not (isinstance(given, type) and issubclass(given, Task)):
        what = "the class " if isinstance(given, type) else "a "
        what += given.__name__ if isinstance(given, type) else type(given).__name__
        raise ConfigError(
            f"task got {what}; give a registered name ({', '.join(TASKS.names())}), "
            "path/to/file.py:Class, or a class derived from tombola.Task"
        )
    if task.__module__.startswith("tombola."):
        return next(name for name in TASKS.names() if TASKS.load(name) is task)
    try:
        source = inspect.getsourcefile(task)
    except (TypeError, OSError):
        source = None
    if source is None or not Path(source).is_file():
        raise ConfigError(
            f"task {task.__name__} is in no file, so workers cannot import it; "
            "put the class into a .py file"
        )
    return f"{source}:{task.__name__}"


def find_request(config: Config, data_dir: Path | None, out: Path | None, command: str) -> Request:
    """The request of a ticket search."""
    method = "+".join(config.search.method)
    out = out or search.default_out(config, data_dir, method)
    return Request(
        config=config,
        data_dir=data_dir,
        out=out,
        command=command,
        recipe=SEARCH,
        planner=recipes.search,
        chains=search_chains(config),
    )


def train_request(
    config: Config,
    data_dir: Path | None,
    out: Path | None,
    command: str,
    ticket: Path | None = None,
    *,
    compact: bool = False,
) -> Request:
    """The request of training the dense task, or a ticket as ``find`` trained it.

    ``compact``: the smaller networks of a channel ticket, instead of the dense ones masked.
    """
    if ticket is None:
        out = out or search.default_out(config, data_dir, "dense")
        return Request(
            config=config,
            data_dir=data_dir,
            out=out,
            command=command,
            recipe=DENSE,
            planner=recipes.dense,
            chains=config.search.seeds,
        )
    manifest = read_manifest(ticket)
    channels = native_channels(config.data.name, data_dir)
    task = _task_with(ticket, config)
    check_fit(ticket, task, task.image_shape(channels), manifest["shapes"])
    sha256 = file_sha256(ticket)
    facts = {
        "sha256": sha256,
        "method": manifest["method"],
        "seed": manifest["seed"],
        "networks": config.prune.networks[0],
        "rewind": config.search.rewind[0],
        "rewind_step": manifest["rewind_step"],
        "round": manifest["round"],
        "granularity": manifest["granularity"],
        "sparsity": manifest["sparsity"],
        "sparsity_all": manifest["sparsity_all"],
        "compact": compact,
    }

    def planner(setting: Setting) -> Plan:
        _check_ticket(ticket, manifest, setting)
        return recipes.from_ticket(setting, facts)

    kind = "compact" if compact else "ticket"
    out = out or search.default_out(config, data_dir, f"{kind}-{sha256[:8]}")
    return Request(
        config=config,
        data_dir=data_dir,
        out=out,
        command=command,
        recipe=f"{kind}:{sha256}",
        planner=planner,
        inputs={sha256: str(ticket.absolute())},
    )


def _task_with(ticket: Path, config: Config) -> Task:
    """The task of a ticket's config; TicketError that names the file if there is no such task."""
    try:
        return make_task(config)[0]
    except ConfigError as error:
        raise TicketError(f"{ticket} and what is set beside it make no task: {error}") from error


def _check_ticket(ticket: Path, manifest: Mapping[str, Any], setting: Setting) -> None:
    """TicketError unless a ticket fits the data and the training of a resolved config."""
    if setting.images.sha256 != manifest["data_hash"]:
        raise TicketError(
            f"{ticket} was found on other images (data {shown(manifest['data'])}, "
            f"{shown(manifest['data_hash'])[:12]}...) than {setting.images.name} "
            f"({setting.images.sha256[:12]}...); give the data it was found on"
        )
    if not 0 <= manifest["rewind_step"] < setting.steps:
        raise TicketError(
            f"{ticket} begins at step {manifest['rewind_step']}, but the training has "
            f"{setting.steps} steps; train longer"
        )
    if not 1 <= manifest["round"] <= len(setting.levels):
        raise TicketError(
            f"{ticket} is of round {manifest['round']}, but its search has "
            f"{len(setting.levels)} levels; take a ticket written by tombola find"
        )
    restored = setting.config.search.optimizer_at_rewind == "restore"
    if restored and manifest["granularity"] != "channel":
        raise TicketError(
            f"{ticket} was found with search.optimizer_at_rewind=restore, but a ticket holds no "
            "optimizer's state; train it with fresh moments: --set "
            "search.optimizer_at_rewind=fresh"
        )


def carry_out(request: Request, progress: Progress | None = None) -> Result:
    """Run a request and write its report."""
    result = search.run(request, progress, write_report)
    write_report(request.out)
    return result


def load_model(path: str | Path, task: str | type[Task] | None = None) -> dict[str, nn.Module]:
    """The trained networks of a model file, in eval mode on the CPU.

    ``path``: a file on this disk, or ``hub:user/name[@revision][/file]`` (extra ``hub``).
    A file never decides what code runs: a task of the user's own is built only if ``task`` names
    it. TicketError if the file is unsound or does not fit the task.
    """
    path = resolve(path)
    weights, manifest = load_model_file(path)
    return model_networks(path, weights, manifest, task)[1]


def model_networks(
    path: str | Path,
    weights: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    task: str | type[Task] | None,
) -> tuple[Task, dict[str, nn.Module]]:
    """(task, networks in eval mode) of a model file that was read."""
    if task is None:
        task = registered_task(path, manifest)
    kind = task_class(task) if isinstance(task, str) else task
    stored = manifest.get("config")
    options = stored.get("task") if isinstance(stored, Mapping) else None
    options = options if isinstance(options, Mapping) else {}
    allowed = kind.options()
    try:
        built = kind(**{k: v for k, v in options.items() if k in allowed})
        channels, height, width = (int(v) for v in manifest["shape"])
        shape = (channels, height, width)
        smaller = manifest.get("granularity") == "channel"
        shapes = {name: list(v.shape) for name, v in weights.items()}
        check_fit(path, built, shape, shapes, smaller=smaller)
        networks = built.networks(shape)
        for name, width in manifest.get("widths_by_network", {}).items():
            networks[name] = _narrowed(built, width).networks(shape)[name]
        load_any_size(networks, weights) if smaller else load_weights(networks, weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise TicketError(
            f"{path} does not fit task {shown(task)}: {shown(str(error))}; "
            "give the task it was trained with"
        ) from error
    for network in networks.values():
        network.eval()
    return built, networks


def _narrowed(task: Task, width: Any) -> Task:
    """A task of a width that a file names for one network; ValueError for more than its own."""
    widest = getattr(task, "width", 0)
    if not isinstance(width, int) or not 1 <= width <= widest:
        raise ValueError(f"its widths_by_network has {shown(width)}, not 1 to {shown(widest)}")
    return of_width(task, width)


def check_fit(
    path: str | Path,
    task: Task,
    shape: Shape,
    stored: Mapping[str, Sequence[int]],
    *,
    smaller: bool = False,
) -> None:
    """TicketError unless the tensors of a file are those of the task, by name and shape.

    ``smaller``: they may have fewer places along any dimension, as those of cut networks have.
    Asked before memory is taken, as the sizes come from the file: the networks are only sketched.
    """
    try:
        with torch.device("meta"):
            sketch = task.networks(shape)
    except (NotImplementedError, RuntimeError, MemoryError, OverflowError) as error:
        if type(task) in map(TASKS.load, TASKS.names()):
            text = f"its options make no network ({shown(first_line(error))})"
            raise TicketError(f"{path}: {text}; get the file again") from error
        return  # some networks cannot be made without numbers; loading them checks the rest
    wanted = {
        f"{name}.{key}": list(tensor.shape)
        for name, network in sketch.items()
        for key, tensor in plain_state(network).items()
    }
    for key in [*wanted, *stored]:
        want, have = wanted.get(key), stored.get(key)
        fits = want is not None and have is not None and len(have) == len(want)
        if fits and smaller:
            fits = all(1 <= a <= b for a, b in zip(have or (), want or (), strict=True))
        elif fits:
            fits = list(have or ()) == want
        if not fits:
            raise TicketError(
                f"{path} does not fit task {type(task).__name__}: {shown(key)} is "
                f"{shown(have or 'not')} in the file and {want or 'not'} in the networks; "
                "give the task, data and options it was made with"
            )
