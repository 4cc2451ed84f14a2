"""What the command line and Python share: find, train and report as functions, models read."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tombola.config.limits import before_rivals, needs_early_bird, one_way
from tombola.config.registry import TASKS
from tombola.config.sections import build
from tombola.data.checks import check_source
from tombola.data.sources import save_tensor_source
from tombola.engine import search
from tombola.engine.progress import Progress
from tombola.engine.request import find_request
from tombola.engine.search import Request, Result
from tombola.errors import ConfigError
from tombola.report.page import write_report
from tombola.tasks.base import Task

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
    "executor": "run",
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
    epochs, steps, precision, preset, workers, threads, device, keep, executor. ``settings``: tables
    as in a config file, which ``options`` win over. UserError for bad input.
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


def carry_out(request: Request, progress: Progress | None = None) -> Result:
    """Run a request and write its report."""
    result = search.run(request, progress, write_report)
    write_report(request.out)
    return result
