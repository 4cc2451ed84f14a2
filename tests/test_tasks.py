"""Do losses, samples and judged quantities equal their closed forms; is every weight used?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tombola.config.registry import TASKS
from tombola.config.sections import SHARED
from tombola.errors import ConfigError
from tombola.sparsity.masks import prunable
from tombola.tasks.adversarial import DCGAN, SNGAN, WGAN, WGANGP, ResNetDCGAN
from tombola.tasks.autoencoding import VAE, BetaVAE, ConvAE, LinearAE, ResNetVAE
from tombola.tasks.base import RECONSTRUCTING, Networks, Task

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_gan.py"
ALL = [*TASKS.names(), f"{EXAMPLE}:MyGAN"]
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
            nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # fmt: skip


class Fixed(nn.Module):
    """A network that answers with a function of its input and remembers the input."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[Tensor] = []

    def forward(self, values: Tensor) -> Any:
        self.seen.append(values)
        return self.answer(values)


def _options(task: type[Task], preset: str, **options: Any) -> dict[str, Any]:
    chosen = {**task.presets[preset], **options}
    return {name: value for name, value in chosen.items() if name not in ("steps", "epochs")}


def _scalar(loss: Tensor | dict[str, Tensor]) -> Tensor:
    return loss["loss"] if isinstance(loss, dict) else loss


def _learners(task: Task, networks: Networks, turn: str) -> set[str]:
    found = next(t for t in task.turns if t.name == turn)
    return set(found.learns or networks)


def _freeze(task: Task, networks: Networks, turn: str) -> None:
    for name, network in networks.items():
        network.requires_grad_(name in _learners(task, networks, turn))


def _images(task: Task, n: int, channels: int = 1) -> Tensor:
    return torch.rand(n, *task.image_shape(channels)) * 2 - 1


def _without_chance_deaths(network: nn.Module) -> nn.Module:
    """Every ReLU leaks, so that a zero gradient comes from the structure, not from dead units."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.1))
    return network


def _unused_weights(task: Task, draws: int = 2, channels: int = 1) -> dict[str, int]:
    """How many weights of each prunable tensor have a gradient of exactly zero in all turns.

    Over several initial draws: one draw may leave a window of a max-pooling or a hinge unused.
    """
    reached: dict[str, Tensor] = {}
    for draw in range(draws):
        torch.manual_seed(draw)
        networks = {
            name: _without_chance_deaths(network)
            for name, network in task.networks(task.image_shape(channels)).items()
        }
        for turn in task.turns:
            _freeze(task, networks, turn.name)
            for network in networks.values():
                network.zero_grad()
            _scalar(task.loss(turn.name, networks, _images(task, 8, channels))).backward()
            for key, weight in prunable(networks).items():  # under a spectral norm the raw tensor
                if weight.grad is not None:
                    used = weight.grad != 0
                    reached[key] = reached[key] | used if key in reached else used
    everything = {
        ".".join(filter(None, (name, path, "weight")))
        for name, network in networks.items()
        for path, module in network.named_modules()
        if isinstance(module, PRUNABLE)
    }
    assert set(reached) == everything
    return {name: int((~used).sum()) for name, used in reached.items() if not used.all()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _float64() -> Iterator[None]:
    """So that no gradient underflows to zero; default, so that users' own noise has it too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize("spec", ALL)
def test_no_prunable_weight_has_a_structurally_zero_gradient(spec: str, preset: str) -> None:
    build = TASKS.load(spec)
    small = {} if preset == "quick" else {"width": 4}
    assert _unused_weights(build(**_options(build, preset, **small))) == {}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("spec", [name for name in TASKS.names() if name != "linear-ae"])
def test_nor_has_one_of_a_convolutional_task_at_64x64_in_colour(spec: str) -> None:
    # Larger images have layers that smaller ones have not, and maps of other sizes between them.
    build = TASKS.load(spec)
    narrow = {"width": 8, "levels": (1, 2), "blocks": 1} if spec == "ddpm" else {"width": 2}
    task = build(**_options(build, "quick", size=64, **narrow))
    assert task.image_shape(3) == (3, 64, 64)
    assert _unused_weights(task, channels=3) == {}


