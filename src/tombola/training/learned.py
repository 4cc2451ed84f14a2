"""Which training finds a mask? Two that go on from the networks as they are, and end in one.

Both take all of ``settings.total_steps`` for the task's schedule. The formulas are in
``sparsity/gates.py``. A mask that is learnt is part of the training's state, never of the networks:
gates multiply the weights within the forward pass alone, under a spectral norm before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tombola.errors import DivergedError
from tombola.sparsity.gates import (
    EPSILON,
    OFFSET_STEPS,
    PRUNE_STEPS,
    RATES,
    first_gates,
    gated_scores,
    gates_count,
    gates_rate,
    gradual_count,
    offset,
    opened,
    sharpness,
)
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks, count
from tombola.sparsity.select import top
from tombola.tasks.base import Networks, Task, Turn
from tombola.training.keeping import Keeping
from tombola.training.trainer import BatchSource, Settings, Trainer, under

_optim = torch.optim
COUPLED = (
    _optim.Adadelta, _optim.Adagrad, _optim.Adam, _optim.Adamax, _optim.ASGD, _optim.NAdam,
    _optim.RAdam, _optim.RMSprop, _optim.SGD,
)  # fmt: skip
"""Optimizers whose weight decay is the gradient of an L2 term of the loss, unless decoupled."""


class MaskTrainer(Trainer):
    """A training of dense networks that ends in a mask of some of their weights."""

    def __init__(
        self,
        task: Task,
        networks: Networks,
        batches: BatchSource,
        settings: Settings,
        pool: Mapping[str, nn.Parameter],
        keep: int,
    ) -> None:
        super().__init__(task, networks, batches, settings)
        self.pool, self.keep = pool, keep
        self.size = sum(weight.numel() for weight in pool.values())

    def mask(self) -> Masks:
        """Exactly ``keep`` weights of the pool, once the last step is done.

        DivergedError if a score is no number.
        """
        raise NotImplementedError

    def _chosen(self, scores: Mapping[str, Tensor], keep: int, among: Masks | None) -> Masks:
        for name, value in scores.items():
            odd = value[~value.isfinite()]
            if len(odd):  # a gradient can be no number before its loss is
                raise DivergedError(self.step, f"the score of a weight of {name}", float(odd[0]))
        return top(scores, keep, among)


class GradualTrainer(MaskTrainer):
    """Prunes by magnitude every 37 steps; what is pruned stays pruned."""

    masks: Masks | None = None

    def advance(self) -> None:
        """Prune if it is time, then a step as of every training."""
        if self.step and self.step % PRUNE_STEPS == 0:
            self._prune(gradual_count(self.size, self.keep, self.step, self.settings.total_steps))
        super().advance()

    def mask(self) -> Masks:
        """The weights that are left, pruned once more if the last pruning left too many."""
        self._prune(self.keep)
        assert self.masks is not None
        return self.masks

    def state(self, *, moments: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """With the masks so far."""
        tensors, manifest = super().state(moments=moments)
        return tensors | {f"mask.{k}": v for k, v in (self.masks or {}).items()}, manifest

    def resume(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Take up this run's own state."""
        super().resume(tensors, manifest)
        if masks := under(tensors, "mask."):
            self._hold({name: masks[name] for name in self.pool})

    def _prune(self, keep: int) -> None:
        if self.masks is None or keep < count(self.masks)[0]:
            self.check()
            scores = {name: weight.detach().abs() for name, weight in self.pool.items()}
            hold = self._hold(self._chosen(scores, keep, self.masks))
            hold.apply()
            for optimizer in self.optimizers.values():
                hold.mask_optimizer(optimizer)

    def _hold(self, masks: Masks) -> Hold:
        self.masks = masks
        self.hold = Hold(self.networks, masks)
        return self.hold


