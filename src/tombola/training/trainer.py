"""The one training loop: turns, masks held after every optimizer step, averaged weights, resume.

A step is one round of all turns. Every random draw of a turn is a function of (seed, turn, step),
so a run taken up at step k from its state is the run that never stopped, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tombola.config.runtime import Runtime, derive_seed
from tombola.data.batches import blank
from tombola.errors import ConfigError, DivergedError, TicketError
from tombola.sparsity.cutting import resize
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks
from tombola.sparsity.names import load_plain_state, plain_parameters, plain_state
from tombola.tasks.base import Networks, Task, Turn
from tombola.training.keeping import ELEMENTWISE, Keeping, evaluation_weights
from tombola.training.scaling import Scaling

LOG_ROWS = 100
"""Loss rows that a run keeps, equally spaced."""
CUDA_CHECK_STEPS = 50
"""On an accelerator losses are read together this often, so that the queue never runs dry."""


class BatchSource(Protocol):
    """What the trainer asks of data: the batch of an index, the same whenever asked."""

    def batch(self, index: int) -> Any:
        """Real images of draw ``index``, as the task's loss takes them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training run needs to know besides its task, networks and data."""

    runtime: Runtime
    seed: int
    total_steps: int
    ema: float = 0.0
    """Decay of the averaged weights, of all networks but discriminators; 0 = none."""


