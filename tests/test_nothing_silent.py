"""Right or refused, never silent: what people do to a search, in every way of searching.

``draw`` and ``run`` share a loop, which ``run`` finds by ``attach``: by itself ``attach`` keeps no
search that could be mistaken for another. ``find`` has a table of its own; there an optimizer
cannot join late: the trainer makes one for each turn before step 0 and takes every turn in every
step, so a turn that is to wait has a loss of zero until then and is counted all the same.
"""

from __future__ import annotations

import csv
import json
import runpy
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.loops import attaching
from tombola.results.alike import alike

SCRIPT = """
import sys, torch, tombola
from torch import nn
from {neighbour} import loss_of
torch.manual_seed({seed})
net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
critic = nn.Linear(8, 1)
data = torch.randn(16, 8)
def train(rate):
    {first}
    own, other = (torch.optim.SGD(each.parameters(), rate) for each in (net, critic))
    for step in range(12):
        own.zero_grad()
        loss_of(net, data).backward()
        own.step()
        if step >= {joins}:
            other.zero_grad()
            critic(data).square().mean().backward()
            other.step()
"""
RUN = """
tombola.attach({{"net": net, "critic": critic}})
train(float(sys.argv[1]))
tombola.record("loss", loss_of(net, data), better="lower")
"""
DRAW = """
import functools
found = tombola.draw(
    functools.partial(train, float(sys.argv[1])), {{"net": net, "critic": critic}}, steps=12,
    rewind="2it", rounds=1, rate="0.5", controls="none", out="out",
    judge=lambda: {{"loss": loss_of(net, data)}}, better="lower",
)
"""
NEIGHBOUR = "def loss_of(net, data): return (net(data) - {} * data).square().mean()\n"
SEARCH = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"


