"""What does the paper's own code do in a training step? The baseline of the speed targets.

Written anew from the description in the reference notes (the code has no licence, nothing of it is
here). One step there: a batch, the losses, Adam as PyTorch builds it by default, and after every
``optimizer.step`` a walk over the state dict that multiplies every entry by its mask of integers,
before the whole dict is loaded back. In a GAN the discriminator's loss goes backward through the
generator, because the fakes are not detached, and the generator's through the discriminator's
weights; both networks are walked after either update. Everything runs eagerly in fp32.

Where the description leaves a choice it is made against us: the same layers as ours (theirs has a
bias and a BatchNorm more here and there), today's ``zero_grad``, and images that lie in memory
already normalised. The masks have 64 bits, which is what NumPy makes of its percentile's
comparison; ``bits`` asks for 32 instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, mse_loss

from tombola.sparsity.masks import Masks
from tombola.tasks.base import Networks, Task


class StateDictMask:
    """Masks held by walking the state dict: integers for every entry, ones where nothing is cut."""

    def __init__(self, networks: Networks, masks: Masks, bits: int = 64) -> None:
        self.model = nn.ModuleDict(networks)
        integer = {32: torch.int32, 64: torch.int64}[bits]
        self.masks = {
            name: masks.get(name, torch.ones(value.shape)).to(integer)
            for name, value in self.model.state_dict().items()
        }

    def apply(self) -> None:
        """Multiply every entry by its mask and load all of them back."""
        state = self.model.state_dict()
        for name in self.masks:
            state[name] *= self.masks[name]
        self.model.load_state_dict(state)


class PaperLoop:
    """The paper's training of a task's networks: one ``step`` is one batch."""

    def __init__(
        self, task: Task, networks: Networks, images: Tensor, masks: Masks, bits: int = 64
    ) -> None:
        self.task, self.networks = task, networks
        self.images = images
        self._order: Tensor | None = None
        self.mask = StateDictMask(networks, masks, bits)
        self.optimizers = self._optimizers()
        self._next = 0
        for network in networks.values():
            network.train()

    def _optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Adam with default betas: one for both networks of an autoencoder, one each in a GAN."""
        rate, decay = self.task.learning_rate, self.task.weight_decay
        if self.task.family != "gan":
            parameters = self.mask.model.parameters()
            return {"all": torch.optim.Adam(parameters, lr=rate, weight_decay=decay)}
        return {
            name: torch.optim.Adam(network.parameters(), lr=rate)
            for name, network in self.networks.items()
        }

    def step(self) -> dict[str, float]:
        """One batch; returns the losses by optimizer."""
        if self.task.family == "gan":
            return self._adversarial(self._batch(shuffled=False))
        batch = self._batch(shuffled=True)
        loss = mse_loss(self.networks["decoder"](self.networks["encoder"](batch)), batch)
        return {"all": self._update("all", loss)}

    def _batch(self, *, shuffled: bool) -> Tensor:
        """The next batch; shuffled for the autoencoder, in the order of the data for the GAN."""
        if self._next + self.task.batch_size > len(self.images):
            self._next = 0
        part = slice(self._next, self._next + self.task.batch_size)
        if not shuffled:
            batch = self.images[part]
        else:
            if self._order is None or self._next == 0:
                self._order = torch.randperm(len(self.images))
            batch = self.images[self._order[part]]
        self._next = part.stop
        return batch

    def _adversarial(self, reals: Tensor) -> dict[str, float]:
        ones, zeros = torch.ones(len(reals)), torch.zeros(len(reals))
        loss = binary_cross_entropy(self._judge(reals), ones) + binary_cross_entropy(
            self._judge(self._fakes(len(reals))), zeros
        )
        judged = self._update("discriminator", loss)
        fooled = binary_cross_entropy(self._judge(self._fakes(len(reals))), ones)
        return {"discriminator": judged, "generator": self._update("generator", fooled)}

    def _fakes(self, count: int) -> Tensor:
        # Not detached, as there: the discriminator's turn pays for a pass back through this.
        fakes: Tensor = self.networks["generator"](torch.randn(count, self.task.latent))
        return fakes

    def _judge(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.networks["discriminator"](images))

    def _update(self, name: str, loss: Tensor) -> float:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        self.mask.apply()
        return loss.item()
