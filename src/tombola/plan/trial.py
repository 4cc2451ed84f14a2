"""Does a task work, what does a step of it cost, and how thin can its networks be made?"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tombola.config.registry import is_file_spec
from tombola.config.runtime import Runtime, generators_as_found, rng, seed_everything, state_hash
from tombola.config.search import PruneSection
from tombola.config.values import split_networks
from tombola.data.batches import Batches, LabelledBatches
from tombola.errors import ConfigError, DivergedError, UserError
from tombola.sparsity.cost import count_macs
from tombola.sparsity.guard import Guard
from tombola.sparsity.masks import ones, prunable
from tombola.sparsity.names import plain_parameters
from tombola.tasks.base import Networks, Shape, Task, Turn, zero_labelled
from tombola.training.keeping import ELEMENTWISE
from tombola.training.scoring import Scored, score_weights
from tombola.training.trainer import Settings, Trainer

PROBE_SAMPLES = 2
"""Batch of the trial step that shows whether a task's methods fit together."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The forward and backward work of a task, counted once."""

    step_macs: int
    """Multiply-adds of one step: all turns, forward and backward, at the task's batch size."""
    sample_macs: int
    """Multiply-adds of making one image in eval mode: a sample; autoencoders reconstruct."""


@dataclass(frozen=True, kw_only=True)
class Thin:
    """A task's networks made thinner by its option ``width``."""

    options: Mapping[str, Any]
    parameters: int
    work: Work


def task_options(task: Task) -> dict[str, Any]:
    """All options of a task with their values, as plain JSON.

    An option that came after the first release is among them only where it is not at its default,
    so that the runs of earlier versions keep their names.
    """
    return {
        name: list(value) if isinstance(value := getattr(task, name), tuple) else value
        for name, default in sorted(task.options().items())
        if name not in task._added or getattr(task, name) != default
    }


def try_task(task: Task, shape: Shape) -> tuple[Networks, Work]:
    """New networks and the work of a step, after one trial of every turn on a batch of two.

    ConfigError that names the method if the task's own code fails or gives a wrong shape.
    """
    seed_everything(0, "trial")
    networks = _guard(task, "networks", lambda: task.networks(shape))
    if not isinstance(networks, dict) or not networks:
        raise ConfigError(
            f"{type(task).__name__}.networks gave {type(networks).__name__}; "
            "return a dict of modules by name"
        )
    images = _noise(shape)
    batches = Batches(
        torch.zeros(PROBE_SAMPLES, *shape, dtype=torch.uint8, device="cpu"), PROBE_SAMPLES, 0
    )
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=1)
    trainer = _guard(task, "optimizer", lambda: Trainer(task, networks, batches, settings))
    for turn in task.turns:
        with _learning(task, networks, turn):
            _guard(task, f"loss({turn.name!r})", _turn(task, networks, images, turn))
        for network in networks.values():
            network.zero_grad(set_to_none=True)
    if any(type(each) not in ELEMENTWISE for each in trainer.optimizers.values()):
        _guard(task, "optimizer", partial(try_optimizers, task, networks, shape))
    with torch.no_grad():
        made = _guard(task, _maker(task), lambda: make_images(task, networks, images))
    if made.shape != images.shape:
        raise ConfigError(
            f"{type(task).__name__} makes images of shape {tuple(made.shape[1:])}, "
            f"but the data has {shape}; set its size and channels to the data's"
        )
    latents = (
        task.latents(PROBE_SAMPLES, rng(0, "trial"))
        if task.latent
        else torch.zeros(0, device="cpu")
    )
    samples = made if task.latent else None
    with torch.no_grad():
        found = _guard(
            task, "judge_loss", lambda: task.judge_loss(networks, images, latents, samples)
        )
    if task.family == "diffusion" and "denoising_loss" not in found:
        raise ConfigError(
            f"{type(task).__name__}.judge_loss gave no 'denoising_loss', by which a diffusion's "
            "course is judged; return it for each image (N,)"
        )
    return networks, work_of(task, networks, shape)