def test_a_structurally_dead_weight_would_be_found() -> None:
    """A 3x3 kernel with padding 1 on one pixel: eight of nine weights see padding only."""

    class Dead(LinearAE):
        def networks(self, shape: tuple[int, int, int]) -> Networks:
            return {"encoder": nn.Conv2d(1, 2, 3, 1, 1), "decoder": nn.Conv2d(2, 1, 1)}

    assert _unused_weights(Dead(size=1)) == {"encoder.weight": 16}


@pytest.mark.parametrize("spec", ALL)
def test_presets_hold_options_and_one_length(spec: str) -> None:
    build = TASKS.load(spec)
    assert set(build.presets) == {"quick", "paper"} | ({"shared"} if spec in SHARED else set())
    assert "steps" in build.presets["quick"]
    assert "epochs" in build.presets["paper"]
    for preset in build.presets:
        task = build(**_options(build, preset))
        for name, value in _options(build, preset).items():
            assert getattr(task, name) == value


@pytest.mark.parametrize(
    ("spec", "channels", "quick", "paper"),
    [
        ("linear-ae", 1, 106_291, 219_891),
        ("conv-ae", 3, 184_107, 2_937_507),
        ("vae", 3, 371_171, 5_613_347),
        ("beta-vae", 3, 371_171, 5_613_347),
        ("resnet-vae", 3, 179_251, 2_821_251),
        ("dcgan", 3, 477_796, 6_564_228),
        ("sngan", 3, 489_876, 6_741_572),
        ("wgan", 3, 477_796, 6_564_228),
        ("wgan-gp", 3, 477_572, 6_563_332),
        ("resnet-dcgan", 3, 156_932, 2_208_772),
        ("ddpm", 3, 217_468, 7_553_283),
    ],
)
def test_parameter_counts(spec: str, channels: int, quick: int, paper: int) -> None:
    build = TASKS.load(spec)
    counts = []
    for preset in ("quick", "paper"):
        task = build(**_options(build, preset))
        with torch.device("meta"):  # as `tombola list tasks --json` counts
            networks = task.networks(task.image_shape(channels))
        counts.append(sum(p.numel() for net in networks.values() for p in net.parameters()))
    assert counts == [quick, paper]


@pytest.mark.parametrize("spec", ALL)
def test_gradients_go_to_the_learners_only(spec: str) -> None:
    build = TASKS.load(spec)
    task = build(**_options(build, "quick", width=4))
    networks = task.networks(task.image_shape(1))
    for turn in task.turns:
        learners = _learners(task, networks, turn.name)
        _freeze(task, networks, turn.name)
        for network in networks.values():
            network.zero_grad()
        _scalar(task.loss(turn.name, networks, _images(task, 4))).backward()
        for name, network in networks.items():
            grads = [p.grad for p in network.parameters()]
            assert all(grad is not None for grad in grads) == (name in learners)
            assert any(grad is not None for grad in grads) == (name in learners)


@pytest.mark.parametrize("spec", ALL)
def test_losses_are_a_function_of_torch_s_seed(spec: str) -> None:
    build = TASKS.load(spec)
    task = build(**_options(build, "quick", width=4))
    networks, images = task.networks(task.image_shape(1)), _images(task, 4)
    drawn = []
    for turn in task.turns:
        losses = []
        for seed in (7, 7, 8):
            torch.manual_seed(seed)
            fresh = copy.deepcopy(networks)  # a call in train mode changes a spectral norm's state
            losses.append(_scalar(task.loss(turn.name, fresh, images)).item())
        assert losses[0] == losses[1]
        drawn.append(losses[1] != losses[2])
    # The last turn: a new discriminator's hinge may be past its end for every fake.
    assert drawn[-1] == (task.family != "autoencoder")


@pytest.mark.parametrize("spec", ALL)
def test_samples_and_reconstructions_are_images(spec: str) -> None:
    build = TASKS.load(spec)
    task = build(**_options(build, "quick", width=4))
    networks, images = task.networks(task.image_shape(1)), _images(task, 6)
    if task.latent:
        made = task.sample(networks, task.latents(6, torch.Generator().manual_seed(0)))
        assert made.shape == images.shape
        assert made.abs().max() <= 1
    if task.family in RECONSTRUCTING:
        assert task.reconstruct(networks, images).shape == images.shape
    latents = torch.randn(6, max(task.latent, 1))
    samples = task.sample(networks, latents) if task.latent else None
    for value in task.judge_loss(networks, images, latents, samples).values():
        assert len(value) == 6


