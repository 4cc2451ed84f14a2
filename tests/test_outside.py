"""What a file outside the package can bring: a criterion from gradients, labels, an executor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import in_process
import tombola
from tombola import api
from tombola.cli import command_line as cli
from tombola.config.registry import EXECUTORS
from tombola.config.runtime import Runtime, seed_everything
from tombola.data.batches import Batches, LabelledBatches
from tombola.engine import search
from tombola.errors import ConfigError
from tombola.plan.setting import make_task
from tombola.sparsity.masks import prunable
from tombola.sparsity.select import top
from tombola.store.runs import Store
from tombola.tasks.base import Task
from tombola.training.checkpoint import load_weights_file
from tombola.training.trainer import Settings, Trainer, load_weights

TAYLOR = '''
"""Taylor scores: how much the loss would change, to first order, if a weight went."""

import torch


def taylor(params, loss, masks, seed):
    """|w dL/dw|, each network by its own loss; Molchanov et al. 2017, equation 7, of weights."""
    scores = {}
    for network in sorted({name.split(".")[0] for name in params}):
        own = {name: w for name, w in params.items() if name.startswith(network + ".")}
        slopes = torch.autograd.grad(loss(network), list(own.values()))
        scores |= {name: (own[name] * g).abs() for name, g in zip(own, slopes)}
    return scores
'''
CONDITIONAL = '''
"""An autoencoder whose decoder is told what the image is of."""

import torch
from torch import nn

import tombola


class Decoder(nn.Linear):
    def forward(self, code):
        return super().forward(code).tanh().unflatten(1, (1, 8, 8))


class Told(tombola.Task):
    family = "autoencoder"
    size, channels, classes = 8, 1, 10
    presets = {"quick": {"steps": 6}, "paper": {"steps": 6}}

    def networks(self, shape):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
        return {"encoder": encoder, "decoder": Decoder(12 + self.classes, 64)}

    def make(self, networks, images, labels):
        told = nn.functional.one_hot(labels, self.classes).float()
        return networks["decoder"](torch.cat([networks["encoder"](images), told], 1))

    def loss(self, turn, networks, images, labels):
        return (self.make(networks, images, labels) - images).square().mean()

    def reconstruct(self, networks, images):
        return self.make(networks, images, torch.zeros(len(images), dtype=torch.int64))
'''
DCGAN = {"width": 4, "latent": 4, "batch_size": 8}
SMALL = {
    "data": "digits", "steps": 6, "rounds": 1, "rate": "0.5", "seeds": 1, "rewind": "2it",
    "controls": "none", "threads": 1, "workers": 1, "device": "cpu",
}  # fmt: skip
JUDGE = {"samples": 20, "validation_samples": 0, "sampling_seeds": 1, "downstream": "none"}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    in_process.use(monkeypatch)
    monkeypatch.setattr(api, "write_report", lambda out: None)
    with in_process.Restored():
        yield


def find(out, task, options=(), **more):
    settings = {"task": dict(options), "judge": JUDGE, "prune": more.pop("criterion", {})}
    return tombola.find(task, out=out, settings=settings, **{**SMALL, **more})


def run_of(out, kind):
    """The folder of the one run of a kind."""
    store = Store(out / "store")
    (name,) = (n for n in store.finished() if store.record(n)["kind"] == kind)
    return store.path(name), store.record(name)


def test_a_criterion_from_gradients_finds_a_gan_s_tickets(tmp_path):
    file = tmp_path / "taylor.py"
    file.write_text(TAYLOR)
    out = tmp_path / "out"
    criterion = {"criterion": f"{file}:taylor"}
    result = find(out, "dcgan", DCGAN, criterion=criterion)
    # The same by hand: the loss of each turn on the first batch, at the weights dense ended with.
    task, _ = make_task(tombola.config.sections.build({"task": {"name": "dcgan", **DCGAN}}))
    images = tombola.data.sources.load_images("digits", task.image_shape(1)).splits["train"]
    real = Batches(images, task.batch_size, 0).batch(0)
    networks = task.networks(task.image_shape(1))
    for network in networks.values():
        network.to(memory_format=torch.channels_last)
    dense = next(
        Store(out / "store").path(n)
        for n in Store(out / "store").finished()
        if Store(out / "store").record(n)["label"] == "dense, seed 0"
        and Store(out / "store").record(n)["kind"] == "train"
    )
    load_weights(networks, load_weights_file(dense / "final.safetensors"))
    generator, discriminator = networks["generator"], networks["discriminator"]
    pool, scores = prunable(networks), {}
    for name in ("discriminator", "generator"):
        load_weights(networks, load_weights_file(dense / "final.safetensors"))
        for role, network in networks.items():
            network.requires_grad_(role == name)
        seed_everything(0, f"scores-{name}", 0)
        if name == "discriminator":
            with torch.no_grad():
                fakes = generator(torch.randn(task.batch_size, task.latent))
            loss = functional.softplus(-discriminator(real)).mean()
            loss = loss + functional.softplus(discriminator(fakes)).mean()
        else:
            fakes = generator(torch.randn(task.batch_size, task.latent))
            loss = functional.softplus(-discriminator(fakes)).mean()
        own = {key: weight for key, weight in pool.items() if key.startswith(f"{name}.")}
        slopes = torch.autograd.grad(loss, list(own.values()))
        scores |= {k: (own[k] * g).abs().detach() for k, g in zip(own, slopes, strict=True)}
    masks = tombola.load(result.tickets[0]).masks
    wanted = top({key: scores[key] for key in pool}, sum(int(m.sum()) for m in masks.values()))
    assert all(torch.equal(masks[key], wanted[key]) for key in wanted)
    assert run_of(out, "mask")[1]["macs"] > 0  # what it costs is part of the search's cost


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {n: w / missing for n, w in params.items()}", "NameError: name 'missing'"),
        ("return {n: w[0] for n, w in params.items()}", "must return one score for every weight"),
        ("return {n: w * masks[n] for n, w in params.items()}", "failed: TypeError: 'NoneType'"),
        (
            "return {n: w if masks is None else loss('nobody') for n, w in params.items()}",
            "learns in no turn",
        ),
    ],
)
def test_a_broken_criterion_fails_before_anything_is_trained(
    body, words, tmp_path, monkeypatch, capsys
):
    file, out = tmp_path / "broken.py", tmp_path / "out"
    file.write_text(f"def broken(params, loss, masks, seed):\n    {body}\n")
    monkeypatch.setattr(search, "carry_out", None)
    task = [f"--set=task.{name}={value}" for name, value in DCGAN.items()]
    criterion = f"--set=prune.criterion={file}:broken"
    words_given = ["find", "dcgan", "--steps", "6", "--seeds", "1", *task, criterion]
    assert cli.main([*words_given, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


class Labelled(Task):
    """Images that are their own labels, looked at in two turns, one without images."""

    turns = (
        tombola.Turn("see", learns=("a",), repeats=2),
        tombola.Turn("blind", learns=("b",), images=False),
    )

    def networks(self, shape):
        return {name: torch.nn.Linear(1, 1) for name in "ab"}

    def loss(self, turn, networks, images, labels):
        self.seen.append((turn, images.flatten().tolist(), labels.tolist()))
        return sum(network.weight.square().sum() for network in networks.values())


def test_labels_come_with_their_images_and_move_no_stream():
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1)
    labels = torch.arange(8) * 10
    plain, labelled = Batches(images, 2, 5), LabelledBatches(images, labels, 2, 5)
    task = Labelled()
    task.seen = []
    settings = Settings(runtime=Runtime.open("cpu", "fp32", 1), seed=0, total_steps=2)
    trainer = Trainer(task, task.networks((1, 1, 1)), labelled, settings)
    trainer.advance()
    trainer.advance()
    drawn = [(plain.batch(k), (plain.indices(k) * 10).tolist()) for k in range(5)]
    seen = [("see", real.flatten().tolist(), names) for real, names in drawn]
    blind = [("blind", [0.0, 0.0], drawn[k][1]) for k in (2, 4)]
    assert task.seen == [*seen[:2], blind[0], *seen[2:4], blind[1]]


def test_a_task_that_is_told_labels_is_searched_and_needs_data_that_have_them(tmp_path):
    file = tmp_path / "told.py"
    file.write_text(CONDITIONAL)
    result = find(tmp_path / "out", f"{file}:Told", method="imp,snip")
    assert {row.arm for row in result.rows} == {"dense", "ticket"}
    bare = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"learns from labels, but .* has none; give images with"):
        find(tmp_path / "bare", f"{file}:Told", data=bare)


THREADED = """
import threading