def given_weights(task: Task, shape: Shape) -> str:
    """Hash of the parameters that a task's networks come with, whatever the seed; empty if none.

    Those that are read from a file, as a rule; constants are told by the task's code.
    """
    drawn = []
    for purpose in ("trial", "another"):
        seed_everything(0, purpose)
        made = _guard(task, "networks", lambda: task.networks(shape))
        drawn.append(
            {
                f"{name}.{key}": leaf.detach()
                for name, network in made.items()
                for key, leaf in plain_parameters(network).items()
            }
        )
    one, other = drawn
    same = {
        name: leaf
        for name, leaf in one.items()
        if name in other
        and torch.equal(leaf, other[name])
        and bool((leaf != leaf.flatten()[:1]).any())
    }
    return state_hash(same) if same else ""


def try_optimizers(task: Task, networks: Networks, shape: Shape) -> None:
    """One step of copies, and what its optimizers then know written down: none may refuse later."""
    images = torch.randint(0, 256, (PROBE_SAMPLES, *shape), device="cpu").byte()
    batches = _batches(task, images)
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=1)
    copies = _copies(networks, torch.device("cpu"))
    trainer = Trainer(copy.copy(task), copies, batches, settings)
    with contextlib.suppress(DivergedError):
        trainer.advance()
    trainer.state()


def _batches(task: Task, images: Tensor) -> Batches:
    """Uint8 images in batches of two, with labels of 0 if the task takes labels."""
    if task.takes_labels():
        labels = torch.zeros(len(images), dtype=torch.int64, device="cpu")
        return LabelledBatches(images, labels, PROBE_SAMPLES, 0)
    return Batches(images, PROBE_SAMPLES, 0)


def try_criterion(prune: PruneSection, task: Task, networks: Networks, shape: Shape) -> None:
    """Score new weights by a user's criterion, dense and masked: ConfigError if it fails later."""
    if not is_file_spec(prune.criterion):
        return
    with generators_as_found():
        images = torch.randint(0, 256, (2 * PROBE_SAMPLES, *shape), device="cpu").byte()
        copies = _copies(networks, torch.device("cpu"))
        loss = Scored(copy.copy(task), copies, _batches(task, images), 0).loss
        for names in prune.networks:
            pool = prunable(copies, split_networks(names), prune.exclude)
            for among in (None, ones(pool)):
                score_weights(prune.criterion, pool, loss, among, 0)


def check_products(task: Task, networks: Networks, shape: Shape, names: Collection[str]) -> None:
    """ConfigError for a pruned layer of its own ``forward`` in whose product a zero is none.

    ``names``: the weights ``network.parameter`` that are pruned.
    """
    guard = Guard(networks, names)
    try:
        if guard.looks:
            for turn in task.turns:
                with _learning(task, networks, turn):
                    task.turn_loss(turn.name, networks, zero_labelled(task, _noise(shape)))
    finally:
        guard.close()


def work_of(task: Task, networks: Networks, shape: Shape) -> Work:
    """The work of a step and of an image (C, H, W) with these networks; they stay as they are.

    Exact: counted on the meta device, where nothing is computed, at the task's own batch size. A
    task whose code cannot run there, since it looks at values, is counted on the CPU with a batch
    of two, as if all work grew with the batch; the global generators are seeded for that.
    Parameters that require no gradient count as frozen for good: a trainer leaves some so behind.
    ConfigError that names the method if it fails there too.
    """
    try:
        return _work(task, networks, torch.empty(task.batch_size, *shape, device="meta"))
    except Exception:
        seed_everything(0, "trial")
        return _work(task, networks, _noise(shape))


def _work(task: Task, networks: Networks, images: Tensor) -> Work:
    """Count with copies of networks and task, on the device of the images (N, C, H, W)."""
    task, networks = copy.copy(task), _copies(networks, images.device)
    step_macs = 0
    # The device is also where a loss draws that names none.
    with torch.device(images.device):
        for network in networks.values():
            network.train()
        for turn in task.turns:
            with _learning(task, networks, turn):
                once = _turn(task, networks, images, turn)
                macs = _guard(task, f"loss({turn.name!r})", partial(count_macs, once))
            step_macs += macs * turn.repeats * task.batch_size // len(images)
        for network in networks.values():
            network.eval()
        with torch.no_grad():
            making = partial(make_images, task, networks, images[:1])
            sample_macs = _guard(task, _maker(task), partial(count_macs, making))
    return Work(step_macs=step_macs, sample_macs=sample_macs)


