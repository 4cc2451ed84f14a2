"""What is measured of a network: values on hand-made weights, and the judge trained as a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import helpers
import in_process
import standins
import tombola
from tombola.config.registry import file_sha256
from tombola.config.runtime import Runtime, rng
from tombola.data.batches import to_uint8
from tombola.data.grid import save_grid
from tombola.data.sources import load_images
from tombola.data.splits import Images
from tombola.engine import classifier, judging
from tombola.engine.judging import JudgedState, evaluate, open_judge
from tombola.errors import DamagedError
from tombola.metrics.downstream import class_shares
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.judge_files import shipped_judge
from tombola.metrics.rules import rule_of
from tombola.plan.judges import choose_classifier, choose_judge
from tombola.store.runs import Store
from tombola.tasks.adversarial import DCGAN
from tombola.tasks.autoencoding import VAE, LinearAE
from tombola.tasks.base import Task
from tombola.training.checkpoint import load_state, save_weights
from tombola.training.trainer import load_weights, under

TOY = Path(__file__).parent / "toy_task.py"
SHARED = Path(__file__).parents[2] / "shared" / "data"
SHARES = {"precision", "recall", "density", "coverage"}
SMALL = {"workers": 1, "threads": 1, "device": "cpu", "controls": "none", "rate": "0.5"}


class Level(nn.Module):
    """A network that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))
        self.drop = nn.Dropout(0.9)


class Constant(Task):
    """Images of one grey value, the network's number."""

    family = "autoencoder"
    size, channels = 8, 1

    def networks(self, shape):
        return {"n": Level()}

    def reconstruct(self, networks, images):
        return networks["n"].drop(torch.ones_like(images)) * networks["n"].level


class ConstantGAN(Constant):
    """Samples that are the number plus their first latent; its loss is the number."""

    family = "gan"
    latent = 3

    def __init__(self, **options):
        super().__init__(**options)
        self._seen = []

    def sample(self, networks, latents):
        self._seen.append(latents)
        return (networks["n"].level + latents[:, :1, None, None]).expand(-1, 1, 8, 8)

    def judge_loss(self, networks, images, latents, samples):
        return {"discriminator_loss": networks["n"].level.expand(len(images))}


class ConstantVAE(ConstantGAN):
    """Known parts of the ELBO; the posterior mean of the third unit does not move."""

    family = "vae"

    def judge_loss(self, networks, images, latents, samples):
        means = latents * torch.tensor([1.0, 0.2, 0.001])
        total = images.flatten(1).sum(1)
        return {"reconstruction": total, "kl": 2 * torch.ones(len(images)), "mean": means}


def images_of(reals, name="given"):
    digest = hashlib.sha256(reals.numpy().tobytes()).hexdigest()
    return Images(
        name=name,
        splits={"judge": reals},
        labels={"judge": None},
        classes=0,
        sha256=digest,
        note="",
    )


def judge_of(levels):
    """Step -> what loads the weights of a training at that step."""
    return {
        step: (lambda level=level: {"n.level": torch.tensor(float(level))})
        for step, level in levels.items()
    }


def config_of(**changes):
    config = {
        "samples": 10000,
        "sampling_seed": 0,
        "judge": None,
        "classifier": None,
        "grid": False,
        "data": {"shape": [1, 8, 8]},
    }
    return config | changes


def measured(task, reals, levels, **changes):
    runtime = Runtime(device=torch.device("cpu"))
    return evaluate(config_of(**changes), task, images_of(reals), runtime, judge_of(levels), {})[0]


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", (1, 8, 8)).splits["judge"]


def test_the_reconstruction_error_is_that_of_the_last_step(digits):
    result = measured(Constant(), digits, {16: -0.5, 20: 0.25})
    pixels = digits.double() / 127.5 - 1
    for step, level in (("16", -0.5), ("20", 0.25)):
        expected = float((pixels - level).square().mean())
        assert result["by_step"][step]["reconstruction_error"] == pytest.approx(expected, rel=1e-6)
    assert result["values"] == result["by_step"]["20"]
    assert (result["n"], result["n_of"], result["step"]) == (360, {}, 20)


