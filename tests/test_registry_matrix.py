"""Every task on every data source: a step, save, load, prune, resume, sample, judge.

The sources are stand-ins in each source's own file layout; the judge is a toy of random weights.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

import standins
from helpers import run, same
from tombola.config.registry import DATA, TASKS
from tombola.config.runtime import Runtime, seed_everything
from tombola.data.batches import Batches
from tombola.data.sources import load_images, native_channels
from tombola.engine.judging import evaluate
from tombola.metrics.features import save_judge
from tombola.models.classifier import Classifier
from tombola.sparsity.gates import opened
from tombola.sparsity.masks import count, kept_count, prunable
from tombola.sparsity.select import top
from tombola.tickets.ticket import Ticket, load_ticket, save_ticket
from tombola.training.checkpoint import load_state, load_weights_file, save_state, save_weights
from tombola.training.learned import MASK_TRAINERS
from tombola.training.trainer import Settings, Trainer, named_state

SMALL = {"width": 4, "batch_size": 4}
SAMPLES = 8
SOURCES = [*DATA.names(), "folder"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A data directory with a stand-in for each source."""
    root = tmp_path_factory.mktemp("sources")
    standins.make_mnist(root)
    standins.make_cifar10(root)
    standins.make_celeba(root)
    standins.make_folder(root / "folder", 60, size=(20, 30))
    return root


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    """A toy judge: a classifier as it was drawn."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_judge(path, Classifier(3, 10, 4).eval(), {"data": "toy"})
    return path


class Cycle:
    """One task on one source, from images to numbers."""

    def __init__(self, name: str, source: str, size: int, sources: Path) -> None:
        spec = f"folder:{sources / 'folder'}" if source == "folder" else source
        kind = TASKS.load(name)
        preset = {k: v for k, v in kind.presets["quick"].items() if k not in ("steps", "epochs")}
        self.options = {**preset, **SMALL} | ({"size": size} if size else {})
        self.task = kind(**self.options)
        self.shape = self.task.image_shape(native_channels(spec, sources))
        self.images = load_images(spec, self.shape, data_dir=sources)
        self.runtime = Runtime.open("cpu", "fp32", 1)

    def trainer(self, masks=None) -> Trainer:
        seed_everything(0, "init")
        networks = self.task.networks(self.shape)
        batches = Batches(self.images.splits["train"], self.task.batch_size, 0)
        settings = Settings(runtime=self.runtime, seed=0, total_steps=4)
        return Trainer(self.task, networks, batches, settings, masks)

    def judged(self, weights: Path, judge: Path) -> dict:
        config = {
            "samples": SAMPLES,
            "sampling_seed": 0,
            "judge": {"source": "run"} if self.task.latent else None,
            "classifier": {"source": "run"} if self.images.classes else None,
            "data": {"shape": list(self.shape)},
        }
        judges = {"judge": judge, "classifier": judge}
        states = {4: lambda: load_weights_file(weights)}
        record, made = evaluate(config, self.task, self.images, self.runtime, states, judges)
        assert made.dtype == torch.uint8
        assert made.shape == (min(SAMPLES, record["n"]), *self.shape)
        return record["values"]


def expected_metrics(cycle: Cycle) -> set[str]:
    family, labelled = cycle.task.family, cycle.images.classes > 0
    reconstructs = family in ("autoencoder", "vae")
    held_out = {"gan": {"discriminator_loss"}, "diffusion": {"denoising_loss"}}
    found = set(held_out.get(family, {"reconstruction_error"}))
    found |= {"accuracy"} if labelled and reconstructs else set()
    found |= {"elbo", "kl", "reconstruction", "active_units"} if family == "vae" else set()
    if family != "autoencoder":
        found |= {"fcd", "kcd", "cs", "precision", "recall", "density", "coverage"}
    return found | ({"confident", "class"} if labelled and not reconstructs else set())


def check(cycle: Cycle, judge: Path, folder: Path) -> None:
    dense = run(cycle.trainer(), 1)
    save_state(folder / "state.safetensors", dense)
    again = cycle.trainer()
    again.resume(*load_state(folder / "state.safetensors"))
    assert same(run(dense, 2).state()[0], run(again, 2).state()[0])

    pool = prunable(dense.networks)
    total = sum(weight.numel() for weight in pool.values())
    keep = kept_count(total, "0.4", 2)
    masks = top({name: weight.detach().abs() for name, weight in pool.items()}, keep)
    start = load_state(folder / "state.safetensors")[0]
    weights = {k.removeprefix("network."): v for k, v in start.items() if k.startswith("network.")}
    save_ticket(folder / "ticket.safetensors", Ticket(masks, weights))
    ticket = load_ticket(folder / "ticket.safetensors")
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == keep

    pruned = cycle.trainer(ticket.masks)
    state = {f"network.{name}": value for name, value in ticket.weights.items()}
    pruned.rewind(state, {"step": 1, "scalars": {}, "log": []}, optimizer=False)
    run(pruned, 4)
    kept = sum(int((weight != 0).sum()) for weight in prunable(pruned.networks).values())
    assert kept <= keep
    save_weights(folder / "final.safetensors", pruned.judged_weights())

    values = cycle.judged(folder / "final.safetensors", judge)
    kinds = {name.split("-")[0] for name in values}
    assert kinds == expected_metrics(cycle)
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_on_every_source(name, source, sources, judge, tmp_path):
    check(Cycle(name, source, 0, sources), judge, tmp_path)


@pytest.mark.parametrize("name", sorted(set(TASKS.names()) - {"linear-ae"}))
def test_every_convolutional_task_at_64_pixels(name, sources, judge, tmp_path):
    cycle = Cycle(name, "celeba", 64, sources)
    assert cycle.shape == (3, 64, 64)
    check(cycle, judge, tmp_path)


@pytest.mark.parametrize("name", TASKS.names())
def test_gates_multiply_the_weights_of_every_task_and_leave_nothing_behind(name, sources):
    cycle = Cycle(name, "digits", 0, sources)
    plain = cycle.trainer()
    pool = prunable(plain.networks)
    keep = sum(weight.numel() for weight in pool.values()) // 10
    rest = plain.networks, plain.batches, plain.settings
    made = MASK_TRAINERS["gates"](cycle.task, *rest, pool, keep)
    before = {key: (id(p), str(p.shape)) for key, p in leaves_of(made)}
    first = {key: gate.clone() for key, gate in made.gates.items()}
    run(made, 2)
    assert all(not torch.equal(gate, first[key]) for key, gate in made.gates.items())
    assert {key: (id(p), str(p.shape)) for key, p in leaves_of(made)} == before
    multiplied = copy.deepcopy(made.networks)
    with torch.no_grad():
        for key, leaf in prunable(multiplied).items():
            leaf.mul_(opened(made.gates[key], made._beta, made.b))
    for turn in cycle.task.turns:
        drawn = made._images(turn, 0)
        losses = []
        for loss in (made._loss, lambda t, x: cycle.task.loss(t.name, multiplied, x)):
            seed_everything(0, "again")
            found = loss(turn, drawn)
            losses.append(found["loss"] if isinstance(found, dict) else found)
        torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-4)
    # The statistics and singular vectors of the pass are the gated ones.
    ours, theirs = named_state(made.networks), named_state(multiplied)
    for key in ours.keys() - pool.keys():
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-4)
    assert count(made.mask()) == (keep, sum(weight.numel() for weight in pool.values()))


def leaves_of(trainer):
    """Every parameter by its own name, not the plain one: what wraps a network would show."""
    return [
        (f"{name}.{key}", parameter)
        for name, network in trainer.networks.items()
        for key, parameter in network.named_parameters()
    ]