def _copies(networks: Networks, device: torch.device) -> Networks:
    """The networks on a device, what they share still shared; the originals stay as they are.

    Tensors go by the memo of deepcopy: not all can be copied otherwise, such as the weight that the
    old spectral norm leaves behind, and none needs to be read on its way to the meta device.
    """
    memo: dict[int, Any] = {}
    for network in networks.values():
        for module in network.modules():
            own = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
            for value in own:
                if isinstance(value, Tensor):
                    made = value.detach().to(device, copy=True)
                    if isinstance(value, nn.Parameter):
                        made = nn.Parameter(made, requires_grad=value.requires_grad)
                    memo[id(value)] = made
    return copy.deepcopy(networks, memo)


def _noise(shape: Shape) -> Tensor:
    """Images (2, C, H, W) in [-1, 1] of the global generator."""
    return torch.randint(0, 256, (PROBE_SAMPLES, *shape), device="cpu").float() / 127.5 - 1


def _turn(task: Task, networks: Networks, images: Tensor, turn: Turn) -> Callable[[], None]:
    """What runs the loss of a turn once, forward and backward."""

    def once() -> None:
        result = task.turn_loss(turn.name, networks, zero_labelled(task, images))
        loss = result["loss"] if isinstance(result, dict) else result
        loss.backward()  # type: ignore[no-untyped-call]

    return once


def _maker(task: Task) -> str:
    """The method that makes a task's images."""
    return "sample" if task.latent else "reconstruct"


def make_images(task: Task, networks: Networks, images: Tensor) -> Tensor:
    """Samples where the task has a prior, else reconstructions of ``images``; same shape."""
    if task.latent:
        with torch.device("cpu"):  # a prior may look at its draws
            latents = task.latents(len(images), rng(0, "trial"))
        return task.sample(networks, latents.to(images.device))
    return task.reconstruct(networks, images)


@contextmanager
def _learning(task: Task, networks: Networks, turn: Turn) -> Iterator[None]:
    """Within the block only what learns in the turn requires gradients, as the trainer has it."""

    def learners(turn: Turn) -> dict[int, nn.Parameter]:
        names = turn.learns or tuple(networks)
        own = (p for name in names for p in networks[name].parameters())
        return {id(parameter): parameter for parameter in own if parameter.requires_grad}

    others = {key: p for other in task.turns for key, p in learners(other).items()}
    for key in learners(turn):
        del others[key]
    for parameter in others.values():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others.values():
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
        except Exception:  # whatever a user's networks say of a width that they do not take
            return None
        return sum(p.numel() for network in networks.values() for p in network.parameters())

    low, high = 1, options["width"]  # low may be too thin to be made, high has too many parameters
    while counted(low) is None and low < high:
        low += 1
    while found := between(counted, low, high):
        width, count = found
        low, high = (width, high) if count <= parameters else (low, width)
    thin = type(task)(**{**options, "width": low})
    networks, work = try_task(thin, shape)
    own = sum(p.numel() for network in networks.values() for p in network.parameters())
    return Thin(options=task_options(thin), parameters=own, work=work)


def between(measured: Callable[[int], int | None], low: int, high: int) -> tuple[int, int] | None:
    """The width nearest to the middle between two that can be made, and its measure; or None.

    ``measured``: width -> number, None for a width that cannot be made.
    """
    middle = (low + high) // 2
    for width in sorted(range(low + 1, high), key=lambda each: abs(each - middle)):
        if (found := measured(width)) is not None:
            return width, found
    return None


def first_line(error: Exception) -> str:
    """What an error says, or its first line."""
    return (str(error).strip() or "no message").splitlines()[0]
