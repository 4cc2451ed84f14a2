"""What decides what a function does: seen when it changes, the same when it does not."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import os
import runpy
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tombola
from tombola.loops.capture import captured, changed, opaque, structure

RATE = 0.5


class Kind(enum.Enum):
    ONE, TWO = 1, 2


@dataclasses.dataclass
class Settings:
    rate: float
    kinds: list = dataclasses.field(default_factory=list)


class Job:
    def __init__(self, value):
        self.value = value

    def train(self):
        return self.value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def closure(value):
    def train():
        return [value for _ in range(3)]

    return train


def with_default(value):
    def train(rate=value):
        return rate

    return train


def by_global():
    def within():  # a function within reads it
        return RATE

    return within


@torch.no_grad()
def wrapped():
    return by_global()


def loader(value):
    return DataLoader(TensorDataset(torch.full((4, 2), float(value))), batch_size=2)


VALUES = [
    (0.1, 0.2), (1, True), (None, 0), ("a", "b"), (b"a", b"b"), (Kind.ONE, Kind.TWO),
    (Path("a"), Path("b")), ([1, 2], [2, 1]), ({"a": {"b": 1}}, {"a": {"b": 2}}), ({1, 2}, {1, 3}),
    ({1: 2}, {1: 3}), (torch.ones(2), torch.zeros(2)), (np.ones(2), np.ones(3)),
    (torch.float32, torch.float16), (torch.device("cpu"), torch.device("meta")),
    (Settings(0.1), Settings(0.2)), (Settings(0.1, [1]), Settings(0.1, [[1]])), (Job(1), Job(2)),
    (Slotted(1), Slotted(2)), (nn.Dropout(0.1), nn.Dropout(0.2)), (loader(1), loader(2)),
    (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    (lambda: 1, lambda: 2), (closure(1), closure(2)), ([closure(1)], [closure(2)]),
]  # fmt: skip
BINDINGS = {
    "partial": lambda value: functools.partial(print, value),
    "keyword": lambda value: functools.partial(print, end=value),
    "closure": closure,
    "default": with_default,
    "method": lambda value: Job(value).train,
    "object": Job,
}


def told(value):
    return captured({"train": value}, {})


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("pair", VALUES, ids=lambda pair: str(type(pair[0]).__name__))
def test_a_value_that_is_bound_is_told(pair, binding):
    one, other = (told(BINDINGS[binding](each)) for each in pair)
    assert not opaque(one)
    assert one == told(BINDINGS[binding](pair[0]))
    assert one != other


@pytest.mark.parametrize("function", [by_global, wrapped])
def test_a_global_is_told_wherever_it_is_read(monkeypatch, function):
    before = told(function)
    monkeypatch.setitem(globals(), "RATE", 0.25)
    (path,) = changed(before, told(function))
    assert path.endswith(".RATE")
    assert (before[path], told(function)[path]) == ("0.5", "0.25")


@functools.cache
def kept():
    return RATE


def by_argument(path):
    import sys

    return float(sys.argv[1]), path


def by_parser():
    return argparse.ArgumentParser().parse_args()


def by_environment():
    return os.environ["TOMBOLA_TEST_RATE"], os.environ.get("HOME")


def by_module():
    return by_argument(own)


own = types.ModuleType("own_of_test_capture")
own.__file__ = __file__  # a file of the user's


@pytest.mark.parametrize(
    ("function", "path", "change"),
    [
        (lambda: kept(), "kept.wrapped.RATE", lambda p: p.setitem(globals(), "RATE", 0.25)),
        (by_argument, "argv", lambda p: p.setattr(sys, "argv", ["train.py", "0.25"])),
        (by_parser, "argv", lambda p: p.setattr(sys, "argv", ["train.py", "0.25"])),
        (
            by_environment,
            "environ.TOMBOLA_TEST_RATE",
            lambda p: p.setenv("TOMBOLA_TEST_RATE", "0.25"),
        ),
        (by_module, "own.rate", lambda p: p.setattr(own, "rate", 0.25)),
    ],
)
def test_what_is_asked_of_the_process_a_cache_or_a_module_is_told(
    monkeypatch, function, path, change
):
    monkeypatch.setattr(own, "rate", 0.5, raising=False)
    monkeypatch.setattr(sys, "argv", ["elsewhere/train.py", "0.5"])
    monkeypatch.setenv("TOMBOLA_TEST_RATE", "0.5")
    before = told(function)
    monkeypatch.setattr(sys, "argv", ["train.py", "0.5"])
    monkeypatch.setenv("TOMBOLA_TEST_OTHER", "0.5")
    assert told(function) == before
    assert not opaque(before)
    change(monkeypatch)
    assert changed(before, told(function)) == {f"train.{path}"}


def test_comments_and_descriptions_are_not_told_but_code_is():
    spaces = [{} for _ in range(3)]
    for space, text in zip(
        spaces,
        (
            '"""Old."""\n    return 1 + rate',
            '"""New."""\n\n    # Why.\n    return 1 + rate',
            '"""Old."""\n    return 2 + rate',
        ),
        strict=True,
    ):
        exec(f"def train(rate=1):\n    {text}\n", space)
    one, same, other = (told(space["train"]) for space in spaces)
    assert one == same
    assert changed(one, other) == {"train.code"}


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), (n for n in [1]), sys.stdout],
    ids=["a lock", "a generator", "a stream"],
)
def test_what_has_no_value_is_opaque(value):
    assert opaque(told(closure([1, value])))
    assert opaque(told(Job(value)))[0].startswith("train.value (")


def test_code_that_reads_what_it_likes_is_opaque():
    assert opaque(told(lambda: globals()["RATE"])) == ["train.globals() (reads what it likes)"]
    assert not opaque(told(lambda net: net.eval()))


def test_what_is_known_is_called_by_its_name_and_cycles_end():
    net, job = nn.Linear(2, 2), Job(1)
    job.net, job.me = net, job
    found = captured({"train": job.train}, {id(net): "network net"})
    assert found["train.self.net"] == "network net"
    assert found["train.self.me"] == "as train.self"


def test_what_is_new_is_named_by_the_first_part_that_is():
    job = Job(1)
    before = told(job)
    job.value, job.log = 2, {"a": {"b": 1, "c": 2}}
    assert changed(before, told(job)) == {"train.value", "train.log"}


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x).relu()


def test_a_network_is_told_by_its_code_and_what_its_layers_hold(monkeypatch):
    def made(share=0.1):
        torch.manual_seed(0)
        return Own(nn.Linear(2, 2), nn.Dropout(share))

    one = structure(made())
    other = made().eval()
    nn.init.ones_(other[0].weight)  # which weights it begins with is told elsewhere
    assert structure(other) == one
    assert structure(made(0.2)) == {
        "code": one["code"],
        "attributes": structure(made(0.2))["attributes"],
    }
    assert structure(made(0.2)) != one
    monkeypatch.setattr(Own, "forward", lambda self, x: super(Own, self).forward(x).tanh())
    assert structure(made())["attributes"] == one["attributes"]
    assert structure(made()) != one


JOB = """
import json, types
import helper
from tombola.loops.capture import captured
options = types.SimpleNamespace(names={"a", "b", "c"}, rate=0.1)
def train():
    from helper import loss
    return helper.loss(options.names), options.rate, {"x", "y", "z"}, loss
print(json.dumps(captured({"train": train}, {}), sort_keys=True))
"""


@pytest.mark.slow
def test_it_is_the_same_in_another_process(tmp_path, monkeypatch, capsys):
    (tmp_path / "helper.py").write_text("SCALE = 2\ndef loss(x): return SCALE * len(x)\n")
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("PYTHONPATH", str(Path(tombola.__file__).parents[1]))
    runpy.run_path(str(tmp_path / "job.py"), run_name="__main__")
    words = [sys.executable, "job.py"]
    other = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = capsys.readouterr().out
    assert found == other.stdout
    assert '"train.helper.loss.SCALE": 2' in found