def test_the_value_of_a_gan_is_the_median_of_its_last_five():
    levels = {21: 5, 22: 1, 23: 4, 24: 2, 25: 9}
    result = measured(ConstantGAN(), helpers.images(6), levels)
    assert [result["by_step"][str(step)]["discriminator_loss"] for step in levels] == [
        5,
        1,
        4,
        2,
        9,
    ]
    assert result["values"] == {"discriminator_loss": 4}
    assert result["step"] == 25


def test_a_gans_loss_is_of_the_first_images_and_says_of_how_many(monkeypatch):
    monkeypatch.setattr(judging, "BATCH", 2)
    monkeypatch.setattr(judging, "LOSS_IMAGES", 4)
    asked = []

    class Counted(ConstantGAN):
        def judge_loss(self, networks, images, latents, samples):
            asked.append(len(images))
            return {"discriminator_loss": images.mean((1, 2, 3))}

    reals = helpers.images(7)
    result = measured(Counted(), reals, {25: 0})
    assert asked == [2, 2]
    assert result["n"] == 7
    assert result["n_of"] == {"discriminator_loss": 4}
    first, _ = images_of(reals).first("judge", 4)
    expected = float((first.double() / 127.5 - 1).mean())
    assert result["values"]["discriminator_loss"] == pytest.approx(expected, rel=1e-5)


def test_more_samples_than_reals_and_fewer(monkeypatch):
    monkeypatch.setattr(judging, "BATCH", 4)
    reals = helpers.images(6, (1, 32, 32))
    spec, shape = {"source": "shipped", "data": "digits"}, {"shape": [1, 32, 32]}
    asked = []

    class Counted(ConstantVAE):
        def sample(self, networks, latents):
            return super().sample(networks, latents).repeat(1, 1, 4, 4)

        def reconstruct(self, networks, images):
            return torch.ones_like(images) * networks["n"].level

        def judge_loss(self, networks, images, latents, samples):
            asked.append((len(images), len(latents), None if samples is None else len(samples)))
            return super().judge_loss(networks, images, latents, samples)

    for fakes, seen in ((9, [(4, 4, 4), (2, 2, 2)]), (3, [(3, 3, 3)])):
        asked.clear()
        task = Counted()
        config = config_of(judge=spec, fakes=fakes, data=shape)
        given, runtime = images_of(reals, "digits"), Runtime(device=torch.device("cpu"))
        result, shown = evaluate(config, task, given, runtime, judge_of({5: 0}), {})
        assert len(shown) == fakes
        assert asked == seen
        assert sum(map(len, task._seen)) == fakes
        counts = {name.partition("-")[0]: n for name, n in result["n_of"].items()}
        # Shares of neighbours are of as many samples as reals, and need more than five.
        shares = dict.fromkeys(sorted(SHARES), 6) if fakes > 6 else {}
        own = ("reconstruction", "kl", "elbo", "active_units") if fakes == 3 else ()
        assert counts == {"fcd": fakes, "kcd": fakes, "cs": fakes, **dict.fromkeys(own, 3)}
        assert {name: result["n_of"].get(name, result["n"]) for name in shares} == shares
        assert (result["n"], result["reals"]) == (6, 6)


def test_a_class_sorted_folder_is_judged_by_all_of_its_classes(tmp_path):
    root = tmp_path / "images"
    for number in range(10):
        standins.make_folder(root / f"{number}", 25, size=(8, 8), colour=False)
        for place in (root / f"{number}").iterdir():
            Image.new("L", (8, 8), 25 * number).save(place)
    images = load_images(f"folder:{root}", (1, 8, 8))
    seen = []

    class Looking(Constant):
        def reconstruct(self, networks, images):
            seen.extend(((images[:, 0, 0, 0] + 1) * 127.5 / 25).round().int().tolist())
            return super().reconstruct(networks, images)

    runtime = Runtime(device=torch.device("cpu"))
    record, _ = evaluate(config_of(samples=20), Looking(), images, runtime, judge_of({1: 0}), {})
    classes = images.labels["judge"].unique().tolist()
    assert (record["reals"], len(images.splits["judge"])) == (20, 25)
    assert seen == images.first("judge", 20)[1].tolist()
    assert sorted(set(seen)) == classes
    assert len(images.labels["judge"][:10].unique()) < len(set(seen[:10]))