class Trainer:
    """Trains the networks of one task in place, from step 0 or from a state."""

    def __init__(
        self,
        task: Task,
        networks: Networks,
        batches: BatchSource,
        settings: Settings,
        masks: Masks | None = None,
    ) -> None:
        self.task = task
        self.networks = networks
        self.batches = batches
        self.settings = settings
        self.step = 0
        self.log: list[dict[str, float]] = []
        prepare(networks, settings.runtime)
        self.hold = Hold(networks, masks) if masks is not None else None
        self._draws = sum(turn.repeats for turn in task.turns if turn.images)
        self._learners = {turn.name: _learners(turn, networks) for turn in task.turns}
        self.optimizers = {
            turn.name: task.optimizer(turn.name, self._learners[turn.name]) for turn in task.turns
        }
        self._kept = [Keeping(turn, each) for turn, each in self.optimizers.items()]
        self.scaling = Scaling(settings.runtime, self.optimizers)
        self._constrains = type(task).constrain is not Task.constrain
        self._trained = [p for each in self._learners.values() for p in each]
        self._blank: Tensor | None = None
        self._pending: list[tuple[int, str, Tensor]] = []
        self._log_every = max(1, settings.total_steps // LOG_ROWS)
        self._averages: dict[str, Tensor] = {}
        self._pressed: dict[str, list[nn.Parameter]] = {}
        self._pressure = 0.0
        if self.hold is not None:
            self.hold.apply()
        if settings.ema:
            made = {n: net for n, net in networks.items() if task.role(n) != "discriminator"}
            self._averages = {k: v.detach().clone() for k, v in named_state(made).items()}

    def advance(self) -> None:
        """One step: every turn in order; DivergedError at a loss that is not finite."""
        step, seed = self.step, self.settings.seed
        base = derive_seed(seed, "step", step)
        np.random.seed(base & 0xFFFFFFFF)
        random.seed(base)
        self._schedule(step)
        draw = step * self._draws
        parts: dict[str, Tensor] = {}
        for turn in self.task.turns:
            self._choose(turn)
            for repeat in range(turn.repeats):
                images = self._images(turn, draw)
                draw += turn.images
                self._seed(derive_seed(seed, f"turn-{turn.name}-{repeat}", step))
                self._clear(turn)
                with self.settings.runtime.autocast():
                    result = self._loss(turn, images)
                loss = self._scalar(turn, result)
                self.scaling.backward(turn.name, loss)
                for scale in self._pressed.get(turn.name, ()):
                    if scale.grad is not None:
                        scale.grad.add_(scale.detach().sign(), alpha=self._pressure)
                if self.hold is not None and type(self.optimizers[turn.name]) not in ELEMENTWISE:
                    self.hold.mask_gradients()
                self.scaling.step(turn.name)
                if self._constrains:
                    with torch.no_grad():
                        self.task.constrain(turn.name, self.networks)
                if self.hold is not None:
                    self.hold.apply()
                named = result if isinstance(result, dict) else {"loss": result}
                parts.update({f"{turn.name}.{k}": v.detach() for k, v in named.items()})
                self._pending.append((step, turn.name, loss.detach()))
        self.step = step + 1
        self._average()
        self._watch(parts)

    def press(self, names: Collection[str], strength: float) -> None:
        """From now on pull some parameters, by ``network.parameter``, towards zero.

        Adds ``strength`` times their sign to their gradients: an L1 penalty on normalisation
        scales, as in Liu et al. 2017, "Network slimming", equation 1.
        """
        self._pressure = strength
        chosen = {id(leaf) for name, leaf in _named_parameters(self.networks) if name in names}
        self._pressed = {
            turn: [leaf for leaf in learners if id(leaf) in chosen]
            for turn, learners in self._learners.items()
        }

    def moments_of(self) -> dict[str, list[str]]:
        """Turn -> ``network.parameter`` of what learns in it, in its optimizer's order."""
        names = {id(leaf): name for name, leaf in _named_parameters(self.networks)}
        return {each.name: [names[id(leaf)] for leaf in each.leaves] for each in self._kept}

    def _seed(self, value: int) -> None:
        """Seed torch's global generators of the devices that the losses draw from."""
        if self.settings.runtime.device.type == "cpu":
            # torch.manual_seed keeps a traceback for each accelerator that was never used: 4% of a
            # step of the linear autoencoder.
            torch.default_generator.manual_seed(value)
        else:
            torch.manual_seed(value)

    def _clear(self, turn: Turn) -> None:
        """Forget the gradients of what learns: Optimizer.zero_grad without its wrappers."""
        for parameter in self._learners[turn.name]:
            parameter.grad = None

    def _schedule(self, step: int) -> None:
        """Set the learning rates of this step: a function of the step alone, so resume is exact."""
        for each in self._kept:
            each.rate(self.task.schedule(step, self.settings.total_steps))

    def _images(self, turn: Turn, draw: int) -> Any:
        """The turn's batch; for a turn without images a blank one of the same size."""
        if turn.images or self._draws == 0:
            return self.batches.batch(draw)
        if self.task.takes_labels():
            return blank(self.batches.batch(draw))
        if self._blank is None:
            self._blank = blank(self.batches.batch(0))
        return self._blank

    def _choose(self, turn: Turn) -> None:
        """Let only the turn's networks require gradients: the others' backward pass is saved."""
        if len(self.task.turns) == 1:
            return
        for parameter in self._trained:
            parameter.requires_grad_(False)
        for parameter in self._learners[turn.name]:
            parameter.requires_grad_(True)

    def _loss(self, turn: Turn, images: Any) -> Tensor | dict[str, Tensor]:
        return self.task.turn_loss(turn.name, self.networks, images)

    def _scalar(self, turn: Turn, result: Tensor | dict[str, Tensor]) -> Tensor:
        loss = result.get("loss") if isinstance(result, dict) else result
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConfigError(
                f"{type(self.task).__name__}.loss({turn.name!r}) gave {type(loss).__name__}; "
                "return one scalar tensor, or a dict of tensors with the scalar under 'loss'"
            )
        return loss

    def _watch(self, parts: Mapping[str, Tensor]) -> None:
        """Log at equal distances; stop at the first loss that is not finite and name its step."""
        logged = self.step % self._log_every == 0 or self.step == self.settings.total_steps
        on_cpu = self.settings.runtime.device.type == "cpu"
        if on_cpu or logged or len(self._pending) >= CUDA_CHECK_STEPS:
            self.check()
        if logged:
            row = {name: float(value.float().mean()) for name, value in parts.items()}
            self.log.append({"step": self.step, **row})

    def check(self) -> None:
        """Read the losses not read yet; DivergedError names the first that is not finite."""
        pending, self._pending = self._pending, []
        for step, turn, value in pending:
            number = float(value)
            if not math.isfinite(number):
                raise DivergedError(step, f"the loss of turn {turn}", number)

    def _average(self) -> None:
        if not self._averages:
            return
        live = named_state(self.networks)
        floating = [k for k, v in self._averages.items() if v.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self._averages[k] for k in floating],
                [live[k].detach() for k in floating],
                1.0 - self.settings.ema,
            )
            for name in self._averages.keys() - set(floating):
                self._averages[name].copy_(live[name])

    def judged_weights(self, *, averaged: bool = True) -> dict[str, Tensor]:
        """``network.name`` -> the weights and buffers that are judged: averaged if there are any.

        Masked when read: an average that began with dense weights forgets them only slowly.
        DivergedError for a masked weight that is no number; AssertionError if one leaked through
        its mask, which would be our fault.
        """
        if self.hold is not None:
            leaks = self.hold.leaks()
            live = named_state(self.networks) if leaks else {}
            for name in leaks:  # a gradient can be no number before its loss is
                odd = live[name][~live[name].isfinite()]
                if len(odd):
                    raise DivergedError(self.step, f"a weight of {name}", float(odd[0]))
            assert not leaks, f"pruned weights are not zero in {', '.join(leaks)}"
        with evaluation_weights(self.optimizers.values()):
            source = {**named_state(self.networks), **(self._averages if averaged else {})}
            state = {name: value.detach().clone() for name, value in source.items()}
        if self.hold is not None:
            self.hold.mask_state(state)
        return state

    def state(self, *, moments: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a later process needs to go on: tensors by name, and a manifest.

        ``moments``: without them, what a training needs that begins with a new optimizer.
        ConfigError for an optimizer that keeps what cannot be written.
        """
        self.check()
        tensors = {f"network.{k}": v.detach() for k, v in named_state(self.networks).items()}
        tensors.update({f"average.{k}": v for k, v in self._averages.items()})
        scalars: dict[str, Any] = self.scaling.state()
        for each in self._kept if moments else ():
            more, values = each.state()
            tensors |= more
            scalars |= values
        manifest = {
            "step": self.step,
            "seed": self.settings.seed,
            "scalars": scalars,
            "log": self.log,
        }
        return tensors, manifest if moments else {**manifest, "moments": False}

    def forget_gradients(self) -> None:
        """Let go of all gradients, which the next step makes anew: as large as the weights."""
        for parameter in self._trained:
            parameter.grad = None

    def resume(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Take up this run's own state: the next steps are those it would have gone on with."""
        self._load(tensors, manifest, whole=True)

    def rewind(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], *, optimizer: bool
    ) -> None:
        """Begin from another run's state, with its moments, averages and log or without them.

        The masks are applied to all that is loaded: dense moments would revive pruned weights.
        """
        self._load(tensors, manifest, whole=optimizer)
        if self.hold is not None:
            self.hold.apply()
            for each in self.optimizers.values():
                self.hold.mask_optimizer(each)
            self.hold.mask_state(self._averages)

    def _load(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], whole: bool
    ) -> None:
        load_weights(self.networks, under(tensors, "network."))
        for name, value in self._averages.items():
            value.copy_(tensors[f"average.{name}" if whole else f"network.{name}"])
        if whole:
            self.scaling.load(manifest["scalars"])
            self.log = list(manifest["log"])
        self.step = int(manifest["step"])
        if whole:
            total = self.settings.total_steps
            factor = self.task.schedule(self.step - 1, total) if self.step else 1.0
            for each in self._kept:
                each.load(tensors, manifest["scalars"], factor)


