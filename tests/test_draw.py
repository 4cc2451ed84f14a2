"""Tickets drawn around a function of one's own: those of ``tombola find``, and what it takes."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import os
import random
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import in_process
import tombola
from helpers import digest, same
from tombola.config.runtime import derive_seed
from tombola.config.sections import build
from tombola.data.batches import Batches
from tombola.data.sources import load_images
from tombola.engine.context import Context
from tombola.engine.stages import execute
from tombola.loops.book import FINAL, TICKET
from tombola.plan import plans as recipes
from tombola.plan.setting import make_task, resolve
from tombola.store.runs import Store
from tombola.tickets.ticket import load_ticket
from tombola.training.checkpoint import load_weights_file

N = 6
ROUNDS = 3


class Twin:
    """A shipped task's training as a plain loop: the same batches, latents and rates, no tasks."""

    def __init__(self, name, **options):
        self.task = make_task(build({"task": {"name": name, **options}}))[0]
        self.shape = self.task.image_shape(1)
        pictures = load_images("digits", self.shape).splits["train"]
        self.batches = Batches(pictures, self.task.batch_size, 0)

    def networks(self):
        made = self.task.networks(self.shape)
        for network in made.values():
            if any(p.dim() == 4 for p in network.parameters()):
                network.to(memory_format=torch.channels_last)
        return made

    def adam(self, *networks):
        task = self.task
        parameters = [p for network in networks for p in network.parameters()]
        return torch.optim.Adam(
            parameters, task.learning_rate, task.betas, weight_decay=task.weight_decay, fused=True
        )

    def rate(self, step, *optimizers):
        """The half cosine of the task, by hand."""
        if self.task.cosine:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = (
                    self.task.learning_rate * 0.5 * (1 + math.cos(math.pi * step / N))
                )