def test_the_parts_of_the_elbo_and_the_active_units():
    reals = torch.full((50, 1, 8, 8), 255, dtype=torch.uint8)
    result = measured(ConstantVAE(), reals, {4: 0, 5: 0.5})
    assert result["values"] == {
        "reconstruction": 64,
        "kl": 2,
        "elbo": -66,
        "active_units": 2,
        "reconstruction_error": 0.25,
    }


def test_a_vae_with_zero_weights_has_known_values():
    task = VAE(width=1, latent=2)
    reals = load_images("digits", (1, 32, 32)).splits["judge"]
    networks = task.networks((1, 32, 32))
    zeros = {
        f"{name}.{key}": torch.zeros_like(value)
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    config = config_of(data={"shape": [1, 32, 32]})
    runtime = Runtime(device=torch.device("cpu"))
    result, _ = evaluate(config, task, images_of(reals), runtime, {9: lambda: zeros}, {})
    pixels = reals.double() / 127.5 - 1  # the decoder's tanh(0) is mid-grey
    values = result["values"]
    assert values["kl"] == 0
    assert values["active_units"] == 0
    assert values["reconstruction_error"] == pytest.approx(float(pixels.square().mean()), rel=1e-6)
    assert values["elbo"] == pytest.approx(-float(pixels.square().sum((1, 2, 3)).mean()), rel=1e-6)


def test_at_most_the_asked_number_of_images_is_judged(digits):
    result = measured(Constant(), digits, {1: 0.0}, samples=7)
    pixels = images_of(digits).first("judge", 7)[0].double() / 127.5 - 1
    assert (result["n"], result["reals"]) == (7, 7)
    assert result["values"]["reconstruction_error"] == pytest.approx(float(pixels.square().mean()))


def test_all_networks_are_judged_on_the_same_latents():
    task, reals = ConstantGAN(), helpers.images(9)
    for level, seed in ((0.0, 0), (5.0, 0), (0.0, 1)):
        measured(task, reals, {1: level, 2: level + 1}, sampling_seed=seed)
    first, second, third, fourth, fifth, sixth = task._seen
    assert first.shape == (9, 3)
    assert all(torch.equal(first, each) for each in (second, third, fourth))
    assert torch.equal(fifth, sixth)
    assert not torch.equal(first, fifth)
    assert torch.equal(first, torch.randn(9, 3, generator=rng(0, "judge-latents", 0)))
    assert torch.equal(fifth, torch.randn(9, 3, generator=rng(0, "judge-latents", 1)))


def test_parts_of_a_batch_are_joined_in_order(digits, monkeypatch):
    task = ConstantVAE()
    whole = measured(task, digits, {1: 0.5})["values"]
    monkeypatch.setattr(judging, "BATCH", 100)
    parts = measured(task, digits, {1: 0.5})["values"]
    assert parts == pytest.approx(whole, rel=1e-9)
    assert [len(latents) for latents in task._seen] == [360, 100, 100, 100, 60]
    assert torch.equal(torch.cat(task._seen[1:]), task._seen[0])


def test_a_state_that_is_gone_is_never_taken_for_another(tmp_path):
    store, final = Store(tmp_path), {"n.level": torch.tensor(2.0)}
    part = store.begin("run")
    save_weights(part / "final.safetensors", final)
    save_weights(part / "judge-21.safetensors", {"n.level": torch.tensor(1.0)})
    store.commit("run", {"kind": "train"})
    assert JudgedState(store, "run", 25, 25)() == final
    assert JudgedState(store, "run", 21, 25)()["n.level"] == 1
    with pytest.raises(DamagedError, match=r"judge-22\.safetensors is damaged or gone"):
        JudgedState(store, "run", 22, 25)()


class Mirror(Task):
    """A GAN without fault: its samples are the images that it is judged by."""

    family = "gan"
    size, channels, latent = 32, 1, 2

    def __init__(self, reals):
        super().__init__()
        self._reals = reals

    def networks(self, shape):
        return {"n": Level()}

    def sample(self, networks, latents):
        return self._reals.float() / 127.5 - 1


@pytest.mark.parametrize("noise", [False, True])
def test_distances_bear_the_judges_name_and_are_none_for_the_reals_themselves(noise):
    reals = load_images("digits", (1, 32, 32)).splits["judge"][:200]
    fakes = helpers.images(200, (1, 32, 32)) if noise else reals
    spec = {"source": "shipped", "data": "digits"}
    judge = open_judge(spec, "digits", None)
    assert judge.sha256 == open_judge(spec, "digits", None).sha256
    runtime = Runtime(device=torch.device("cpu"))
    result, _ = evaluate(
        config_of(judge=spec, data={"shape": [1, 32, 32]}),
        Mirror(fakes),
        images_of(reals, "digits"),
        runtime,
        judge_of({1: 0}),
        {},
    )
    values = result["values"]
    fcd, kcd, cs = (f"{kind}-digits-{judge.sha256[:8]}" for kind in ("fcd", "kcd", "cs"))
    shares = ["precision", "recall", "density", "coverage"]
    assert list(values) == [fcd, kcd, f"{kcd}-error", *shares, cs]
    if noise:
        assert values[fcd] > 10
        assert values[kcd] > 0.1
        assert values[cs] < 4
        assert values["coverage"] < 0.1
    else:
        assert values[fcd] == pytest.approx(0, abs=1e-3)
        assert values[kcd] < 0  # unbiased: the reals are nearer than a fresh sample
        assert 9 < values[cs] <= 10
        assert [values[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_features_of_reals_are_kept_for_their_own_data_only(monkeypatch):
    judge = open_judge({"source": "shipped"}, "digits", None)
    seen = []

    class Counting:
        sha256, metrics = judge.sha256, judge.metrics

        def features(self, images, *, probabilities=True):
            seen.append(len(images))
            return judge.features(images, probabilities=probabilities)

    judging._kept.cache_clear()
    first, second = helpers.images(30, (1, 32, 32)), helpers.images(30, (1, 32, 32)) // 2
    for reals, name in ((first, "a"), (first, "a"), (second, "b")):
        seen_by = judging.Seen(Counting(), Counting()).add(first[:20])
        judging._Eye(Counting(), Counting(), reals, None, name).look(seen_by, None)
    judging._kept.cache_clear()
    assert seen == [20, 30, 20, 20, 30]


def numbered(n, channels):
    """Images of 2x3 pixels, each of its own value (and channel)."""
    values = torch.arange(n * channels, dtype=torch.uint8).reshape(n, channels, 1, 1)
    return values.expand(n, channels, 2, 3).contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_the_images_in_reading_order(tmp_path, channels):
    save_grid(tmp_path / "g.png", numbered(5, channels), columns=4)
    sheet = np.asarray(Image.open(tmp_path / "g.png")).reshape(4, 12, channels)
    for index in range(8):
        row, column = divmod(index, 4)
        part = sheet[2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
        expected = [index * channels + c if index < 5 else 0 for c in range(channels)]
        assert (part == expected).all()


def test_the_images_that_come_back_are_those_of_the_last_step():
    runtime = Runtime(device=torch.device("cpu"))
    levels = judge_of({4: -9, 5: 0})
    _, made = evaluate(
        config_of(), ConstantGAN(), images_of(helpers.images(40)), runtime, levels, {}
    )
    assert (made.shape, made.dtype) == ((40, 1, 8, 8), torch.uint8)
    latents = torch.randn(40, 3, generator=rng(0, "judge-latents", 0))[:, 0]
    expected = ((latents.clamp(-1, 1) + 1) * 127.5).round()
    assert (made[:, 0, 0, 0] - expected).abs().max() <= 1


def test_which_judge_is_taken(tmp_path, monkeypatch):
    digits = load_images("digits", (1, 32, 32))
    mine = images_of(helpers.images(30), "folder-mine")
    assert choose_judge(LinearAE(), digits) is None
    shipped = shipped_judge("digits")
    assert choose_judge(VAE(), digits) == {
        "source": "shipped",
        "data": "digits",
        "sha256": file_sha256(shipped),
    }
    assert choose_judge(DCGAN(), mine) == {"source": "run"}
    (tmp_path / "inception.pt").write_bytes(b"")
    monkeypatch.setenv("TOMBOLA_INCEPTION", str(tmp_path / "inception.pt"))
    assert choose_judge(DCGAN(), mine) == choose_judge(VAE(), digits) == {"source": "inception"}
    assert choose_judge(LinearAE(), digits) is None


RESNET = {"source": "run", "network": "resnet18"}


def test_which_classifier_is_taken(tmp_path, monkeypatch):
    digits = load_images("digits", (1, 32, 32))
    shipped = choose_judge(VAE(), digits)
    for task in (LinearAE(), VAE(), DCGAN()):
        assert choose_classifier(task, digits, "auto") == shipped
        assert choose_classifier(task, digits, "none") is None
        unlabelled = images_of(digits.splits["judge"])
        assert choose_classifier(task, unlabelled, "auto") is None
        assert choose_classifier(task, digits, "resnet18") == RESNET
        for asked in ("judge", "resnet18"):
            with pytest.raises(tombola.ConfigError, match="no labels to learn from; leave it"):
                choose_classifier(task, unlabelled, asked)
    other = dataclasses.replace(digits, name="other")
    # An autoencoder alone needs no judge: an hour of training one has to be asked for.
    assert choose_classifier(LinearAE(), other, "auto") is None
    assert choose_classifier(LinearAE(), other, "judge") == {"source": "run"}
    assert choose_classifier(VAE(), other, "auto") == {"source": "run"}
    (tmp_path / "inception.pt").write_bytes(b"")
    monkeypatch.setenv("TOMBOLA_INCEPTION", str(tmp_path / "inception.pt"))
    assert choose_classifier(VAE(), other, "auto") is None
    assert choose_classifier(VAE(), digits, "auto") == shipped


class Repeater(Task):
    """An autoencoder without fault, but for the images that it turns to black."""

    family = "autoencoder"
    size, channels = 8, 1

    def networks(self, shape):
        return {"n": Level()}

    def reconstruct(self, networks, images):
        again = images.clone()
        again[int(networks["n"].level) :] = -1
        return again


def test_the_accuracy_of_reconstructions_is_that_of_their_labels():
    digits = load_images("digits", (1, 8, 8))
    reals, labels = digits.first("judge", 100)
    spec = {"source": "shipped", "data": "digits"}
    classifier = open_judge(spec, "digits", None)
    _, probabilities = classifier.features(reals)
    right = probabilities.argmax(1) == labels.numpy()
    _, of_black = classifier.features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    guessed = (labels[60:100] == int(of_black[0].argmax())).sum()
    runtime = Runtime(device=torch.device("cpu"))
    result, _ = evaluate(
        config_of(classifier=spec, samples=100),
        Repeater(),
        digits,
        runtime,
        judge_of({1: 100, 2: 60}),
        {},
    )
    assert result["by_step"]["1"]["accuracy"] == right.mean() > 0.95
    assert result["values"]["accuracy"] == (right[:60].sum() + int(guessed)) / 100
    assert set(result["values"]) == {"reconstruction_error", "accuracy"}


def test_class_shares_literal():
    probabilities = np.array([[0.95, 0.05, 0], [0.9, 0.1, 0], [0.2, 0.3, 0.5], [0, 0.08, 0.92]])
    assert class_shares(probabilities) == {
        "confident": 0.5,  # 0.9 itself is not above 0.9
        "class-00": 0.5,
        "class-01": 0,
        "class-02": 0.5,
    }
    assert class_shares(np.full((3, 101), 1 / 101)) == {"confident": 0}


@pytest.mark.parametrize("same", [True, False])
def test_samples_of_a_gan_are_told_apart_by_class(same):
    """In one look where the judge is the classifier, in one more where it is Inception."""
    images = load_images("digits", (1, 32, 32))
    reals = images.splits["judge"][:300]
    classifier = open_judge({"source": "shipped"}, "digits", None)
    looks = []

    class Looking:
        sha256, metrics = classifier.sha256 if same else "other", classifier.metrics

        def features(self, images, *, probabilities=True):
            looks.append(probabilities)
            return classifier.features(images, probabilities=probabilities)

    judging._kept.cache_clear()
    eye = judging._Eye(Looking(), classifier, reals, images.labels["judge"], "reals")
    values, n_of = eye.look(judging.Seen(Looking(), classifier).add(reals), None)
    judging._kept.cache_clear()
    assert set(n_of.values()) == {300}
    guesses = classifier.features(reals)[1].argmax(1)
    for number in range(10):
        assert values[f"class-{number:02d}"] == (guesses == number).mean()
    assert values["confident"] > 0.9
    assert looks == [True, False]
    assert "accuracy" not in values


def test_the_judges_length_is_asked_or_by_its_recipe(tmp_path, monkeypatch):
    lengths = []

    def run(trainer, checkpoint, progress):
        lengths.append(trainer.settings.total_steps)
        return 0.0

    monkeypatch.setattr(classifier, "_run", run)
    monkeypatch.setattr(classifier, "gate", lambda *_, **__: {"passed": True, "reasons": []})
    images = load_images("digits", (1, 32, 32))
    for steps in (7, 0):
        assert classifier.train_judge({"steps": steps}, images, tmp_path)["steps"] == lengths[-1]
    # 60 epochs of 1,200 / 64 = 19 steps are fewer than the least.
    assert lengths == [7, 1500]
    monkeypatch.setattr(classifier, "MIN_STEPS", 0)
    classifier.train_judge({"steps": 0}, images, tmp_path)
    assert lengths[-1] == 60 * 19


def search(task, out, monkeypatch, **options):
    in_process.use(monkeypatch)
    with in_process.Restored():
        return tombola.find(f"{TOY}:{task}", out=out, **SMALL, **options)


def records(out):
    store = Store(out / "store")
    return [store.record(name) for name in store.finished()]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A GAN on a folder of noise: its judge is a run of the search, and cannot be a good one."""
    root = tmp_path_factory.mktemp("judge")
    data = f"folder:{standins.make_folder(root / 'images', 60, size=(8, 8), colour=False)}"
    options = {"steps": 25, "rounds": 1, "seeds": 1, "rewind": "2it", "data": data}
    with pytest.MonkeyPatch.context() as patch:
        settings = {"judge": {"steps": 3}}
        return search("TinyGAN", root / "out", patch, settings=settings, **options)


def test_data_without_a_judge_train_one_as_a_run(unlabelled):
    found = [record for record in records(unlabelled.out) if record["kind"] == "judge"]
    (record,) = found
    assert (record["steps"], record["labelled"], record["data"]) == (3, False, "folder-images")
    assert "accuracy" not in record
    names = {row.metric for row in unlabelled.rows}
    kinds = {name.partition("-")[0] for name in names}
    assert kinds == {"fcd", "kcd", "cs", "early_stopping_step", *SHARES}
    of_judge = names - SHARES - {"early_stopping_step"}
    assert all(name.split("-")[1:3] == ["folder", "images"] for name in of_judge)
    # Six images judge, six validate; of the distance and the score five times as many samples.
    of_more = {row.n for row in unlabelled.rows if row.metric.startswith(("fcd", "kcd", "cs"))}
    assert of_more == {30}
    assert {row.n for row in unlabelled.rows if not row.metric[1:].startswith(("cd", "s-"))} == {6}


def test_a_judge_that_fails_its_gate_gives_no_verdict(unlabelled):
    summary = unlabelled.summary
    judge = summary["judge"]
    assert (judge["source"], judge["labelled"], judge["steps"]) == ("run", False, 3)
    assert judge["gate"]["passed"] is False
    assert judge["gate"]["reasons"]
    assert summary["primary"].startswith("fcd-folder-images-")
    judged = {name.partition("-")[0] for name in summary["verdicts"]}
    assert judged == {"fcd", "kcd", "cs", *SHARES}
    for metric, verdict in summary["verdicts"].items():
        assert verdict["state"] == "undecided"
        assert verdict["reason"] == "judge failed its gate"
        assert (verdict["sparsity"], verdict["bracket"]) == (None, [None, None])
        assert verdict["sentence"].startswith("No verdict on "), metric
        assert ": its judge failed its gate (" in verdict["sentence"]


def test_the_judge_is_trained_once_for_a_longer_search(unlabelled, monkeypatch):
    config = json.loads((unlabelled.out / "config.json").read_text())
    data = config["config"]["data"]["name"]
    options = {"steps": 25, "rounds": 1, "seeds": 2, "rewind": "2it", "data": data}
    settings = {"judge": {"steps": 3}}
    monkeypatch.setattr(classifier, "_run", None)  # a second training of the judge would fail
    more = search("TinyGAN", unlabelled.out, monkeypatch, settings=settings, **options)
    assert more.summary["runs"] == {"trained": 2, "reused": 2, "diverged": 0}


def test_labels_give_the_judge_classes(tmp_path):
    for index, name in enumerate(("black", "white")):
        place = tmp_path / "images" / name
        place.mkdir(parents=True)
        for number in range(25):
            picture = np.full((8, 8), 255 * index, np.uint8)
            picture[number % 8, number // 8] = 128
            Image.fromarray(picture).save(place / f"{number}.png")
    images = load_images(f"folder:{tmp_path / 'images'}", (1, 32, 32))
    with in_process.Restored():
        record = classifier.train_judge({"steps": 20}, images, tmp_path)
    assert record["labelled"]
    assert record["accuracy"] == record["gate"]["accuracy"] == 1.0
    assert (tmp_path / "judge.safetensors").is_file()


def test_the_judges_own_noise_is_measured_on_one_dense_network(tmp_path, monkeypatch):
    options = {"steps": 25, "rounds": 1, "seeds": 1, "rewind": "2it"}
    settings = {"judge": {"samples": 40, "sampling_seeds": 4}}
    result = search("TinyGAN", tmp_path / "out", monkeypatch, settings=settings, **options)
    dense = [
        record
        for record in records(tmp_path / "out")
        if record["kind"] == "evaluate" and record["label"] == "judge dense, seed 0"
    ]
    assert sorted(record["config"]["sampling_seed"] for record in dense) == [0, 1, 2, 3]
    assert [record["config"]["grid"] for record in dense].count(True) == 1
    spread = result.summary["sampling_sd"]
    kinds = {name.partition("-")[0] for name in spread}
    assert kinds == {"fcd", "kcd", "cs", "confident", "class", *SHARES}
    for metric, value in spread.items():
        values = [record["values"][metric] for record in dense]
        assert value == pytest.approx(statistics.stdev(values))
        if metric[1:3] == "cd":
            assert value > 0
    # What training images score instead, by nothing that generates.
    floor = next(each for each in records(tmp_path / "out") if each["kind"] == "floor")
    assert result.summary["floor"] == floor["values"]
    assert floor["n"] == 40
    assert result.summary["judged"] == {"reals": 40, "fakes": 40, "floor": 40}
    fcd = result.summary["primary"]
    value = next(each["values"] for each in dense if each["config"]["sampling_seed"] == 0)[fcd]
    least = floor["values"][fcd]
    assert result.summary["above_floor"][fcd] == pytest.approx(value - least)
    # What it would get without training: as drawn, and at its rewind point.
    (early,) = (each for each in records(tmp_path / "out") if each["kind"] == "trivial")
    assert sorted(early["by_step"]) == ["0", "2"]
    assert result.summary["trivial"][fcd] == min(row[fcd] for row in early["by_step"].values())
    assert set(result.summary["trivial"]) == {
        name for name in spread if rule_of(name) and not name.endswith("-error")
    }
    assert early["by_step"]["2"][fcd] == pytest.approx(rewound_fcd(tmp_path / "out"), rel=1e-6)
    # Of a GAN the course on validation alone has four fifths of the way.
    (course,) = (each["course"]["by_step"] for each in dense if "course" in each)
    share = abs(course["25"] - course["20"]) / course["20"]
    assert result.summary["settling"] == {fcd: {"0": pytest.approx(share)}}
    # Only the first sampling seed is in the table.
    assert len(result.rows) == 2 * (len(spread) + 1)


def rewound_fcd(out):
    """The Frechet distance of the generator as the dense run had it at the rewind point."""
    store = Store(out / "store")
    path = next(store.path(n) for n in store.finished() if store.record(n)["kind"] == "rewind")
    task, images = helpers.TinyGAN(), load_images("digits", (1, 8, 8))
    networks = task.networks((1, 8, 8))
    load_weights(networks, under(load_state(path / "state.safetensors")[0], "network."))
    networks["generator"].eval()
    latents = judging.latents_of(task, 40, 0)
    with torch.no_grad():
        samples = to_uint8(task.sample(networks, latents))
    judge = open_judge({"source": "shipped"}, "digits", None)
    seen = (judge.features(each)[0] for each in (images.first("judge", 40)[0], samples))
    return frechet_distance(*map(Gaussian.of, seen))


def test_the_floor_is_the_distance_of_training_images():
    digits = load_images("digits", (1, 32, 32))
    judge = open_judge({"source": "shipped"}, "digits", None)
    found = judging.floor_of(judge, digits, 300, 500)
    chosen = torch.randperm(1200, generator=rng(0, "floor"))[:500]
    features = [
        judge.features(images, probabilities=False)[0]
        for images in (digits.first("judge", 300)[0], digits.splits["train"][chosen])
    ]
    expected = frechet_distance(*map(Gaussian.of, features))
    assert found["values"][judge.metrics["frechet"]] == pytest.approx(expected, rel=1e-9)
    assert (found["n"], found["reals"]) == (500, 300)
    # Two samples of one distribution: not 0, but far below what a corruption makes of them.
    noise = torch.randint(0, 256, digits.splits["train"][:300].shape, dtype=torch.uint8)
    few = dataclasses.replace(digits, splits={**digits.splits, "train": noise})
    far = judging.floor_of(judge, few, 360, 360)
    assert far["n"] == 300
    assert 0 < 40 * expected < far["values"][judge.metrics["frechet"]]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="../shared/data has no mnist")
def test_the_two_halves_of_mnist_do_not_raise_its_floor():
    """The first 5,000 of its test images are the cleaner half: in their order it is 0.185."""
    images = load_images("mnist", (1, 32, 32), data_dir=SHARED)
    judge = open_judge({"source": "shipped"}, "mnist", None)
    found = judging.floor_of(judge, images, 5000, 5000)
    assert (found["n"], found["reals"]) == (5000, 5000)
    assert 0.05 < found["values"][judge.metrics["frechet"]] < 0.09


def test_resnet18_is_trained_beside_the_judge_and_says_what_images_are_of(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "MIN_STEPS", 1)
    options = {"steps": 25, "rounds": 1, "seeds": 1}
    settings = {"judge": {"samples": 40, "sampling_seeds": 1, "downstream": "resnet18", "steps": 2}}
    result = search("TinyGAN", tmp_path / "out", monkeypatch, settings=settings, **options)
    found = records(tmp_path / "out")
    seeds = {each["config"]["sampling_seed"] for each in found if each["kind"] == "evaluate"}
    assert seeds == {0, 1, 2}  # fewer tell nothing of the judge's noise, whatever is asked
    assert result.summary["sampling_sd"]
    (trained,) = (record for record in found if record["kind"] == "judge")
    assert trained["config"]["network"] == "resnet18"
    # It compares nothing, so it need not climb; what it gets wrong counts.
    assert set(trained["gate"]) == {"accuracy", "passed", "reasons"}
    assert trained["gate"]["passed"] == (trained["accuracy"] >= 0.95)
    for record in found:
        if record["kind"] == "evaluate":
            assert set(record["parents"]) == {"train", "classifier"}
    assert result.summary["classifier"]["network"] == "resnet18"
    assert result.summary["judge"]["source"] == "shipped"


def test_convergence_is_the_change_over_the_last_fifth(tmp_path, monkeypatch):
    options = {"steps": 25, "rounds": 2, "seeds": 2, "rewind": "2it"}
    result = search("TinyAE", tmp_path / "out", monkeypatch, **options)
    changes = {}
    for record in records(tmp_path / "out"):
        if record["kind"] == "evaluate":
            assert sorted(record["by_step"]) == ["20", "25"]
            early, late = (record["by_step"][s]["reconstruction_error"] for s in ("20", "25"))
            changes.setdefault(record["label"].partition(",")[0], []).append(late / early - 1)
    mean = {label: statistics.fmean(values) for label, values in changes.items()}
    assert result.summary["convergence"] == pytest.approx(
        {
            "imp-all-r2/dense-round00": mean["judge dense"],
            "imp-all-r2/ticket-round02": mean["judge ticket of level 2"],
        }
    )
    assert mean["judge dense"] < 0
    dense = [r for r in records(tmp_path / "out") if r["label"].startswith("judge dense")]
    ends = [[r["course"]["by_step"][step] for step in ("20", "25")] for r in dense]
    found = result.summary["settling"]
    assert sorted(found["reconstruction_error"].values()) == pytest.approx(
        sorted(abs(after - before) / before for before, after in ends)
    )
    assert set(found["accuracy"]) == {"0", "1"}
    assert set(result.summary["trivial"]) == {"reconstruction_error", "accuracy"}
    assert result.summary["sampling_sd"] == {}
    assert result.summary["judge"] is None
    assert result.summary["classifier"]["source"] == "shipped"