def prepare(networks: Networks, runtime: Runtime) -> None:
    """Move networks to the device, convolutions in channels_last, in train mode."""
    plain = runtime.device.type == "cpu" and any(map(_breaks_in_channels_last, networks.values()))
    for network in networks.values():
        network.to(runtime.device)
        if not plain and any(p.dim() == 4 for p in network.parameters()):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.train()


def _breaks_in_channels_last(network: nn.Module) -> bool:
    """Whether a convolution of a network writes beyond its memory in channels_last on a CPU.

    In oneDNN 3.12 (torch 2.13, AVX2) the weights' gradient of a 1x1 convolution with strides and
    fewer than eight channels does: wrong numbers, or a crash at some later time.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < 8
        for layer in network.modules()
    )


def load_any_size(networks: Networks, weights: Mapping[str, Tensor]) -> None:
    """Load weights of the task's networks, or of ones cut smaller, which these then become.

    TicketError as :func:`load_weights` for what cannot be a smaller version of the networks.
    """
    resize(networks, {name: tuple(value.shape) for name, value in weights.items()})
    load_weights(networks, weights)


def load_weights(networks: Networks, weights: Mapping[str, Tensor]) -> None:
    """Load ``network.name`` -> tensor into networks, in place; TicketError names what is off."""
    known = tuple(f"{name}." for name in networks)
    for name in weights:
        if not name.startswith(known):
            raise TicketError(
                f"tensor {name!r} belongs to no network of this task; it has: {', '.join(networks)}"
            )
    for name, network in networks.items():
        load_plain_state(network, under(weights, f"{name}."))


def named_state(networks: Networks) -> dict[str, Tensor]:
    """Every parameter and buffer by ``network.name``; they share memory with the networks."""
    return {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in plain_state(network).items()
    }


def _named_parameters(networks: Networks) -> Iterator[tuple[str, nn.Parameter]]:
    for name, network in networks.items():
        for key, leaf in plain_parameters(network).items():
            yield f"{name}.{key}", leaf


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _learners(turn: Turn, networks: Networks) -> list[nn.Parameter]:
    """The parameters that learn in a turn, each once, in the networks' order."""
    names = turn.learns or tuple(networks)
    for name in names:
        if name not in networks:
            raise ConfigError(
                f"turn {turn.name!r} lets {name!r} learn, but the task's networks are "
                f"{', '.join(networks)}; name one of them"
            )
    found: dict[int, nn.Parameter] = {}
    for name in names:
        for parameter in networks[name].parameters():
            if parameter.requires_grad:
                found.setdefault(id(parameter), parameter)
    return list(found.values())