class PlainAE(Twin):
    def train(self, networks):
        encoder, decoder = networks["encoder"], networks["decoder"]
        optimizer = self.adam(encoder, decoder)
        for step in range(N):
            images = self.batches.batch(step)
            self.rate(step, optimizer)
            loss = functional.mse_loss(decoder(encoder(images)), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class PlainGAN(Twin):
    def train(self, networks):
        generator, discriminator = networks["generator"], networks["discriminator"]
        of_g, of_d = self.adam(generator), self.adam(discriminator)

        def latents(turn, step):
            torch.manual_seed(derive_seed(0, f"turn-{turn}", step))
            return torch.randn(self.task.batch_size, self.task.latent)

        for step in itertools.count():  # without an end: it is stopped
            self.rate(step, of_g, of_d)
            for critic in range(self.task.n_critic):
                images = self.batches.batch(step * self.task.n_critic + critic)
                with torch.no_grad():
                    fakes = generator(latents(f"discriminator-{critic}", step))
                loss = functional.softplus(-discriminator(images)).mean()
                loss = loss + functional.softplus(discriminator(fakes)).mean()
                of_d.zero_grad()
                loss.backward()
                of_d.step()
            logits = discriminator(generator(latents("generator-0", step)))
            of_g.zero_grad()
            functional.softplus(-logits).mean().backward()
            of_g.step()


TWINS = {
    "linear-ae": (PlainAE, {"width": 16, "batch_size": 16, "cosine": True}),
    "dcgan": (
        PlainGAN,
        {"width": 4, "latent": 8, "batch_size": 8, "cosine": True, "n_critic": 2},
    ),
}


def found_by_tombola(name, options, folder, rewind, controls):
    """(arm, round) -> (folder of the ticket, of the training) in a restarted search."""
    tables = {
        "task": {"name": name, **options},
        "train": {"steps": N},
        "search": {
            "rounds": ROUNDS,
            "rate": "0.4",
            "seeds": 1,
            "rewind": rewind,
            "controls": controls,
        },
        "rewind": {"schedule": "restart"},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }
    context = Context(
        store=Store(folder),
        task=name,
        data="digits",
        data_dir=None,
        skip_broken=False,
        device="cpu",
        keep_steps=(int(rewind[:-2]),),
        inputs={"criterion": "magnitude"},
    )
    plan = recipes.search(resolve(build(tables), None))
    for node in plan.graph:
        if node.kind in ("train", "rewind", "mask"):
            execute(node, context)
    places = {}
    for cell in plan.cells:
        ticket = context.store.path(cell.ticket) if cell.ticket else None
        places[cell.kind, cell.round] = ticket, context.store.path(cell.train)
    return places


MASKS = {
    ("linear-ae", "3it"): ["9e05ceff7cf88a2f", "16815c0ca4a73754", "2dc7135ced4f74cc"],
    ("linear-ae", "0it"): ["9e05ceff7cf88a2f", "c70f5681429dc14b", "804dfda2edd53b7e"],
    ("dcgan", "3it"): ["7ad80359bde9e554", "0e87bdf0ca58cecd", "b279e41a8ed01232"],
    ("dcgan", "0it"): ["7ad80359bde9e554", "217fc43de3f01c63", "737de0240ec65bc6"],
}
"""Digests of the tickets' masks, level by level. Two independent implementations came to them; they
are written down for the day on which both take one path. The rounding of other processors moves a
score by a ten-millionth, the next score is a thousand times as far."""


@pytest.mark.parametrize("rewind", ["3it", "0it"])
@pytest.mark.parametrize("name", TWINS)
def test_a_plain_twin_of_a_shipped_task_gives_the_same_tickets_bit_for_bit(tmp_path, name, rewind):
    kind, options = TWINS[name]
    twin = kind(name, **options)
    controls = ["reinit", "shuffle"] if rewind == "3it" else []
    with in_process.Restored():
        places = found_by_tombola(name, options, tmp_path / "find", rewind, controls)
    result = tombola.draw(
        twin.train,
        twin.networks,
        steps=N,
        rewind=rewind,
        rounds=ROUNDS,
        rate="0.4",
        seeds=1,
        controls=controls,
        out=tmp_path / "draw",
    )
    store = Store(tmp_path / "draw" / "store")
    made = {}
    for run in store.finished():
        record = store.record(run)["round"]
        made[record["arm"], record["round"]] = store.path(run)
    assert made.keys() == places.keys()
    assert len(made) == 1 + (1 + len(controls)) * ROUNDS
    for (arm, level), (ticket, trained) in places.items():
        place = made[arm, level]
        ends = load_weights_file(place / FINAL), load_weights_file(trained / "final.safetensors")
        assert same(*ends), (arm, level)
        if arm == "ticket":
            tickets = load_ticket(place / TICKET), load_ticket(ticket / "ticket.safetensors")
            assert same(tickets[0].masks, tickets[1].masks), level
            assert same(tickets[0].weights, tickets[1].weights), level
            written = tombola.load(result.tickets[level - 1])
            assert same(written.masks, tickets[1].masks)
            assert written.manifest["rewind_step"] == int(rewind[:-2])
    masks = [tombola.load(path).masks for path in result.tickets]
    assert [digest(each) for each in masks] == MASKS[name, rewind]


def pair(seed=0):
    """A generator with a buffer and a discriminator, tiny; the weights are drawn from a seed."""
    torch.manual_seed(seed)
    return {
        "generator": nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        "discriminator": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
    }


FAILS_AT = Path(tempfile.gettempdir()) / f"loop-fails-at-{os.getpid()}"
"""The call at which a loop fails, where there is such a file: its text is no part of a name."""


class Loop:
    """A GAN's loop as people write it: no end, draws from global generators, who learns toggled."""

    def __init__(self, networks):
        self.networks = networks
        self.calls = 0
        self.seen = []

    def __call__(self):
        self.calls += 1
        assert not FAILS_AT.exists() or self.calls != int(FAILS_AT.read_text())
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        of_g = torch.optim.SGD(generator.parameters(), 0.05)
        of_d = torch.optim.SGD(discriminator.parameters(), 0.05)
        self.seen.append((torch.rand(()).item(), np.random.rand(), random.random()))
        while True:
            fakes = generator(torch.randn(8, 2))
            discriminator.requires_grad_(True)
            loss = discriminator(fakes.detach()).mean() - discriminator(torch.ones(8, 4)).mean()
            of_d.zero_grad()
            loss.backward()
            of_d.step()
            discriminator.requires_grad_(False)
            of_g.zero_grad()
            (-discriminator(generator(torch.randn(8, 2))).mean()).backward()
            of_g.step()


SMALL = {"steps": 5, "rewind": "2it", "rounds": 2, "rate": "0.5"}
POOL = 2 * 8 + 8 * 4 + 4 * 8 + 8


def table(folder):
    """Every file that is about results, without what a clock measured."""
    names = ["results.csv", *sorted(str(p.relative_to(folder)) for p in folder.rglob("*seed*"))]
    return {name: (folder / name).read_bytes() for name in names if "log" not in name}


def test_given_networks_are_pruned_rewound_and_handed_back(tmp_path):
    networks = pair()
    networks["discriminator"].eval()
    networks["discriminator"][0].bias.requires_grad_(False)
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in networks.items()}
    state, others = torch.get_rng_state(), (np.random.get_state()[1].tolist(), random.getstate())
    loop = Loop(networks)
    out = tmp_path / "out"
    result = tombola.draw(loop, networks, out=out, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == others
    assert all(same(dict(m.state_dict()), before[n]) for n, m in networks.items())
    assert networks["generator"].training
    assert not networks["discriminator"].training
    flags = [p.requires_grad for p in networks["discriminator"].parameters()]
    assert flags == [True, False, True, True]
    assert all(p.grad is None for m in networks.values() for p in m.parameters())
    # Dense, then two rounds of the ticket and two controls; the same draws in each.
    assert (loop.calls, len(set(loop.seen))) == (7, 1)
    assert result.out == out
    assert [path.name for path in result.tickets] == [
        "seed0-round01.safetensors",
        "seed0-round02.safetensors",
    ]
    tickets = [tombola.load(path) for path in result.tickets]
    kept = [sum(int(m.sum()) for m in t.masks.values()) for t in tickets]
    assert kept == [POOL // 2, POOL // 4]
    assert set(tickets[0].masks) == {
        "generator.0.weight", "generator.2.weight", "discriminator.0.weight",
        "discriminator.2.weight",
    }  # fmt: skip
    assert tickets[0].weights["generator.1.num_batches_tracked"].item() == 4
    for name in ("config.json", "costs.csv", "summary.json", "report.html", "log.jsonl"):
        assert (out / name).is_file()
    assert result.summary["runs"] == {"trained": 7, "reused": 0, "diverged": 0}
    # The search's start weights are those of the networks, and drop into them.
    tickets[0].start(networks)
    assert (networks["generator"][0].weight == 0).sum() >= 1


def test_a_search_is_taken_up_after_the_last_whole_round(tmp_path):
    def judge(networks):
        return sum(float(p.abs().sum()) for n in networks.values() for p in n.parameters())

    options = {**SMALL, "judge": judge, "better": "lower"}
    first = tombola.draw(Loop(networks := pair()), networks, out=tmp_path / "whole", **options)
    loop = Loop(networks := pair())
    FAILS_AT.write_text("4")
    cut = tmp_path / "cut"
    with pytest.raises(AssertionError):
        tombola.draw(loop, networks, out=cut, **options)
    assert not list(cut.glob("tickets/*"))
    FAILS_AT.unlink()
    loop = Loop(networks := pair())
    again = tombola.draw(loop, networks, out=cut, **options)
    assert (loop.calls, again.summary["runs"]["trained"]) == (4, 4)
    assert again.summary["runs"]["reused"] == 3
    assert table(cut) == table(tmp_path / "whole")
    assert again.rows == first.rows
    third = tombola.draw(loop, networks, out=cut, **options)
    assert loop.calls == 4
    assert third.summary["runs"] == {"trained": 0, "reused": 7, "diverged": 0}
    assert table(cut) == table(tmp_path / "whole")


def test_more_rounds_and_controls_extend_a_search(tmp_path):
    options = {**SMALL, "rounds": 1, "controls": "none"}
    tombola.draw(Loop(networks := pair()), networks, out=tmp_path / "a", **options)
    loop = Loop(networks := pair())
    tombola.draw(loop, networks, out=tmp_path / "a", **SMALL)
    assert loop.calls == 5
    tombola.draw(Loop(networks := pair()), networks, out=tmp_path / "b", **SMALL)
    assert table(tmp_path / "a") == table(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 6}, "steps: 5 -> 6"),
        ({"rewind": "1it"}, "rewind_steps: 2 -> 1"),
        ({"rewind": "60%"}, "rewind_steps: 2 -> 3"),
        ({"rate": "0.4"}, "rate: '0.5' -> '0.4'"),
        ({"prune": "generator"}, "prune: 'all' -> 'generator'"),
        ({"clock": "generator"}, "clock: None -> 'generator'"),
        ({"exclude": ["first"]}, r"exclude: \[\] -> \['first'\]"),
        ({"judge": len, "better": "lower"}, "better: None -> 'lower'; judge: None -> 'len'"),
    ],
)
def test_what_differs_is_shown_and_refused(tmp_path, change, words):
    options = {**SMALL, "rounds": 1, "controls": "none"}
    tombola.draw(Loop(networks := pair()), networks, out=tmp_path, **options)
    before = table(tmp_path) | {"config": (tmp_path / "config.json").read_bytes()}
    with pytest.raises(tombola.ConfigError, match=words):
        tombola.draw(Loop(networks := pair()), networks, out=tmp_path, **{**options, **change})
    assert table(tmp_path) | {"config": (tmp_path / "config.json").read_bytes()} == before