from tombola.engine.executors.protocol import Serial


class Threaded:
    names = []

    def __init__(self, work):
        self.serial, self.thread = Serial(work), None

    @property
    def free(self):
        return self.thread is None

    def submit(self, node):
        self.names.append(node.kind)
        self.serial.submit(node)
        self.made = []
        self.thread = threading.Thread(target=lambda: self.made.append(self.serial.wait()))
        self.thread.start()

    def wait(self):
        self.cancel(grace=True)
        return self.made[0]

    def cancel(self, *, grace):
        if self.thread is not None:
            self.thread.join()
            self.thread = None


class Halfway:
    def __init__(self, work):
        pass

    def submit(self, node):
        pass
"""


def test_executors_give_the_same_bytes_wherever_they_carry_runs_out(tmp_path):
    task, file = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE", tmp_path / "threaded.py"
    file.write_text(THREADED)
    tables = {}
    for name in ("serial", f"{file}:Threaded", "local"):
        out = tmp_path / name[-6:]
        find(out, task, executor=name)
        tables[name] = (out / "results.csv").read_bytes()
    assert len(set(tables.values())) == 1
    assert EXECUTORS.load(f"{file}:Threaded").names.count("train") == 2
    # Where runs are carried out is no part of what they are: the folder is taken up anywhere.
    again = find(tmp_path / "serial", task, executor=f"{file}:Threaded")
    assert again.summary["runs"]["trained"] == 0


def test_an_executor_that_is_none_is_refused(tmp_path):
    task, file = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE", tmp_path / "threaded.py"
    file.write_text(THREADED)
    with pytest.raises(ConfigError, match=r"is no executor: it has no free, wait, cancel;"):
        find(tmp_path / "half", task, executor=f"{file}:Halfway")
    assert not (tmp_path / "half").exists()
    with pytest.raises(ConfigError, match=r"unknown executor 'ray'; choose from: local, serial"):
        find(tmp_path / "ray", task, executor="ray")
