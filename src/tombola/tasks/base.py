"""What a task is: networks by name, turns of learning, the loss of each turn, how to sample.

This is the interface that users implement for their own model; the trainer, the criteria and the
judges know nothing else of it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tombola.errors import ConfigError

Networks = dict[str, nn.Module]
Shape = tuple[int, int, int]
FAMILIES = ("autoencoder", "vae", "gan", "diffusion")
RECONSTRUCTING = ("autoencoder", "vae")
"""Families whose networks make an image again; all but autoencoders sample from a prior."""


@dataclass(frozen=True)
class Turn:
    """Who learns, how often a step, and whether real images are drawn for it."""

    name: str
    learns: tuple[str, ...] = ()
    """Names of the networks that learn in this turn; empty = all of them."""
    repeats: int = 1
    """How many updates this turn makes in one step (n_critic)."""
    images: bool = True
    """Whether the turn's loss looks at real images; if not, it gets an empty batch of the size."""


class Task:
    """A generative model and how it is trained; subclass it and override what differs.

    Options are the class attributes of type bool, int, float, str or tuple whose names do not begin
    with an underscore: ``Task(width=16)`` and ``--set task.width=16`` set them for one object.
    Images are float tensors (N, C, H, W) in [-1, 1] on both sides of the networks.
    """

    family: str = "gan"
    size: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 0
    """Colour channels of the images: 1, 3, or 0 = as the data has them."""
    latent: int = 0
    """Length of a latent vector; 0 = the task cannot sample from a prior."""
    batch_size: int = 64
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    cosine: bool = False
    """Whether the learning rates fall to 0 along a half cosine, or stay as they are."""

    turns: tuple[Turn, ...] = (Turn("all"),)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {}, "paper": {}}
    """Preset name -> option values; also ``steps`` or ``epochs``, the default training length."""
    roles: ClassVar[Mapping[str, str]] = {}
    """Network name -> role: encoder, decoder, generator or discriminator (default: its name)."""
    judged_samples: ClassVar[int] = 50_000
    """At most so many reals, and as many samples, are judged where the user names no number."""
    _added: ClassVar[tuple[str, ...]] = ()
    """Options that came later: at their default they are left out of the names of runs."""
    _labelled: ClassVar[bool] = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        cls._labelled = "labels" in inspect.signature(cls.loss).parameters

    def __init__(self, **options: Any) -> None:
        allowed = self.options()
        for name, value in options.items():
            if name not in allowed:
                raise ConfigError(
                    f"task {type(self).__name__} has no option {name!r}; "
                    f"it has: {', '.join(sorted(allowed))}"
                )
            setattr(self, name, _checked(name, value, allowed[name]))

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Every option with its default value."""
        reserved = {"turns", "presets", "roles", "family", "judged_samples"}
        return {
            name: getattr(cls, name)
            for name in dir(cls)
            if not name.startswith("_")
            and name not in reserved
            and isinstance(getattr(cls, name), bool | int | float | str | tuple)
        }

    def role(self, network: str) -> str:
        """What a network is: encoder, decoder, generator or discriminator; its name by default."""
        return self.roles.get(network, network)

    def image_shape(self, data_channels: int) -> Shape:
        """(C, H, W) that this task works on, given how many channels the data has."""
        return (self.channels or data_channels, self.size, self.size)

    def networks(self, shape: Shape) -> Networks:
        """New networks by name for images (C, H, W), drawn from torch's global generator."""
        raise NotImplementedError(f"{type(self).__name__}.networks is not written")

    def loss(self, turn: str, networks: Networks, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The loss of a turn on a batch (N, C, H, W): a scalar, or a dict with ``loss`` and parts.

        Random draws may come from torch's global generators, which are seeded for every turn. Only
        the networks that learn in the turn require gradients when this is called. A parameter
        ``labels`` gets those of the images, int64 (N,), or of those to come if the turn has none.
        """
        raise NotImplementedError(f"{type(self).__name__}.loss is not written")

    @classmethod
    def takes_labels(cls) -> bool:
        """Whether ``loss`` has a parameter ``labels``: the task learns from them too."""
        return cls._labelled

    def turn_loss(self, turn: str, networks: Networks, batch: Any) -> Tensor | dict[str, Tensor]:
        """``loss`` on a batch as it is drawn: images, or (images, labels) if it takes labels."""
        if self._labelled:
            images, labels = batch
            return self.loss(turn, networks, images, labels=labels)  # type: ignore[call-arg]
        return self.loss(turn, networks, batch)

    def optimizer(self, turn: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of a turn over the parameters of the networks that learn in it."""
        del turn
        return torch.optim.Adam(
            parameters,
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def constrain(self, turn: str, networks: Networks) -> None:
        """Change weights in place after an update of a turn, such as clipping them; no gradients.

        Masks are applied after it.
        """

    def schedule(self, step: int, total_steps: int) -> float:
        """What the learning rates are multiplied by at a step (0 <= step < total_steps).

        Loshchilov & Hutter 2017, "SGDR", equation 5 without restarts, if ``cosine`` is set.
        """
        return 0.5 * (1 + math.cos(math.pi * step / total_steps)) if self.cosine else 1.0

    def latents(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` draws from the prior, (n, latent): N(0, I) unless overridden."""
        return torch.randn(n, self.latent, generator=generator, device="cpu")

    def sample(self, networks: Networks, latents: Tensor) -> Tensor:
        """Latents (N, latent) -> images (N, C, H, W) in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__}.sample is not written")

    def reconstruct(self, networks: Networks, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> their reconstructions, same shape (autoencoders and VAEs)."""
        raise NotImplementedError(f"{type(self).__name__}.reconstruct is not written")

    def judge_loss(
        self, networks: Networks, images: Tensor, latents: Tensor, samples: Tensor | None
    ) -> dict[str, Tensor]:
        """Per-image held-out quantities by metric name, each (N,), for the judge split.

        autoencoder: none needed (the reconstruction error is computed from ``reconstruct``);
        vae: ``reconstruction`` and ``kl`` in nats, and ``mean`` (N, latent) for active units;
        gan: ``discriminator_loss`` of held-out reals and fresh fakes; diffusion:
        ``denoising_loss``, by which its course is judged. ``samples``: what ``sample``
        made of the latents, (N, C, H, W) in [-1, 1]; None for a task without a prior.
        """
        del networks, images, latents, samples
        return {}


def zero_labelled(task: Task, images: Tensor) -> Any:
    """Images (N, C, H, W) as a batch of the task: with labels of 0 if it takes labels."""
    if task.takes_labels():
        return images, torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return images


def _checked(name: str, value: Any, default: Any) -> Any:
    """``value`` as the type of ``default``, or ConfigError."""
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list | tuple):
        # Of any length, for lists of widths and the like; parts of one kind stay of that kind.
        same = len({type(part) for part in default}) == 1
        value = tuple(_checked(name, part, default[0]) if same else part for part in value)
    if type(value) is not kind:
        wanted = "a list" if kind is tuple else f"a {kind.__name__}"
        shown = list(default) if kind is tuple else default
        raise ConfigError(
            f"task option {name!r} got {value!r}; it takes {wanted}, like its default {shown!r}"
        )
    return value
