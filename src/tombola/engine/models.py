"""The networks of a model file, built and filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tombola.config.registry import TASKS
from tombola.errors import ConfigError, TicketError, escape
from tombola.plan.setting import task_class
from tombola.plan.thin import of_width
from tombola.plan.trial import first_line
from tombola.sparsity.names import plain_state
from tombola.tasks.base import Shape, Task
from tombola.tickets.hub import resolve
from tombola.tickets.inspection import registered_task
from tombola.tickets.ticket import load_model_file
from tombola.training.trainer import load_any_size, load_weights


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
            f"{path} does not fit task {escape(task)}: {escape(str(error))}; "
            "give the task it was trained with"
        ) from error
    for network in networks.values():
        network.eval()
    return built, networks


def _narrowed(task: Task, width: Any) -> Task:
    """A task of a width that a file names for one network; ValueError for more than its own."""
    widest = getattr(task, "width", 0)
    if not isinstance(width, int) or not 1 <= width <= widest:
        raise ValueError(f"its widths_by_network has {escape(width)}, not 1 to {escape(widest)}")
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
            text = f"its options make no network ({escape(first_line(error))})"
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
                f"{path} does not fit task {type(task).__name__}: {escape(key)} is "
                f"{escape(have or 'not')} in the file and {want or 'not'} in the networks; "
                "give the task, data and options it was made with"
            )
