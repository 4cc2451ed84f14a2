"""Noise, its loss, the sampler and the U-Net against literals, hand arithmetic and an oracle."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers import run
from tombola.cli import command_line as cli
from tombola.config.runtime import Runtime
from tombola.config.sections import build
from tombola.data.batches import Batches
from tombola.engine import exporting
from tombola.engine.early import denoising_loss
from tombola.errors import ConfigError
from tombola.models.unet import UNet
from tombola.plan.cells import judged_steps
from tombola.plan.setting import resolve
from tombola.plan.trial import try_task
from tombola.sparsity.compact import Channels
from tombola.tasks.autoencoding import VAE
from tombola.tasks.diffusion import DDPM, alphas_bar, ddim_step, noised, sampling_times
from tombola.tickets.ticket import save_model
from tombola.training.scoring import inputs_of
from tombola.training.trainer import Settings, Trainer, named_state

SMALL = {"width": 4, "levels": (1, 2), "blocks": 1, "patch": 2, "batch_size": 4}


class Oracle(nn.Module):
    """Knows the image behind what it sees: the noise in x_t is (x_t - sqrt(a) x_0) / sqrt(1 - a).

    It says what a U-Net would have to: the noise less sqrt(1 - a) x_t, over sqrt(a).
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image, self.times = image, []

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        (time,) = set(times.tolist())
        self.times.append(time)
        left = float(alphas_bar()[time])
        noise = (noisy - math.sqrt(left) * self.image) / math.sqrt(1 - left)
        return (noise - math.sqrt(1 - left) * noisy) / math.sqrt(left)


def test_alphas_bar_by_hand() -> None:
    left = alphas_bar()
    assert len(left) == 1001
    assert left[0] == 1.0
    assert left[1] == 1 - 1e-4
    # beta_2 is one of 999 equal steps from 1e-4 to 0.02 further on.
    assert left[2] == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999), abs=1e-15)
    # Ho et al. 2020, appendix B: D_KL(q(x_T | x_0) || N(0, I)) is about 1e-5 bits a dimension.
    assert left[1000] == pytest.approx(4.0358e-5, rel=1e-4)
    by_hand = math.prod(1 - (1e-4 + 0.0199 * step / 999) for step in range(500))
    assert left[500] == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(0.0785872, rel=1e-5)


def test_noise_is_mixed_in_by_equation_4() -> None:
    images, noise = torch.full((2, 1, 1, 1), 0.5), torch.full((2, 1, 1, 1), -2.0)
    mixed = noised(images, noise, torch.tensor([1, 1000]))
    last = 4.0358e-5
    expected = [
        0.5 * math.sqrt(1 - 1e-4) - 2 * math.sqrt(1e-4),
        0.5 * math.sqrt(last) - 2 * math.sqrt(1 - last),
    ]
    assert mixed.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_a_ddim_step_by_hand() -> None:
    # alphas_bar 0.36 and 0.64: x_0 = (0.9 - 0.8 * 0.5) / 0.6 = 5/6, then 0.8 * 5/6 + 0.6 * 0.5.
    made = ddim_step(torch.tensor([0.9]), torch.tensor([0.5]), 0.36, 0.64)
    assert made.item() == pytest.approx(0.8 * 5 / 6 + 0.3, rel=1e-6)
    # The last step gives the image that is seen.
    assert ddim_step(torch.tensor([0.9]), torch.tensor([0.5]), 0.36, 1.0).item() == pytest.approx(
        5 / 6, rel=1e-6
    )


def test_the_times_of_a_sampler() -> None:
    assert sampling_times(4) == [1000, 750, 500, 250, 0]
    assert sampling_times(3) == [1000, 666, 333, 0]
    assert (sampling_times(50)[1], len(sampling_times(50))) == (980, 51)
    assert sampling_times(1000) == list(range(1000, -1, -1))


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_with_a_perfect_prediction_the_sampler_returns_the_image(steps: int) -> None:
    task = DDPM(size=4, levels=(1,), sampling_steps=steps)
    task.image_shape(1)
    image = torch.rand(3, 1, 4, 4, dtype=torch.float64) * 2 - 1
    oracle = Oracle(image)
    latents = torch.randn(3, 16, dtype=torch.float64)
    made = task.sample({"denoiser": oracle}, latents)
    torch.testing.assert_close(made, image, rtol=0, atol=1e-10)
    assert oracle.times == sampling_times(steps)[:-1]
    beyond = task.sample({"denoiser": Oracle(3 * image)}, latents)
    torch.testing.assert_close(beyond, (3 * image).clamp(-1, 1), rtol=0, atol=1e-10)