def test_another_function_or_other_networks_in_the_same_folder_are_refused(tmp_path):
    options = {**SMALL, "rounds": 1, "controls": "none"}
    net = {"net": nn.Linear(2, 2)}

    def train(steps=5):
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        for _ in range(steps):
            net["net"](torch.ones(1, 2)).sum().backward()
            optimizer.step()

    tombola.draw(train, net, out=tmp_path, **options)
    source, net = train, {"net": nn.Linear(2, 3)}
    with pytest.raises(tombola.ConfigError, match=r"networks: \{'net': 6\} -> \{'net': 9\}"):
        tombola.draw(source, net, out=tmp_path, **options)

    def train():
        raise AssertionError("never called")

    with pytest.raises(
        tombola.ConfigError, match=r"train.code: [0-9a-f]{8} of Python 3.* -> [0-9a-f]"
    ):
        tombola.draw(train, {"net": nn.Linear(2, 2)}, out=tmp_path, **options)


def sweep(net, rate):
    optimizer = torch.optim.SGD(net["net"].parameters(), rate)
    for _ in range(5):
        optimizer.zero_grad()
        net["net"](torch.ones(2, 2)).square().sum().backward()
        optimizer.step()


WAYS = {
    "partial": lambda rate: functools.partial(sweep, rate=rate),
    "closure": lambda rate: lambda net: sweep(net, rate),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_rate_is_another_search(tmp_path, way):
    def once(rate, seed=0, **more):
        torch.manual_seed(seed)
        net = {"net": nn.Linear(2, 2)}
        return tombola.draw(WAYS[way](rate), net, out=tmp_path, **options, **more)

    options = {**SMALL, "rounds": 1, "controls": "none"}
    once(0.1)
    assert once(0.1).summary["runs"]["reused"] == 2
    with pytest.raises(tombola.ConfigError, match=r"\(train.rate: 0.1 -> 0.2\)"):
        once(0.2)
    with pytest.raises(tombola.ConfigError, match=r"\(start: weights \w+ -> weights \w+\)"):
        once(0.1, seed=1)
    with pytest.raises(tombola.ConfigError, match=r"\(key: None -> 'mine'\)"):
        once(0.1, key="mine")


def test_what_draw_cannot_tell_again_needs_a_key(tmp_path):
    net, lock, seen = {"net": nn.Linear(2, 2)}, threading.Lock(), []

    def train():
        with lock:
            seen.append(net["net"].weight.sum().item())
            seen.append(iter(seen))
            sweep(net, 0.1)

    options = {**SMALL, "rounds": 1, "controls": "none", "out": tmp_path / "out"}
    with pytest.raises(tombola.ConfigError, match=r"whether train.lock \(lock\) will be the same"):
        tombola.draw(train, net, **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(tombola.ConfigError, match="key is a int; give a text"):
        tombola.draw(train, net, key=1, **options)
    first = tombola.draw(train, net, key="a", **options)
    # What the training keeps for itself is told, and does not make it another search.
    assert first.summary["notes"][1].endswith("not put back between trainings: train.seen.")
    seen.append(lock)
    assert tombola.draw(train, net, key="a", **options).summary["runs"]["reused"] == 2
    with pytest.raises(tombola.ConfigError, match="key: 'a' -> 'b'"):
        tombola.draw(train, net, key="b", **options)


def never():
    raise AssertionError("bad input is refused before anything is trained")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps got 0; it takes a whole number from 1"),
        ({"steps": 2.5}, "steps got 2.5; it takes a whole number"),
        ({"rewind": "5it"}, "rewind 5it is not before the end of 5 steps"),
        ({"rewind": "90%"}, "rewind 90% is not before the end of 5 steps"),
        ({"rewind": "1ep"}, "rewind 1ep counts epochs, which only train knows"),
        ({"rewind": "soon"}, "rewind step 'soon' is not understood"),
        ({"rate": 1.5}, "rate got '1.5'; it takes a decimal"),
        ({"rounds": 9}, "level 8 at rate 0.5 keeps none of 88 weights; level 7"),
        ({"rounds": True}, "rounds got True"),
        ({"seeds": 2}, "seeds=2 needs networks to be drawn anew"),
        ({"controls": "erk"}, "control 'erk' does not go with a training of your own"),
        ({"controls": "none,reinit"}, "controls got 'none,reinit'; none stands alone"),
        ({"controls": ""}, "controls is empty; give at least one value, or leave it out"),
        ({"prune": "net,net"}, "prune got net,net; give each value once"),
        ({"prune": "critic"}, "unknown network 'critic'"),
        ({"clock": "critic"}, "unknown network 'critic'"),
        (
            {"sparsity": [0.5, 0.2]},
            "sparsity levels 0.5,0.2 do not ascend; give them from low to high",
        ),
        ({"judge": 3}, "judge is a int; give a function"),
        ({"epochs": 3}, "draw has no option 'epochs'; it has: rewind, rounds"),
        ({"train": 3}, "train is a int; give a function that trains"),
        ({"networks": nn.Linear(1, 1)}, "networks is a Linear; give a dict of name to"),
        ({"networks": {"a.b": nn.Linear(1, 1)}}, "a network's name is 'a.b'; give a word"),
        ({"networks": {"a": 1}}, "network 'a' is a int; give a torch.nn.Module"),
        ({"networks": pair}, "networks is a function, but train takes no argument"),
        ({"networks": lambda: 3, "train": lambda networks: None}, "networks is a int; give"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, options, words):
    given = {**SMALL, "train": never, "networks": pair(), **options}
    with pytest.raises(tombola.UserError, match=words):
        tombola.draw(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_function_that_takes_too_few_steps_is_told_how_many(tmp_path):
    networks, other = pair(), pair()

    def train():
        for name in ("discriminator", "generator") * 3:
            torch.optim.SGD(networks[name].parameters(), 0.1).step()

    with pytest.raises(tombola.ConfigError, match=r"train ended after 3 of 5 steps; let it go on"):
        tombola.draw(train, networks, out=tmp_path, **SMALL)
    with pytest.raises(tombola.ConfigError, match=r"after 0 of 5 .*\(no optimizer of the given"):
        tombola.draw(train, other, out=tmp_path / "other", **SMALL)
    more = {**networks, "encoder": nn.Linear(1, 1)}
    with pytest.raises(tombola.ConfigError, match=r"after 0 of 5 .*\(no step of encoder was seen"):
        tombola.draw(train, more, out=tmp_path / "more", **SMALL)


def test_seeds_draw_their_own_networks_and_each_training_has_the_draws_of_its_seed(tmp_path):
    made, seen = [], []

    def networks():
        made.append(nn.Linear(3, 2))
        return {"net": made[-1]}

    def train(networks, clock):
        seen.append((torch.rand(()).item(), np.random.rand(), random.random()))
        start = networks["net"].weight.detach().clone()
        for _ in range(5):
            with torch.no_grad():
                networks["net"].weight.add_(torch.rand(2, 3))
            clock.apply()
        seen[-1] += (start,)

    result = tombola.draw(train, networks, seeds=2, out=tmp_path, **SMALL)
    assert len(result.tickets) == 4
    by_seed = seen[:7], seen[7:]
    assert [len({each[:3] for each in part}) for part in by_seed] == [1, 1]
    assert by_seed[0][0][:3] != by_seed[1][0][:3]
    for part in by_seed:
        dense, again = part[0][3], [each[3] for each in part[2::3]]
        # Each round's reinit is another draw, under the ticket's mask.
        assert not any(bool((each == dense).all()) for each in again)
    assert len(made) == 2 + 4  # a pair of seeds, and the weights of four reinits


def test_reinit_of_given_networks_permutes_their_weights_within_each_tensor(tmp_path):
    net = {"net": nn.Linear(40, 30)}
    start, seen = net["net"].weight.detach().clone(), []

    def train():
        seen.append([p.detach().clone() for p in net["net"].parameters()])
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        while True:
            optimizer.step()

    options = {**SMALL, "rounds": 1, "controls": "reinit"}
    result = tombola.draw(train, net, out=tmp_path, **options)
    mask = tombola.load(result.tickets[0]).masks["net.weight"]
    weight, bias = seen[2]
    assert torch.equal(bias, seen[0][1])
    assert not bool((weight[~mask] != 0).any())
    assert not torch.equal(weight[mask], start[mask])
    assert set(weight[mask].tolist()) <= set(start.flatten().tolist())
    assert len(set(weight[mask].tolist())) == 600


def test_what_is_measured_gets_a_verdict(tmp_path):
    net, told = {"net": nn.Linear(4, 3)}, []

    def train(networks):
        optimizer = torch.optim.SGD(networks["net"].parameters(), 0.1)
        for step in range(5):
            optimizer.zero_grad()
            networks["net"](torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            tombola.record("progress", step, better="higher")

    def judge(networks):
        assert not networks["net"].training
        assert not torch.is_grad_enabled()
        return {"sharpness": float(networks["net"].weight.abs().sum()), "fid": torch.tensor(3.0)}

    def sample(networks):
        return torch.tanh(networks["net"](torch.randn(40, 4))).reshape(40, 3, 1, 1)

    options = {**SMALL, "judge": judge, "sample": sample, "better": {"sharpness": "higher"}}
    result = tombola.draw(train, net, out=tmp_path, task="mine", tell=told.append, **options)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"sharpness", "fid", "progress"}
    assert {row["task"] for row in rows} == {"mine"}
    assert {row["value"] for row in rows if row["metric"] == "progress"} == {"4.0"}
    assert {row["step"] for row in rows if row["metric"] == "progress"} == {"5"}
    verdicts = result.summary["verdicts"]
    assert {verdicts[name]["state"] for name in verdicts} == {"not enough runs"}
    assert result.summary["primary"] == "fid"
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names[:2] == ["dense-round00.png", "reinit-round01.png"]
    assert len(told) == 7
    assert told[1].startswith("ticket of round 1, seed 0: ")
    # The same call again in this process, where the metrics are known by now.
    assert tombola.draw(train, net, out=tmp_path, task="mine", **options).rows == result.rows
    with pytest.raises(tombola.ConfigError, match=r"metric 'score' is not one that Tombola knows"):
        tombola.draw(train, net, out=tmp_path / "b", **SMALL, judge=lambda: 1.0)
    one = tombola.draw(
        train, net, out=tmp_path / "c", **SMALL, judge=lambda: 1.0, better="lower", margin=0.2
    )
    assert one.summary["verdicts"]["score"]["margin"] == 0.2


def test_the_direction_of_a_metric_is_that_of_its_search(tmp_path):
    net = {"net": nn.Linear(4, 3)}

    def train():
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        while True:
            optimizer.step()

    options = {**SMALL, "rounds": 1, "controls": "none", "judge": lambda: 1.0}
    for better in ("higher", "lower"):  # a slip, mended in the same process
        found = tombola.draw(train, net, out=tmp_path / better, better=better, **options)
        assert found.summary["verdicts"]["score"]["better"] == better
    config = json.loads((tmp_path / "lower/config.json").read_text())
    assert config["resolved"]["margins"]["score"]["better"] == "lower"
    with pytest.raises(tombola.ConfigError, match="metric 'score' is not one that Tombola knows"):
        tombola.draw(train, net, out=tmp_path / "none", **options)


def test_averages_that_outlive_the_function_begin_anew_and_are_judged(tmp_path):
    net = {"net": nn.Linear(6, 6, bias=False)}
    average = nn.Linear(6, 6, bias=False)
    begun, judged = [], []

    def train():
        begun.append((average.weight.detach().clone(), net["net"].weight.detach().clone()))
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        for _ in range(5):
            net["net"](torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                average.weight.lerp_(net["net"].weight, 0.1).add_(1.0)

    def judge():
        judged.append(average.weight.detach().clone())
        return 1.0

    options = {**SMALL, "ema": {"net": average}, "judge": judge, "better": "lower"}
    result = tombola.draw(train, net, out=tmp_path, **options)
    assert all(torch.equal(*each) for each in begun)
    mask = tombola.load(result.tickets[0]).masks["net.weight"]
    assert int((judged[1] == 0).sum()) == 18
    assert torch.equal(judged[1] != 0, mask)
    model = tombola.load(tmp_path / "models" / "dense-seed0-round00.safetensors")
    assert torch.equal(model.weights["net.weight"], judged[0])


def test_what_an_average_counts_begins_anew_in_each_training(tmp_path):
    net = {"net": nn.Linear(3, 3)}
    average, counts = torch.optim.swa_utils.AveragedModel(net["net"]), []

    def train():
        counts.append(average.n_averaged.item())
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        while True:
            optimizer.step()
            average.update_parameters(net["net"])

    tombola.draw(train, net, ema=average, out=tmp_path, **SMALL)
    assert counts == [0] * 7


def test_a_training_whose_weights_are_not_finite_ends_its_chain(tmp_path):
    net = {"net": nn.Linear(2, 2)}

    def train():
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        while True:
            net["net"](torch.full((1, 2), math.inf)).sum().backward()
            optimizer.step()

    result = tombola.draw(train, net, out=tmp_path, **SMALL)
    found = [(row.arm, row.round, row.metric, row.value) for row in result.rows]
    assert found[0] == ("dense", 0, "diverged", 1.0)
    assert {each[2] for each in found[1:]} == {"not-run"}
    assert len(found) == 7
    assert result.tickets == []
    assert result.summary["runs"] == {"trained": 1, "reused": 0, "diverged": 1}


def test_the_default_folder_is_named_after_the_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = {"net": nn.Linear(2, 2)}

    def my_training():
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        while True:
            optimizer.step()

    pictures = torch.zeros(3, 1, 4, 6)
    result = tombola.draw(my_training, net, sample=lambda: pictures, **{**SMALL, "rounds": 1})
    assert str(result.out) == "runs/my_training-imp"
    config = json.loads((result.out / "config.json").read_text())
    assert config["resolved"]["task"] == "my_training"
    assert config["resolved"]["shape"] == [1, 4, 6]
    assert config["config"]["run"] == {"device": "cpu", "threads": torch.get_num_threads()}


def test_levels_may_be_given_outright(tmp_path):
    net = {"net": nn.Linear(10, 10)}

    def train():
        optimizer = torch.optim.SGD(net["net"].parameters(), 0.1)
        while True:
            optimizer.step()

    options = {**SMALL, "sparsity": ["0.5", 0.9], "controls": "none"}
    result = tombola.draw(train, net, out=tmp_path, **options)
    kept = [int(tombola.load(p).masks["net.weight"].sum()) for p in result.tickets]
    assert kept == [50, 10]
