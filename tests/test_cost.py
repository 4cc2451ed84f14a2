"""Multiply-accumulates against closed forms, to the last digit, on the meta device and the CPU."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import helpers
from tombola.config.runtime import Runtime, seed_everything
from tombola.data.batches import Batches
from tombola.errors import ConfigError
from tombola.plan.trial import Work, try_task, work_of
from tombola.sparsity.cost import count_macs
from tombola.tasks.adversarial import DCGAN, SNGAN, WGANGP, ResNetDCGAN
from tombola.tasks.autoencoding import VAE, ConvAE, LinearAE
from tombola.tasks.base import Networks, Task, Turn
from tombola.training.trainer import Settings, Trainer

N = 2
E = N * 4 * 3 * 3
"""Elements of what the normalisations are given."""
PIXELS = (4, 3, 3)
ATEN = torch.ops.aten


def forward(layer: nn.Module, *shape: int, device: str = "meta") -> int:
    images = torch.zeros(N, *shape, device=device)
    return count_macs(lambda: layer.to(device)(images))


def step(layer: nn.Module, *shape: int, images_learn: bool = True, device: str = "meta") -> int:
    images = torch.zeros(N, *shape, device=device, requires_grad=images_learn)
    return count_macs(lambda: layer.to(device)(images).sum().backward())


PRODUCTS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    # layer, shape of an image, MACs of an image
    "linear": (nn.Linear(7, 5), (7,), 7 * 5),
    "linear without bias": (nn.Linear(7, 5, bias=False), (7,), 7 * 5),
    "linear of a sequence": (nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
    "conv1d": (nn.Conv1d(3, 8, 3), (3, 10), 8 * 8 * 3 * 3),
    "conv": (nn.Conv2d(3, 8, (4, 3)), (3, 9, 7), 8 * 6 * 5 * 3 * 4 * 3),
    "conv, stride": (nn.Conv2d(3, 8, 4, 2, 1), (3, 32, 32), 8 * 16 * 16 * 3 * 4 * 4),
    "conv, dilation": (nn.Conv2d(3, 8, 3, dilation=2), (3, 10, 10), 8 * 6 * 6 * 3 * 9),
    "conv, groups": (nn.Conv2d(6, 9, 3, groups=3), (6, 8, 8), 9 * 6 * 6 * 2 * 9),
    "conv, depthwise": (nn.Conv2d(6, 6, 3, 1, 1, groups=6), (6, 8, 8), 6 * 8 * 8 * 9),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 27 * 2 * 8),
    "transposed": (nn.ConvTranspose2d(8, 3, 4), (8, 5, 5), 8 * 5 * 5 * 3 * 16),
    "transposed, stride": (nn.ConvTranspose2d(8, 3, 3, 2, 1, 1), (8, 6, 6), 8 * 36 * 3 * 9),
    "transposed, groups": (nn.ConvTranspose2d(6, 9, 4, 2, 1, groups=3), (6, 8, 8), 6 * 64 * 3 * 16),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 4, groups=6), (6, 8, 8), 6 * 64 * 16),
}  # fmt: skip


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, device: str) -> None:
    layer, shape, each = PRODUCTS[name]
    layer = copy.deepcopy(layer)
    assert forward(layer, *shape, device=device) == N * each
    assert step(layer, *shape, device=device) == 3 * N * each
    assert step(layer, *shape, images_learn=False, device=device) == 2 * N * each
    layer.requires_grad_(False)
    assert step(layer, *shape, device=device) == 2 * N * each


NORMS: dict[str, tuple[nn.Module, int, int, int, int]] = {
    # layer, MACs of an element: forward, backward to all, to the parameters, to the input
    "batch1d": (nn.BatchNorm1d(4), 3, 5, 3, 5),
    "batch2d": (nn.BatchNorm2d(4), 3, 5, 3, 5),
    "batch, not affine": (nn.BatchNorm2d(4, affine=False), 3, 5, 0, 5),
    "batch, eval": (nn.BatchNorm2d(4).eval(), 1, 4, 3, 1),
    "batch, eval, not affine": (nn.BatchNorm2d(4, affine=False).eval(), 1, 1, 0, 1),
    "batch, eval, untracked": (
        nn.BatchNorm2d(4, track_running_stats=False).eval(), 3, 5, 3, 5),
    "instance": (nn.InstanceNorm2d(4), 3, 5, 0, 5),
    "group": (nn.GroupNorm(2, 4), 3, 5, 3, 5),
    "group, eval": (nn.GroupNorm(2, 4).eval(), 3, 5, 3, 5),
    "group, not affine": (nn.GroupNorm(2, 4, affine=False), 3, 5, 0, 5),
    "layer": (nn.LayerNorm(PIXELS), 4, 8, 3, 6),
    "layer, no bias": (nn.LayerNorm(PIXELS, bias=False), 4, 7, 2, 6),
    "layer, not affine": (nn.LayerNorm(PIXELS, elementwise_affine=False), 3, 5, 0, 5),
}  # fmt: skip


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", NORMS)
def test_normalisations(name: str, device: str) -> None:
    layer, ahead, back_to_all, back_to_parameters, back_to_input = NORMS[name]
    layer, shape = copy.deepcopy(layer), (4, 9) if name == "batch1d" else PIXELS
    assert forward(layer, *shape, device=device) == E * ahead
    assert step(layer, *shape, device=device) == E * (ahead + back_to_all)
    if back_to_parameters:
        own = step(layer, *shape, images_learn=False, device=device)
        assert own == E * (ahead + back_to_parameters)
    layer.requires_grad_(False)
    assert step(layer, *shape, device=device) == E * (ahead + back_to_input)


def batch_norms() -> dict[str, tuple[Callable[[], object], int]]:
    """Every way torch may normalise a batch, by device and version, and MACs of an element."""
    x, c = torch.empty(N, *PIXELS, device="meta"), torch.empty(4, device="meta")
    running, rest, all_of_it = (c, c, c, c), (0.1, 1e-5), [True, True, True]
    kept = torch.empty(0, dtype=torch.uint8, device="meta")
    back = (x, x, c, c, c, c, c)
    return {
        "native": (lambda: ATEN.native_batch_norm(x, *running, True, *rest), 3),
        "legit": (lambda: ATEN._native_batch_norm_legit(x, *running, True, *rest), 3),
        "legit, eval": (lambda: ATEN._native_batch_norm_legit(x, *running, False, *rest), 1),
        "untracked": (lambda: ATEN._native_batch_norm_legit.no_stats(x, c, c, True, *rest), 3),
        "no training": (
            lambda: ATEN._native_batch_norm_legit_no_training(x, *running, *rest), 1),
        "with update": (lambda: ATEN._batch_norm_with_update(x, *running, *rest), 3),
        "no update": (lambda: ATEN._batch_norm_no_update(x, *running, *rest), 1),
        "cudnn": (lambda: ATEN.cudnn_batch_norm(x, *running, True, *rest), 3),
        "cudnn, eval": (lambda: ATEN.cudnn_batch_norm(x, *running, False, *rest), 1),
        "miopen": (lambda: ATEN.miopen_batch_norm(x, *running, True, *rest), 3),
        "backward": (
            lambda: ATEN.batch_norm_backward(*back, True, 1e-5, all_of_it, kept), 5),
        "backward, eval": (
            lambda: ATEN.batch_norm_backward(*back, False, 1e-5, all_of_it, kept), 4),
        "cudnn, backward": (lambda: ATEN.cudnn_batch_norm_backward(*back, 1e-5, kept), 5),
        "miopen, backward": (lambda: ATEN.miopen_batch_norm_backward(*back, 1e-5), 5),
    }  # fmt: skip


@pytest.mark.parametrize("name", batch_norms())
def test_a_batch_norm_costs_the_same_on_every_device(name: str) -> None:
    call, each = batch_norms()[name]
    assert count_macs(call) == E * each


def test_only_the_parameters_that_learn_are_paid_for() -> None:
    layer = nn.BatchNorm2d(4)
    layer.weight.requires_grad_(False)
    assert step(layer, *PIXELS, images_learn=False) == E * (3 + 1)  # the sum of dy
    layer = nn.BatchNorm2d(4)
    layer.bias.requires_grad_(False)
    assert step(layer, *PIXELS, images_learn=False) == E * (3 + 2)  # x' and the sum of dy x'


SPECTRAL = {
    "parametrization": nn.utils.parametrizations.spectral_norm,
    "hook": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_multiplies_its_matrix_by_vectors(kind: str) -> None:
    layer = SPECTRAL[kind](nn.Conv2d(4, 3, 3))
    macs, m, n = N * 3 * 2 * 2 * 4 * 9, 3, 4 * 9
    power = 2 * m * n  # W v and W^T u, once a forward pass in train mode
    sigma = m * n + m  # u^T (W v)
    assert forward(layer, 4, 4, 4) == macs + power + sigma
    assert step(layer, 4, 4, 4) == 3 * macs + power + sigma
    layer.eval()
    assert forward(layer, 4, 4, 4) == macs + sigma


def test_a_matrix_times_a_vector_and_two_vectors() -> None:
    matrix, vector = torch.empty(5, 7, device="meta"), torch.empty(7, device="meta")
    added = torch.empty(5, device="meta")
    assert count_macs(lambda: matrix @ vector) == 35
    assert count_macs(lambda: torch.addmv(added, matrix, vector)) == 35
    assert count_macs(lambda: vector @ vector) == 7


def stack() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(),
        nn.Flatten(), nn.Linear(36, 2), nn.Softmax(1),
    )  # fmt: skip


def test_a_stack_adds_up_and_what_has_no_weights_is_free() -> None:
    conv, norm, linear = N * 4 * 6 * 6 * 9, N * 4 * 6 * 6, N * 36 * 2
    assert forward(stack(), 1, 8, 8) == conv + 3 * norm + linear
    assert forward(stack().eval(), 1, 8, 8) == conv + norm + linear
    back = conv + 5 * norm + 2 * linear  # the images do not learn
    done = step(stack(), 1, 8, 8, images_learn=False)
    assert done == conv + 3 * norm + linear + back


def test_the_optimizer_and_embeddings_are_free() -> None:
    layer, words = nn.Linear(7, 5), nn.Embedding(9, 7)
    optimizer = torch.optim.Adam([*layer.parameters(), *words.parameters()])
    layer(words(torch.tensor([1, 2]))).sum().backward()
    assert count_macs(optimizer.step) == 0
    assert count_macs(lambda: words(torch.tensor([1, 2])).sum().backward()) == 0


def test_layers_count_in_inference_mode_too() -> None:
    with torch.inference_mode():
        assert forward(stack().eval(), 1, 8, 8) == N * (4 * 36 * 9 + 4 * 36 + 36 * 2)
        norm, images = nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0]])
        assert count_macs(lambda: norm(images)) == 3 * 2
    assert norm.running_mean.item() == pytest.approx(0.2)  # 0.1 of the mean: run through it once


def test_real_tensors_are_computed() -> None:
    layer = nn.Linear(7, 5)
    seen: list[torch.Size] = []
    assert count_macs(lambda: seen.append(layer(torch.zeros(N, 7)).shape)) == N * 7 * 5
    assert seen == [torch.Size([N, 5])]
    assert count_macs(lambda: None) == 0


def test_a_step_of_the_quick_dcgan_by_hand() -> None:
    task = DCGAN(width=16, latent=64, batch_size=16)
    first = 16 * 16 * 16 * 3 * 16  # 3 -> 16 channels at 16x16, kernel 4x4
    judge = first + 32 * 64 * 16 * 16 + 64 * 16 * 32 * 16 + 128 * 4 * 64 * 16 + 128 * 4
    judge_norm = 32 * 64 + 64 * 16 + 128 * 4
    vector = 64 * 128 * 16  # 64 -> 128 channels, 1x1 -> 4x4
    maker = vector + 128 * 16 * 64 * 16 + 64 * 64 * 32 * 16 + 32 * 256 * 16 * 16 + 3 * 1024 * 16 * 9
    maker_norm = 128 * 16 + 64 * 64 + 32 * 256 + 16 * 1024
    judging = maker + 3 * maker_norm + 2 * (3 * judge - first + (3 + 5) * judge_norm)
    making = 3 * maker - vector + (3 + 5) * maker_norm + 2 * judge + (3 + 5) * judge_norm
    expected = Work(step_macs=16 * (judging + making), sample_macs=maker + maker_norm)
    assert expected.step_macs == 664_305_664
    assert work_of(task, task.networks((3, 32, 32)), (3, 32, 32)) == expected


class HalfAE(helpers.TinyAE):
    """One turn in which not all learns: the trainer leaves the rest its gradients."""

    turns = (Turn("all", learns=("decoder",)),)


TASKS: dict[str, Callable[[], Task]] = {
    "dcgan": lambda: DCGAN(width=4, latent=8, batch_size=3),
    "sngan": lambda: SNGAN(width=4, latent=8, batch_size=3),
    "wgan-gp": lambda: WGANGP(width=4, latent=8, batch_size=3, n_critic=2),
    "resnet-dcgan": lambda: ResNetDCGAN(width=4, latent=8, batch_size=3, n_critic=2),
    "vae": lambda: VAE(width=4, latent=8, batch_size=3),
    "conv-ae": lambda: ConvAE(width=4, batch_size=3),
    "linear-ae": lambda: LinearAE(width=16, batch_size=3),
    "half-ae": lambda: HalfAE(batch_size=3),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_work_of_a_task_is_that_of_a_real_step(name: str, monkeypatch) -> None:
    task = TASKS[name]()
    shape = task.image_shape(1)
    networks, work = try_task(task, shape)
    batches = Batches(helpers.images(8, shape), task.batch_size, 0)
    settings = Settings(runtime=Runtime.open("cpu", "fp32", 1), seed=0, total_steps=9)
    trainer = Trainer(task, networks, batches, settings)
    monkeypatch.setattr("tombola.plan.trial.seed_everything", None)  # none needs the second way
    assert work_of(task, networks, shape) == work
    assert count_macs(trainer.advance) == work.step_macs > 0


class Watched(helpers.TinyGAN):
    """Says where its losses are computed and on how many images, and keeps what it drew."""

    seen: list[tuple[str, str, int]] = []
    drawn: torch.Tensor | None = None

    def loss(self, turn, networks, images):
        self.seen.append((turn, images.device.type, len(images)))
        assert networks["generator"].training
        self.drawn = torch.randn(len(images), 1, 1, 1)  # on no device in particular
        return super().loss(turn, networks, images + self.drawn)

    def latents(self, n, generator):
        drawn = super().latents(n, generator)
        return drawn / drawn.norm().item()  # a prior may look at its draws

    def sample(self, networks, latents):
        self.seen.append(("sample", latents.device.type, len(latents)))
        assert not networks["generator"].training
        return super().sample(networks, latents)


def test_work_is_counted_on_the_meta_device_at_the_full_batch() -> None:
    Watched.seen.clear()
    task = Watched()
    networks = task.networks((1, 8, 8))
    networks["generator"].eval()  # whatever they were left in
    work = work_of(task, networks, (1, 8, 8))
    assert Watched.seen == [
        ("discriminator", "meta", 8),
        ("generator", "meta", 8),
        ("sample", "meta", 1),
    ]
    assert task.drawn is None  # what a loss keeps of the counting is not kept
    assert work.sample_macs == 4 * 8 * 16 + 8 * 16 + 8 * 16 * 16


def test_work_leaves_the_networks_as_they_are() -> None:
    task = helpers.TinyGAN()
    networks = task.networks((1, 8, 8))
    networks["discriminator"][0] = nn.utils.spectral_norm(nn.Conv2d(1, 8, 4, 2, 1))
    networks["discriminator"](torch.zeros(2, 1, 8, 8))  # the hook leaves a weight with a graph
    networks["generator"].eval()
    networks["generator"][4].weight.requires_grad_(False)
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    frozen = work_of(task, networks, (1, 8, 8))
    assert all(helpers.same(network.state_dict(), before[n]) for n, network in networks.items())
    assert [n.training for n in networks.values()] == [False, True]
    assert all(p.grad is None for network in networks.values() for p in network.parameters())
    assert not networks["generator"][4].weight.requires_grad
    networks["generator"][4].weight.requires_grad_(True)
    # A weight that does not learn: no product for its gradient, in the one turn it would have one.
    free = work_of(task, networks, (1, 8, 8))
    assert free.step_macs - frozen.step_macs == task.batch_size * 8 * 4 * 4 * 16


def test_work_counts_the_networks_it_is_given() -> None:
    wide, thin = (DCGAN(width=width, latent=8, batch_size=3) for width in (8, 4))
    shape = (1, 32, 32)
    assert work_of(wide, thin.networks(shape), shape) == work_of(thin, thin.networks(shape), shape)
    assert work_of(wide, wide.networks(shape), shape) != work_of(thin, thin.networks(shape), shape)


class Shared(helpers.TinyAE):
    """Its decoder's weight is its encoder's."""

    def networks(self, shape) -> Networks:
        networks = super().networks(shape)
        encoder, decoder = nn.Linear(64, 64), nn.Linear(64, 64)
        decoder.weight = encoder.weight
        networks["encoder"][1] = encoder
        networks["decoder"][0] = decoder
        return networks

    def loss(self, turn, networks, images):
        assert networks["encoder"][1].weight is networks["decoder"][0].weight
        assert images.device.type == "meta"
        return super().loss(turn, networks, images)


def test_what_networks_share_is_shared_when_they_are_counted(monkeypatch) -> None:
    monkeypatch.setattr("tombola.plan.trial.seed_everything", None)  # no second way
    task = Shared(batch_size=3)
    work = work_of(task, task.networks((1, 8, 8)), (1, 8, 8))
    assert work.step_macs == 3 * (2 * 64 * 64 + 3 * 64 * 64)


class Looking(helpers.TinyAE):
    """Looks at values, which a meta tensor does not have."""

    seen: list[tuple[str, float]] = []

    def loss(self, turn, networks, images):
        scale = images.abs().max().item()
        self.seen.append((images.device.type, torch.rand(()).item()))
        return super().loss(turn, networks, images / scale)


def test_a_task_that_looks_at_values_is_counted_on_the_cpu() -> None:
    seed_everything(0, "init")
    Looking.seen.clear()
    plain, looking = helpers.TinyAE(), Looking()
    networks = plain.networks((1, 8, 8))
    expected = Work(step_macs=16 * (2 + 3) * 64 * 12, sample_macs=2 * 64 * 12)
    assert work_of(plain, networks, (1, 8, 8)) == expected
    assert work_of(looking, networks, (1, 8, 8)) == expected
    work_of(looking, networks, (1, 8, 8))
    assert len(Looking.seen) == 2
    assert Looking.seen[0] == Looking.seen[1]  # the same draws whenever it is counted
    assert Looking.seen[0][0] == "cpu"


class Singular(Looking):
    """Cannot make an image alone, in eval mode, which no trial on two finds."""

    def reconstruct(self, networks, images):
        if not networks["encoder"].training and images.device.type == "cpu":
            raise ZeroDivisionError("no others")
        return super().reconstruct(networks, images)


class Fickle(Looking):
    """Has a loss once."""

    def loss(self, turn, networks, images):
        if self.seen:
            raise ZeroDivisionError("no more")
        return super().loss(turn, networks, images)


@pytest.mark.parametrize(("task", "method"), [(Singular, "reconstruct"), (Fickle, "loss('all')")])
def test_a_method_that_fails_only_when_it_is_counted_is_named(task, method: str) -> None:
    Looking.seen.clear()
    text = re.escape(f"{task.__name__}.{method} failed: ZeroDivisionError: no ")
    with pytest.raises(ConfigError, match=text):
        try_task(task(), (1, 8, 8))