class GatedTrainer(MaskTrainer):
    """Learns weights and gates together: each network's gates in the turns in which it learns.

    What decays is the weight that the network has, w z. If w alone did, it would rest where the
    decay holds the loss's gradient up, and the same gradient would open its gate further and
    further: the more, the larger the weight. Networks with small weights would lose all of them.
    """

    def __init__(
        self,
        task: Task,
        networks: Networks,
        batches: BatchSource,
        settings: Settings,
        pool: Mapping[str, nn.Parameter],
        keep: int,
    ) -> None:
        super().__init__(task, networks, batches, settings, pool, keep)
        self.gates = {name: nn.Parameter(value) for name, value in first_gates(pool).items()}
        self.b, self._beta = 0.0, 1.0
        self._whole = _Whole(task, networks)
        inner = {id(leaf): name for name, leaf in self._whole.named_parameters()}
        self._inner = {name: inner[id(weight)] for name, weight in pool.items()}
        self._adams: list[torch.optim.Adam] = []
        self._decays: dict[str, list[tuple[float, list[nn.Parameter]]]] = {}
        for turn in task.turns:
            self._decays[turn.name] = list(_taken_decays(self.optimizers[turn.name]))
            self._join(turn)

    def _join(self, turn: Turn) -> None:
        """Let the gates of the weights that learn in a turn learn in it."""
        own = {id(leaf) for leaf in self._learners[turn.name]}
        gates = [self.gates[name] for name, leaf in self.pool.items() if id(leaf) in own]
        if gates:
            adam = torch.optim.Adam(gates, lr=RATES[0], eps=EPSILON, fused=True)
            key = f"gates/{turn.name}"
            self._adams.append(adam)
            self.optimizers[key] = adam
            self._kept.append(Keeping(key, adam))
            self.scaling.join(turn.name, adam)
            self._learners[turn.name] += gates
            self._trained += gates

    def advance(self) -> None:
        """Set what depends on the step alone, then a step as of every training."""
        step, steps = self.step, self.settings.total_steps
        if step % OFFSET_STEPS == 0:
            self.b = offset(self.gates, gates_count(self.size, self.keep, step, steps))
        self._beta = sharpness(step, steps)
        super().advance()

    def _schedule(self, step: int) -> None:
        """The task's schedule is that of its weights; gates have their own."""
        super()._schedule(step)
        for adam in self._adams:
            for group in adam.param_groups:
                group["lr"] = gates_rate(step, self.settings.total_steps)

    def mask(self) -> Masks:
        """The weights of the highest |w| z, with b as the gates are now."""
        self.b = offset(self.gates, self.keep)
        return self._chosen(gated_scores(self.pool, self.gates, self.b), self.keep, None)

    def state(self, *, moments: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """With the gates, and b."""
        tensors, manifest = super().state(moments=moments)
        gates = {f"gate.{name}": value.detach() for name, value in self.gates.items()}
        return tensors | gates, manifest | {"b": self.b}

    @torch.no_grad()
    def resume(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Take up this run's own state."""
        super().resume(tensors, manifest)
        for name, gate in self.gates.items():
            gate.copy_(tensors[f"gate.{name}"])
        self.b = manifest["b"]

    def _loss(self, turn: Turn, images: Any) -> Tensor | dict[str, Tensor]:
        """The turn's loss with gated weights in the place of the networks' own."""
        gated = {
            self._inner[name]: weight * opened(self.gates[name], self._beta, self.b)
            for name, weight in self.pool.items()
        }
        found: Tensor | dict[str, Tensor] = functional_call(self._whole, gated, (turn, images))
        decays = self._decays[turn.name]
        if not decays:
            return found
        seen = {id(weight): gated[self._inner[name]] for name, weight in self.pool.items()}
        l2 = torch.stack([
            0.5 * decay * seen.get(id(leaf), leaf).square().sum()
            for decay, leaves in decays for leaf in leaves
        ]).sum()  # fmt: skip
        slope = l2 - l2.detach()  # nothing but its gradient: the loss stays the task's
        if isinstance(found, dict):
            return {**found, "loss": found["loss"] + slope}
        return found + slope


def _taken_decays(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """The decay, above 0, of each group of parameters that has an L2 term; the optimizer's is 0."""
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0.0)
        if decay and isinstance(optimizer, COUPLED) and not group.get("decoupled_weight_decay"):
            group["weight_decay"] = 0.0
            yield decay, group["params"]


class _Whole(nn.Module):
    """A task's loss as the forward pass of one module, which has all its networks."""

    def __init__(self, task: Task, networks: Networks) -> None:
        super().__init__()
        self.task, self.networks = task, networks
        self.parts = nn.ModuleList(networks.values())

    def forward(self, turn: Turn, images: Any) -> Tensor | dict[str, Tensor]:
        """The loss of a turn."""
        return self.task.turn_loss(turn.name, self.networks, images)


MASK_TRAINERS: dict[str, type[MaskTrainer]] = {"gates": GatedTrainer, "gradual": GradualTrainer}
"""Method -> the training that finds its masks."""