@pytest.fixture(params=["draw", "run"])
def once(request, tmp_path, monkeypatch, capsys):
    """One call of a search in a folder: what it said in error, else the count of trainings."""
    in_process.use_scripts(monkeypatch)
    monkeypatch.setattr(attaching, "_told", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    neighbour = f"neighbour_by_{request.param}_{request.node.originalname}"[:60]

    def call(seed="0", first="pass", joins=0, rate="0.1", scale=1.0):
        (tmp_path / f"{neighbour}.py").write_text(NEIGHBOUR.format(scale))
        sys.modules.pop(neighbour, None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        text = SCRIPT + (RUN if request.param == "run" else DRAW)
        parts = {"seed": seed, "first": first, "joins": joins, "neighbour": neighbour}
        (tmp_path / "script.py").write_text(text.format(**parts))
        if request.param == "run":
            code = cli.main([*shlex.split(f"run {SEARCH} -- python script.py"), rate])
            if code:
                (line,) = [e for e in capsys.readouterr().err.splitlines() if e[:5] == "error"]
                return line
        else:
            monkeypatch.setattr(sys, "argv", ["script.py", rate])
            try:
                runpy.run_path("script.py", run_name="__main__")
            except tombola.UserError as error:
                return str(error)
        return json.loads((tmp_path / "out/summary.json").read_text())["runs"]["trained"]

    with in_process.Restored():
        yield call


def test_the_same_again_does_nothing(once):
    assert (once(), once()) == (2, 0)


def test_weights_that_the_training_draws_itself_are_refused(once):
    assert "the weights were changed (net.0.weight)" in once(first="net[0].weight.data.normal_()")


def test_an_optimizer_that_joins_late_is_refused(once):
    assert "such as clock='net'" in once(joins=4)


def test_other_arguments_are_another_search(once):
    once()
    said = once(rate="0.2")
    assert "train.0: 0.1 -> 0.2" in said or "['python', 'script.py', '0.2']" in said


def test_other_start_weights_are_another_search(once):
    once()
    said = once(seed="1")
    assert "start: weights" in said or "script.py edited since" in said


def test_an_edited_neighbour_is_another_search(once):
    once()
    said = once(scale=0.5)
    assert "loss_of.code" in said or "neighbour_by_run" in said


TASK = """
import torch, tombola
from {neighbour} import decode
class AE(tombola.Task):
    family, size, channels, batch_size = "autoencoder", 8, 1, 8
    presets = {{"quick": {{"steps": 4}}}}
    learning_rate: float = 0.01
    def networks(self, shape):
        own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
        own.load_state_dict(torch.load("given.pt"))
        decoder = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Unflatten(1, shape))
        return {{"encoder": own, "decoder": decoder}}
    def loss(self, turn, nets, images):
        {first}
        return (self.reconstruct(nets, images) - images).square().mean()
    def reconstruct(self, nets, images):
        return decode(nets["decoder"](nets["encoder"](images)))
"""
FIND = "--data digits --rounds 1 --rate 0.5 --seeds 1 --rewind 1it --controls none --workers 1"
FIND += " --threads 1 --set judge.downstream=none --set judge.steps=1"


@pytest.fixture
def find(tmp_path, monkeypatch, capsys):
    """One call of ``tombola find``: what it said in error, else (trained, values of its table)."""
    in_process.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(out="out", first="pass", weight=0.5, scale=1.0, options=""):
        given = {"1.weight": weight * torch.eye(4, 64), "1.bias": torch.zeros(4)}
        torch.save(given, tmp_path / "given.pt")
        (tmp_path / "beside_found.py").write_text(f"def decode(x): return {scale} * x\n")
        (tmp_path / "task.py").write_text(TASK.format(first=first, neighbour="beside_found"))
        words = [*shlex.split(f"find task.py:AE {FIND} --out {out} {options}")]
        if cli.main(words):
            (line,) = [e for e in capsys.readouterr().err.splitlines() if e[:5] == "error"]
            return line
        with (tmp_path / out / "results.csv").open() as file:
            values = [row["value"] for row in csv.DictReader(file)]
        return json.loads((tmp_path / out / "summary.json").read_text())["runs"]["trained"], values

    with in_process.Restored():
        yield call


def test_find_does_the_same_again_once(find):
    (first, values), again = find(), find()
    assert (first, again) == (2, (0, values))


def test_find_refuses_weights_that_the_loss_draws_itself(find):
    line = find(first='torch.nn.init.normal_(nets["decoder"][0].weight)')
    assert "the weights were changed (decoder.0.weight)" in line


def test_find_refuses_other_arguments_in_the_same_folder(find):
    find()
    assert "learning_rate 0.01 -> 0.02" in find(options="--set task.learning_rate=0.02")


@pytest.mark.parametrize("change", [{"weight": 0.25}, {"scale": 0.5}])
def test_find_trains_anew_from_other_given_weights_or_by_an_edited_neighbour(find, change):
    _, before = find()
    trained, values = find(**change)
    assert trained == 2
    assert values != before
    assert find("fresh", **change) == (2, values)


def test_trainings_of_find_that_gave_the_same_numbers_are_told():
    def cell(kind, seed, level, train):
        return SimpleNamespace(kind=kind, seed=seed, round=level, train=train, evaluate=train)

    values = {"a": {"fid": 1.0}, "b": {"fid": 1.0}, "c": {"fid": 1.0000001}, "d": {}}
    cells = [cell("dense", 0, 0, "a"), cell("ticket", 0, 1, "b"), cell("ticket", 1, 1, "c")]
    cells += [cell("dense", 0, 0, "a"), cell("reinit", 0, 1, "d"), cell("reinit", 1, 1, "d")]
    assert alike(cells, lambda name: {"values": values[name]}) == [
        "These gave the same numbers, bit for bit: dense, seed 0; ticket of round 1, seed 0."
    ]


def test_seeds_that_end_alike_are_told(tmp_path):
    def networks():
        net = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(net.weight)
        torch.nn.init.ones_(net.bias)
        return {"net": net}

    def train(networks):
        optimizer = torch.optim.SGD(networks["net"].parameters(), 0.1)
        while True:
            optimizer.zero_grad()
            networks["net"](torch.ones(1, 2)).square().sum().backward()
            optimizer.step()

    words = {"rounds": 1, "rate": "0.5", "rewind": "1it", "seeds": 2, "controls": "none"}
    found = tombola.draw(train, networks, steps=3, out=tmp_path / "out", **words)
    assert found.summary["notes"][1:] == [
        "These ended with the same weights, bit for bit: dense, seed 0; dense, seed 1.",
        "These ended with the same weights, bit for bit: ticket of round 1, seed 0; "
        "ticket of round 1, seed 1.",
    ]
    assert (
        "bit for bit: dense, seed 0; dense, seed 1." in (tmp_path / "out/report.html").read_text()
    )