def test_with_a_perfect_prediction_the_loss_is_zero() -> None:
    task = DDPM(size=4, levels=(1,))
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64) * 2 - 1
    for _ in range(3):
        loss = task.loss("all", {"denoiser": Oracle(image)}, image)
        assert isinstance(loss, Tensor)
        assert loss.item() == pytest.approx(0, abs=1e-12)


class Silent(nn.Module):
    """Says nothing, and remembers the times it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(0, dtype=torch.int64)

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        self.seen = times
        return torch.zeros_like(noisy)


def test_the_loss_is_that_of_the_noise_at_times_from_1_to_1000() -> None:
    """Of a network that says nothing: eps' = sqrt(1 - a) x_t, so eps - eps' by hand."""
    task, silent = DDPM(size=4, levels=(1,)), Silent()
    images = torch.full((20_000, 1, 1, 1), 0.5)
    torch.manual_seed(0)
    loss = task.loss("all", {"denoiser": silent}, images)
    times = silent.seen
    assert (times.min().item(), times.max().item()) == (1, 1000)
    assert times.double().mean().item() == pytest.approx(500.5, abs=6)
    torch.manual_seed(0)
    assert torch.equal(torch.randint(1, 1001, (20_000,)), times)
    noise = torch.randn_like(images)
    left = torch.tensor(alphas_bar())[times].view(-1, 1, 1, 1)
    mixed = left.sqrt() * images + (1 - left).sqrt() * noise
    expected = ((1 - left).sqrt() * mixed - noise).square().mean()
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_held_out_loss_uses_the_latents_at_times_spread_evenly() -> None:
    task, silent = DDPM(size=2, levels=(1,)), Silent()
    images, latents = torch.zeros(4, 1, 2, 2), torch.randn(4, 4)
    found = task.judge_loss({"denoiser": silent}, images, latents, None)
    assert silent.seen.tolist() == [1, 251, 501, 751]
    left = torch.tensor(alphas_bar()[[1, 251, 501, 751]])
    # Black images: x_t = sqrt(1 - a) eps, so what is seen of eps is (1 - a) eps.
    expected = (left**2) * latents.double().square().mean(1)
    assert found.keys() == {"denoising_loss"}
    torch.testing.assert_close(found["denoising_loss"].double(), expected, rtol=1e-3, atol=0)


def test_a_sample_is_a_function_of_its_latent_alone() -> None:
    task = DDPM(**SMALL, sampling_steps=5)
    shape = task.image_shape(3)
    torch.manual_seed(0)
    networks = task.networks(shape)
    networks["denoiser"].eval()
    latents = task.latents(4, torch.Generator().manual_seed(0))
    assert latents.shape == (4, 3 * 32 * 32)
    with torch.no_grad():
        together = task.sample(networks, latents)
        torch.manual_seed(5)
        alone = torch.cat([task.sample(networks, latent[None]) for latent in latents])
    assert together.shape == (4, 3, 32, 32)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert together.std() > 0.1


def test_the_length_of_a_latent_is_that_of_the_image() -> None:
    assert DDPM().latent == 0
    task = DDPM(size=64)
    assert task.image_shape(1) == (1, 64, 64)
    assert task.latent == 4096
    assert DDPM(latent=4096, size=64).image_shape(1) == (1, 64, 64)
    with pytest.raises(
        ConfigError, match=r"'latent' is 64, but .* 3072 numbers; leave task.latent"
    ):
        DDPM(latent=64).image_shape(3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling_steps": 0}, "sampling_steps is 0; it must be 1 or more"),
        ({"sampling_steps": 1001}, "there are 1000 times: set fewer"),
        ({"levels": (1, 0)}, "levels is"),
        ({"levels": ()}, "levels is"),
        ({"width": 0}, "width is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"patch": 0}, "patch is 0"),
        ({"patch": 3}, "a multiple of 24"),
        ({"size": 12}, "a multiple of 8"),
    ],
)
def test_options_that_cannot_be(options: dict, words: str) -> None:
    def made() -> None:
        task = DDPM(**options)
        task.networks(task.image_shape(1))

    with pytest.raises(ConfigError, match=words):
        made()


def test_the_parameters_of_the_network_by_closed_form() -> None:
    """Width w, one block a level, levels 1 and 2, patch p, C channels."""
    w, p, c = 8, 2, 3

    def conv(a: int, b: int, k: int = 3) -> int:
        return a * b * k * k + b

    def block(a: int, b: int) -> int:
        told = 2 * (4 * w * b + b)
        skip = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(a, b) + told + 2 * b + conv(b, b) + skip

    time = (16 * 4 * w + 4 * w) + (4 * w * 4 * w + 4 * w)
    ends = conv(c * p * p, w) + 2 * w + conv(w, c * p * p)
    down = block(w, w) + conv(w, w) + block(w, 2 * w)
    middle = 2 * block(2 * w, 2 * w) + 4 * w + 4 * conv(2 * w, 2 * w, 1)
    up = block(4 * w, 2 * w) + conv(2 * w, 2 * w) + block(3 * w, w)
    network = UNet((c, 32, 32), w, (1, 2), 1, p)
    assert sum(x.numel() for x in network.parameters()) == time + ends + down + middle + up


def test_each_patch_is_a_pixel_of_the_outermost_level() -> None:
    network = UNet((1, 8, 8), 4, (1,), 1, 4)
    assert network.first.weight.shape == (4, 16, 3, 3)
    seen = []
    network.first.register_forward_hook(lambda module, args, made: seen.append(made.shape))
    assert network(torch.zeros(2, 1, 8, 8), torch.tensor([1])).shape == (2, 1, 8, 8)
    assert seen == [(2, 4, 2, 2)]


def test_the_time_changes_the_answer_and_one_time_stands_for_all() -> None:
    torch.manual_seed(0)
    network = UNet((1, 8, 8), 4, (1, 2), 1).eval()
    images = torch.randn(2, 1, 8, 8)
    one, other = (network(images, torch.tensor([t])) for t in (10, 900))
    assert (one - other).abs().max() > 1e-3
    both = network(images, torch.tensor([10, 900]))
    torch.testing.assert_close(both, torch.stack([one[0], other[1]]))


@pytest.mark.parametrize("kept", ["scale", "shift"])
def test_the_time_both_scales_and_shifts(kept: str) -> None:
    torch.manual_seed(0)
    network = UNet((1, 8, 8), 4, (1, 2), 1).eval()
    for name, parameter in network.named_parameters():
        if ({"scale", "shift"} - {kept}) & set(name.split(".")):
            parameter.detach().zero_()
    images = torch.randn(1, 1, 8, 8)
    one, other = (network(images, torch.tensor([t])) for t in (10, 900))
    assert (one - other).abs().max() > 1e-3


def test_channels_are_ranked_by_their_filters() -> None:
    """A GroupNorm's scale is none of the channel's own size, and there is no BatchNorm."""
    task = DDPM(**{**SMALL, "width": 8, "batch_size": 2})
    shape = task.image_shape(1)
    torch.manual_seed(0)
    networks = task.networks(shape)
    channels = Channels.of(networks, inputs_of(task, networks, shape), ["all"])
    assert channels.by_scale == frozenset()
    before = channels.scores(networks)
    unet = networks["denoiser"]
    with torch.no_grad():
        for part in unet.modules():
            if isinstance(part, nn.GroupNorm):
                part.weight.copy_(torch.rand_like(part.weight))
    again = channels.scores(networks)
    assert all(torch.equal(before[name], again[name]) for name in before)
    name = "denoiser.down.0.0.between"
    with torch.no_grad():
        unet.down[0][0].enter.weight[:4] *= 3
        unet.down[0][0].scale.weight[:4] *= 3
        unet.down[0][0].shift.weight[:4] *= 3
    first, second = channels.scores(networks)[name].tolist()
    assert first / second == pytest.approx(3 * before[name][0].item() / before[name][1].item())


def test_what_is_judged_and_when() -> None:
    tables = {
        "task": {"name": "ddpm", "width": 4, "levels": [1], "sampling_steps": 1},
        "search": {"rounds": 1, "seeds": 1},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }
    setting = resolve(build(tables), None)
    assert (setting.judged_samples, setting.fakes) == (1000, 1000)
    assert setting.judge is not None
    assert judged_steps("diffusion", 100) == (80, 100)
    asked = dataclasses.replace(setting, config=build({**tables, "judge": {"samples": 50}}))
    assert (asked.judged_samples, asked.fakes) == (50, 50)
    assert dataclasses.replace(setting, task=VAE()).judged_samples == 50_000


def test_a_diffusion_of_ones_own_has_to_say_its_held_out_loss() -> None:
    class Mute(DDPM):
        def judge_loss(self, *args: object) -> dict[str, Tensor]:
            return {}

    task = Mute(**SMALL, sampling_steps=1)
    with pytest.raises(ConfigError, match=r"Mute.judge_loss gave no 'denoising_loss'"):
        try_task(task, task.image_shape(1))


def test_its_course_is_the_mean_loss_of_validation_images() -> None:
    task = DDPM(size=2, levels=(1,))
    task.image_shape(1)
    reals = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    latents = torch.randn(4, 4)
    networks, runtime = {"denoiser": Silent()}, Runtime.open("cpu", "fp32", 1)
    white = torch.ones(4, 1, 2, 2)
    expected = task.judge_loss(networks, white, latents, None)["denoising_loss"].mean()
    found = denoising_loss(task, networks, latents, reals, runtime)
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_a_short_training_learns() -> None:
    task = DDPM(**{**SMALL, "batch_size": 16, "learning_rate": 3e-3})
    shape = task.image_shape(1)
    images = torch.zeros(64, *shape, dtype=torch.uint8)
    images[:32, :, :16], images[32:, :, 16:] = 255, 255
    torch.manual_seed(0)
    settings = Settings(runtime=Runtime.open("cpu", "fp32", 1), seed=0, total_steps=60)
    trainer = Trainer(task, task.networks(shape), Batches(images, 16, 0), settings)

    def held_out() -> float:
        latents = task.latents(64, torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = task.judge_loss(trainer.networks, images / 127.5 - 1, latents, None)
        return found["denoising_loss"].mean().item()

    before = held_out()
    run(trainer, 60)
    assert held_out() < 0.7 * before


def test_export_is_refused_with_what_to_do(tmp_path: Path) -> None:
    task = DDPM(**SMALL)
    shape = task.image_shape(1)
    networks = task.networks(shape)
    options = {**SMALL, "levels": list(SMALL["levels"])}
    manifest = {
        "task": "ddpm", "data": "digits", "networks": ["denoiser"], "shape": list(shape),
        "config": {"task": {"name": "ddpm", "preset": "quick", **options}},
    }  # fmt: skip
    path = tmp_path / "model.safetensors"
    save_model(path, named_state(networks), manifest)
    with pytest.raises(ConfigError, match=r"again and again to make an image.*tombola sample"):
        exporting.export(path, "onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.slow
def test_a_search_by_weights_and_one_by_channels(tmp_path: Path, capsys, monkeypatch) -> None:
    import in_process

    in_process.use(monkeypatch)
    out = tmp_path / "out"
    words = [
        "find", "ddpm", "--data", "digits", "--method", "imp,early-bird", "--compress", "0.5",
        "--rounds", "1", "--rate", "0.5", "--seeds", "1", "--steps", "8", "--rewind", "2it",
        "--controls", "none", "--set", "judge.samples=8", "--set", "judge.validation_samples=4",
        "--set", "task.width=8", "--set", "task.levels=[1, 2]", "--set", "task.sampling_steps=3",
        "--set", "judge.sampling_seeds=1", "--set", "task.batch_size=8", "--device", "cpu",
        "--threads", "1", "--out", str(out),
    ]  # fmt: skip
    with in_process.Restored():
        code = cli.main(words)
        assert code == 0, capsys.readouterr().err
        rows = list(csv.DictReader((out / "results.csv").open()))
        assert {row["arm"] for row in rows} == {"dense", "ticket", "compact"}
        assert all(math.isfinite(float(row["value"])) for row in rows)
        kinds = {row["metric"].split("-")[0] for row in rows}
        assert {"fcd", "denoising_loss", "early_stopping_step", "confident"} <= kinds
        model = next((out / "models").rglob("compact-*.safetensors"))
        made = tmp_path / "images"
        assert cli.main(["sample", str(model), "--n", "2", "--out", str(made)]) == 0
    assert len(list(made.glob("0*.png"))) == 2