@pytest.mark.parametrize(
    ("build", "rate", "betas", "decay", "batch"),
    [
        (LinearAE, 1e-3, (0.9, 0.999), 1e-5, 128),
        (ConvAE, 1e-3, (0.9, 0.999), 1e-5, 128),
        (VAE, 1e-3, (0.9, 0.999), 1e-5, 128),
        (BetaVAE, 1e-3, (0.9, 0.999), 1e-5, 128),
        (ResNetVAE, 1e-3, (0.9, 0.999), 1e-5, 128),
        (DCGAN, 2e-4, (0.5, 0.999), 0.0, 128),
        (SNGAN, 2e-4, (0.5, 0.999), 0.0, 64),
        (WGANGP, 1e-4, (0.5, 0.9), 0.0, 64),
        (ResNetDCGAN, 2e-4, (0.0, 0.9), 0.0, 64),
    ],
)
def test_hyperparameters(
    build: type[Task], rate: float, betas: tuple[float, float], decay: float, batch: int
) -> None:
    task = build()
    optimizer = task.optimizer(task.turns[0].name, [nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.Adam)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (rate, betas, decay)
    assert group["fused"]
    assert task.batch_size == batch


def test_hyperparameters_of_the_clipped_critic() -> None:
    task = WGAN()
    for turn in task.turns:
        optimizer = task.optimizer(turn.name, [nn.Parameter(torch.zeros(1))])
        assert isinstance(optimizer, torch.optim.RMSprop)
        assert optimizer.param_groups[0]["lr"] == 5e-5
        assert optimizer.param_groups[0]["momentum"] == 0
    assert (task.clip, task.n_critic, task.batch_size) == (0.01, 5, 64)


@pytest.mark.parametrize(
    ("build", "updates"), [(DCGAN, 1), (SNGAN, 1), (WGAN, 5), (WGANGP, 5), (ResNetDCGAN, 5)]
)
def test_updates_of_the_discriminator_a_step(build: type[DCGAN], updates: int) -> None:
    assert [turn.repeats for turn in build().turns] == [updates, 1]
    assert [turn.repeats for turn in build(n_critic=3).turns] == [3, 1]
    assert [turn.repeats for turn in build().turns] == [updates, 1]  # of that object alone


def test_beta_is_all_that_tells_the_beta_vae_from_the_vae() -> None:
    differing = {k for k, v in VAE.options().items() if BetaVAE.options()[k] != v}
    assert differing == {"beta"}
    assert BetaVAE().beta == 4.0


def test_autoencoder_loss_is_the_mean_squared_error() -> None:
    networks: Networks = {"encoder": nn.Identity(), "decoder": Fixed(lambda x: x + 0.5)}
    images = _images(LinearAE(), 3)
    assert _scalar(LinearAE().loss("all", networks, images)).item() == pytest.approx(0.25)


def _vae_networks(mean: float, log_variance: float, latent: int = 2) -> Networks:
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones(len(images), latent)
        return mean * ones, log_variance * ones

    return {
        "encoder": Fixed(encode),
        "decoder": Fixed(lambda z: torch.full((len(z), 1, 32, 32), 0.25)),
    }


def test_vae_loss_is_the_negative_elbo() -> None:
    networks = _vae_networks(mean=3.0, log_variance=math.log(4))
    images = torch.full((5, 1, 32, 32), -0.25)
    parts = VAE(latent=2, beta=4.0).loss("all", networks, images)
    assert isinstance(parts, dict)
    kl = 2 * 0.5 * (9 + 4 - 1 - math.log(4))
    assert parts["kl"].item() == pytest.approx(kl)
    assert parts["reconstruction"].item() == pytest.approx(0.25 * 1024)
    assert parts["loss"].item() == pytest.approx(0.25 * 1024 + 4 * kl)


def test_vae_draws_from_the_posterior() -> None:
    networks = _vae_networks(mean=3.0, log_variance=math.log(4))
    images = torch.zeros(5, 1, 32, 32)
    torch.manual_seed(11)
    VAE(latent=2).loss("all", networks, images)
    torch.manual_seed(11)
    decoder = networks["decoder"]
    assert isinstance(decoder, Fixed)
    torch.testing.assert_close(decoder.seen[0], 3 + 2 * torch.randn(5, 2))


def test_vae_is_judged_per_image_with_the_given_noise() -> None:
    networks = _vae_networks(mean=3.0, log_variance=math.log(4))
    images = torch.zeros(2, 1, 32, 32)
    images[1] = 0.25
    noise = torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    judged = VAE(latent=2, beta=4.0).judge_loss(networks, images, noise, None)
    assert set(judged) == {"reconstruction", "kl", "mean"}
    assert judged["reconstruction"].tolist() == pytest.approx([64.0, 0.0])
    assert judged["kl"].tolist() == pytest.approx([12 - math.log(4)] * 2)
    assert judged["mean"].tolist() == [[3.0, 3.0]] * 2
    decoder = networks["decoder"]
    assert isinstance(decoder, Fixed)
    torch.testing.assert_close(decoder.seen[0], 3 + 2 * noise)


def test_vae_samples_the_prior_and_reconstructs_from_the_mean() -> None:
    networks = _vae_networks(mean=3.0, log_variance=math.log(4))
    decoder, task = networks["decoder"], VAE(latent=2)
    assert isinstance(decoder, Fixed)
    latents = torch.randn(4, 2)
    task.sample(networks, latents)
    task.reconstruct(networks, torch.zeros(4, 1, 32, 32))
    assert torch.equal(decoder.seen[0], latents)
    assert torch.equal(decoder.seen[1], torch.full((4, 2), 3.0))
    prior = task.latents(20_000, torch.Generator().manual_seed(0))
    assert prior.std().item() == pytest.approx(1, abs=0.02)
    assert prior.mean().item() == pytest.approx(0, abs=0.02)


def test_vae_is_as_precise_as_its_images_under_autocast() -> None:
    task = VAE(width=2, latent=2)
    networks, images = task.networks((1, 32, 32)), _images(task, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        judged = task.judge_loss(networks, images, torch.randn(4, 2), None)
        loss = _scalar(task.loss("all", networks, images))
    assert {value.dtype for value in judged.values()} == {torch.float32}
    assert loss.dtype == torch.float32


def _gan_networks(fake: float) -> Networks:
    """A discriminator whose logit is the images' mean, a generator of constant images."""
    return {
        "generator": Fixed(lambda z: torch.full((len(z), 1, 32, 32), fake)),
        "discriminator": Fixed(lambda images: images.mean(dim=(1, 2, 3))),
    }


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_dcgan_losses_are_the_cross_entropies() -> None:
    networks, task = _gan_networks(fake=-0.5), DCGAN(latent=3)
    images = torch.full((4, 1, 32, 32), 0.75)
    parts = task.loss("discriminator", networks, images)
    assert isinstance(parts, dict)
    assert parts["real"].item() == pytest.approx(_softplus(-0.75))
    assert parts["fake"].item() == pytest.approx(_softplus(-0.5))
    assert parts["loss"].item() == pytest.approx(_softplus(-0.75) + _softplus(-0.5))
    generator_loss = _scalar(task.loss("generator", networks, images))
    assert generator_loss.item() == pytest.approx(_softplus(0.5))  # -log sigmoid(-0.5)


@pytest.mark.parametrize("build", [SNGAN, ResNetDCGAN])
def test_hinge_losses(build: type[SNGAN]) -> None:
    networks, task = _gan_networks(fake=-0.5), build(latent=3)
    parts = task.loss("discriminator", networks, torch.full((4, 1, 32, 32), 0.75))
    assert isinstance(parts, dict)
    assert parts["real"].item() == pytest.approx(0.25)  # max(0, 1 - 0.75)
    assert parts["fake"].item() == pytest.approx(0.5)  # max(0, 1 - 0.5)
    assert parts["loss"].item() == pytest.approx(0.75)
    assert _scalar(task.loss("generator", networks, torch.zeros(4, 1, 32, 32))).item() == 0.5
    beyond = torch.tensor([1.5, -1.5])
    assert task.losses(beyond, real=True).tolist() == [0, 2.5]
    assert task.losses(beyond, real=False).tolist() == [2.5, 0]


def test_wasserstein_losses() -> None:
    networks, task = _gan_networks(fake=-0.5), WGAN(latent=3)
    parts = task.loss("discriminator", networks, torch.full((4, 1, 32, 32), 0.75))
    assert isinstance(parts, dict)
    assert set(parts) == {"loss", "real", "fake"}
    assert parts["loss"].item() == pytest.approx(-0.75 - 0.5)  # f(fakes) - f(reals)
    assert _scalar(task.loss("generator", networks, torch.zeros(4, 1, 32, 32))).item() == 0.5


def test_gradient_penalty_of_a_known_slope() -> None:
    """f(x) = the mean of 1,024 pixels has a gradient of norm 1/32 everywhere."""
    networks, task = _gan_networks(fake=-0.5), WGANGP(latent=3)
    parts = task.loss("discriminator", networks, torch.full((4, 1, 32, 32), 0.75))
    assert isinstance(parts, dict)
    assert parts["penalty"].item() == pytest.approx(10 * (1 - 1 / 32) ** 2)
    assert parts["loss"].item() == pytest.approx(-1.25 + 10 * (1 - 1 / 32) ** 2)


def test_gradient_penalty_looks_between_reals_and_fakes() -> None:
    networks, task = _gan_networks(fake=-1.0), WGANGP(latent=3)
    task.loss("discriminator", networks, torch.ones(64, 1, 32, 32))
    critic = networks["discriminator"]
    assert isinstance(critic, Fixed)
    between = critic.seen[-1]
    assert len(between.flatten(1).unique(dim=1).T) == 1  # one share an image, for all its pixels
    shares = between[:, 0, 0, 0]
    assert -1 < shares.min() < -0.7 < 0.7 < shares.max() < 1


def test_gradient_penalty_teaches_the_critic_its_slope() -> None:
    """Its gradient goes through the gradient: the scale of a linear critic grows towards norm 1."""
    scale = nn.Parameter(torch.tensor(1.0))
    task = WGANGP(latent=3)
    penalty = task.penalty(
        Fixed(lambda x: scale * x.mean(dim=(1, 2, 3))), torch.zeros(2, 1, 32, 32),
        torch.ones(2, 1, 32, 32),
    )  # fmt: skip
    assert penalty is not None
    penalty.backward()
    # d/ds 10 (s/32 - 1)^2 at s = 1
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(20 * (1 / 32 - 1) / 32)


def test_the_critic_alone_is_clipped() -> None:
    task = WGAN(width=2, latent=3, clip=0.005)
    networks = task.networks((1, 32, 32))
    before = {n: [p.clone() for p in m.parameters()] for n, m in networks.items()}
    with torch.no_grad():
        task.constrain("generator", networks)
        for name, network in networks.items():
            assert all(map(torch.equal, before[name], network.parameters()))
        task.constrain("discriminator", networks)
    assert all(map(torch.equal, before["generator"], networks["generator"].parameters()))
    for old, new in zip(
        before["discriminator"], networks["discriminator"].parameters(), strict=True
    ):
        assert torch.equal(new, old.clamp(-0.005, 0.005))


def test_dcgan_draws_fresh_normal_latents_of_the_batch_s_size() -> None:
    networks, task = _gan_networks(fake=0.0), DCGAN(latent=3)
    torch.manual_seed(5)
    task.loss("discriminator", networks, torch.zeros(4, 1, 32, 32))
    task.loss("generator", networks, torch.empty(4, 1, 32, 32))
    torch.manual_seed(5)
    generator = networks["generator"]
    assert isinstance(generator, Fixed)
    assert torch.equal(generator.seen[0], torch.randn(4, 3))
    assert torch.equal(generator.seen[1], torch.randn(4, 3))


def test_the_generator_s_turn_does_not_look_at_images() -> None:
    task = DCGAN(width=2, latent=3)
    networks = task.networks((1, 32, 32))
    nothing = torch.full((4, 1, 32, 32), math.nan)
    assert math.isfinite(_scalar(task.loss("generator", networks, nothing)).item())


def test_the_discriminator_s_loss_does_not_reach_the_generator() -> None:
    """Also where nobody froze the generator: the fakes are detached."""
    task = DCGAN(width=2, latent=3)
    networks = task.networks((1, 32, 32))
    _scalar(task.loss("discriminator", networks, _images(task, 4))).backward()
    assert all(p.grad is None for p in networks["generator"].parameters())
    assert all(p.grad is not None for p in networks["discriminator"].parameters())


def test_dcgan_is_judged_per_image() -> None:
    networks, task = _gan_networks(fake=-0.5), DCGAN(latent=3)
    images = torch.zeros(2, 1, 32, 32)
    images[1] = 1.0
    samples = torch.full((2, 1, 32, 32), -0.5)
    judged = task.judge_loss(networks, images, torch.randn(2, 3), samples)
    assert set(judged) == {"discriminator_loss"}
    expected = [_softplus(0.0) + _softplus(-0.5), _softplus(-1.0) + _softplus(-0.5)]
    assert judged["discriminator_loss"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: LinearAE(width=1), "width is 1; it must be 2 or more"),
        (lambda: LinearAE(code=0), "code is 0"),
        (lambda: LinearAE(size=0), "size is 0"),
        (lambda: LinearAE(depth=3), "task LinearAE has no option 'depth'"),
        (lambda: ConvAE(size=28), "size is 28; .* set size=32"),
        (lambda: ConvAE(width=0), "width is 0"),
        (lambda: VAE(latent=0), "latent is 0"),
        (lambda: VAE(beta=-1.0), "beta is -1.0; it must be 0 or more"),
        (lambda: VAE(beta=math.nan), "beta is nan"),
        (lambda: VAE(size=20), "size is 20"),
        (lambda: DCGAN(size=96), "size is 96; .* 32 or 64"),
        (lambda: DCGAN(width=-1), "width is -1"),
        (lambda: DCGAN(latent=0), "latent is 0"),
        (lambda: WGAN(n_critic=0), "n_critic is 0; it must be 1 or more"),
        (lambda: WGAN(clip=0.0), "clip is 0.0"),
        (lambda: WGANGP(gradient_penalty=-1.0), "gradient_penalty is -1.0"),
        (lambda: ResNetVAE(size=48), "size is 48"),
    ],
)
def test_impossible_options_are_refused_at_once(build: Callable[[], Task], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build()


def test_linear_autoencoder_learns_through_its_three_numbers() -> None:
    """Images of two hidden causes: 150 steps take nine tenths of their variance."""
    causes = torch.rand(256, 2) * 2 - 1
    images = (causes @ torch.randn(2, 64)).tanh().reshape(256, 1, 8, 8)
    task = LinearAE(width=32, size=8, learning_rate=5e-3)
    networks = task.networks((1, 8, 8))
    parameters = [p for network in networks.values() for p in network.parameters()]
    optimizer = task.optimizer("all", parameters)
    for _ in range(150):
        optimizer.zero_grad()
        loss = _scalar(task.loss("all", networks, images))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * images.var(dim=0).mean().item()


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40


class Listed(Task):
    widths = (8, 16)
    mixed = (1, "a")


@pytest.mark.parametrize(
    ("option", "given", "taken"),
    [
        ("betas", [0, 0.9], (0.0, 0.9)),
        ("betas", (0.5, 1), (0.5, 1.0)),
        ("widths", [4, 8, 16], (4, 8, 16)),
        ("widths", [], ()),
        ("mixed", [2, "b", 0.5], (2, "b", 0.5)),
    ],
)
def test_a_list_is_taken_with_parts_of_the_default_s_kind(option, given, taken) -> None:
    value = getattr(Listed(**{option: given}), option)
    assert value == taken
    assert [type(part) for part in value] == [type(part) for part in taken]


@pytest.mark.parametrize(
    ("option", "given", "said"),
    [
        ("betas", "a", r"got 'a'; it takes a list, like its default \[0.9, 0.999\]"),
        ("betas", [0.5, "a"], "got 'a'; it takes a float, like its default 0.9"),
        ("widths", [4.5], "got 4.5; it takes a int"),
    ],
)
def test_a_list_of_another_kind_is_refused(option, given, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Listed(**{option: given})
