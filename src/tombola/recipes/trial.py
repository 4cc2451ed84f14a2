"""Does a task work, what does a step of it cost, and how thin can its networks be made?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tombola.data.batches import Batches
from tombola.errors import ConfigError, UserError
from tombola.runtime import Runtime, rng, seed_everything
from tombola.tasks.base import Networks, Shape, Task
from tombola.training.trainer import Settings, Trainer

PROBE_SAMPLES = 2
"""Batch of the trial step that counts the work and shows whether a task's methods fit together."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The forward and backward work of a task, counted once on a small batch."""

    step_macs: int
    """Multiply-adds of one step: all turns, forward and backward, at the task's batch size."""
    sample_macs: int
    """Multiply-adds of making one image: sampling, or reconstructing for autoencoders."""


@dataclass(frozen=True, kw_only=True)
class Thin:
    """A task's networks made thinner by its option ``width``."""

    options: Mapping[str, Any]
    parameters: int
    work: Work


def task_options(task: Task) -> dict[str, Any]:
    """All options of a task with their values, as plain JSON."""
    return {
        name: list(value) if isinstance(value := getattr(task, name), tuple) else value
        for name in sorted(task.options())
    }


def try_task(task: Task, shape: Shape) -> tuple[Networks, Work]:
    """New networks and the work of a step, from one trial of every turn on a batch of two.

    ConfigError that names the method if the task's own code fails or gives a wrong shape.
    """
    seed_everything(0, "trial")
    networks = _guard(task, "networks", lambda: task.networks(shape))
    if not isinstance(networks, dict) or not networks:
        raise ConfigError(
            f"{type(task).__name__}.networks gave {type(networks).__name__}; "
            "return a dict of modules by name"
        )
    images = torch.randint(0, 256, (PROBE_SAMPLES, *shape)).float() / 127.5 - 1
    batches = Batches(torch.zeros(PROBE_SAMPLES, *shape, dtype=torch.uint8), PROBE_SAMPLES, 0)
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=1)
    _guard(task, "optimizer", lambda: Trainer(task, networks, batches, settings))
    macs = 0
    for turn in task.turns:

        def once(name: str = turn.name) -> None:
            result = task.loss(name, networks, images)
            loss = result["loss"] if isinstance(result, dict) else result
            loss.backward()  # type: ignore[no-untyped-call]

        with FlopCounterMode(display=False) as counter, _only(networks, turn.learns):
            _guard(task, f"loss({turn.name!r})", once)
        macs += counter.get_total_flops() // 2 * turn.repeats * task.batch_size // PROBE_SAMPLES
        for network in networks.values():
            network.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made = _guard(
            task,
            "sample" if task.latent else "reconstruct",
            lambda: make_images(task, networks, images),
        )
    if made.shape != images.shape:
        raise ConfigError(
            f"{type(task).__name__} makes images of shape {tuple(made.shape[1:])}, "
            f"but the data has {shape}; set its size and channels to the data's"
        )
    sample_macs = counter.get_total_flops() // 2 // PROBE_SAMPLES
    latents = task.latents(PROBE_SAMPLES, rng(0, "trial")) if task.latent else torch.zeros(0)
    samples = made if task.latent else None
    with torch.no_grad():
        _guard(task, "judge_loss", lambda: task.judge_loss(networks, images, latents, samples))
    return networks, Work(step_macs=macs, sample_macs=sample_macs)


def make_images(task: Task, networks: Networks, images: Tensor) -> Tensor:
    """Samples where the task has a prior, else reconstructions of ``images``; same shape."""
    if task.latent:
        return task.sample(networks, task.latents(len(images), rng(0, "trial")))
    return task.reconstruct(networks, images)


class _only:  # noqa: N801
    """Within the block only the named networks' parameters require gradients (empty = all)."""

    def __init__(self, networks: Networks, names: tuple[str, ...]) -> None:
        self.off = [
            p
            for name, network in networks.items()
            if names and name not in names
            for p in network.parameters()
            if p.requires_grad
        ]

    def __enter__(self) -> None:
        for parameter in self.off:
            parameter.requires_grad_(False)

    def __exit__(self, *details: object) -> None:
        for parameter in self.off:
            parameter.requires_grad_(True)


def _guard(task: Task, method: str, call: Any) -> Any:
    """Run a task's own code; what it raises becomes one line that names the method."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(task).__name__}.{method} failed: {type(error).__name__}: {first_line(error)}; "
            "mend the task or the options it is given"
        ) from error


def thinner(task: Task, shape: Shape, parameters: int) -> Thin:
    """The widest networks with at most so many parameters; the thinnest if all have more.

    ConfigError for a task without an option ``width``.
    """
    options = task_options(task)
    if not isinstance(options.get("width"), int):
        raise ConfigError(
            f"control thin-parameters makes networks thinner by the option width, which "
            f"{type(task).__name__} does not have; give it one, or leave the control out"
        )

    def counted(width: int) -> int | None:
        """Parameters at a width, or None where the task has no such width."""
        try:
            networks = type(task)(**{**options, "width": width}).networks(shape)
        except UserError:
            return None
        return sum(p.numel() for network in networks.values() for p in network.parameters())

    low, high = 1, options["width"]  # low may be too thin to be made, high has too many parameters
    while counted(low) is None and low < high:
        low += 1
    while high - low > 1:
        middle = (low + high) // 2
        found = counted(middle)
        low, high = (middle, high) if found is None or found <= parameters else (low, middle)
    thin = type(task)(**{**options, "width": low})
    networks, work = try_task(thin, shape)
    count = sum(p.numel() for network in networks.values() for p in network.parameters())
    return Thin(options=task_options(thin), parameters=count, work=work)


def first_line(error: Exception) -> str:
    """What an error says, or its first line."""
    return (str(error).strip() or "no message").splitlines()[0]
