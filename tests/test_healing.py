"""Whatever is damaged in a finished search, the same command ends with the same bytes."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

import in_process
import tombola
from helpers import strip_checksum
from tombola.config.sections import build
from tombola.engine import search
from tombola.engine.mending import whole_runs
from tombola.engine.request import find_request
from tombola.store import container
from tombola.store import graph as plans
from tombola.store.runs import Store

HERE = Path(__file__).parent
AE, GAN, WIDE = (f"{HERE / 'toy_task.py'}:{name}" for name in ("TinyAE", "TinyGAN", "WideGAN"))
KINDS = ("flip", "zeros", "half", "empty", "gone")
RESULTS = ("results.csv", "log.jsonl", "tickets/*", "models/*", "samples/*")


class Notes(search.Progress):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def request(out, task=AE, rounds=1, data="digits", search_options=(), **judge):
    asked = {"rounds": rounds, "rate": "0.5", "seeds": 1, "rewind": "2it", "controls": ["shuffle"]}
    tables = {
        "task": {"name": task},
        "data": {"name": data},
        "train": {"steps": 8},
        "search": {**asked, **dict(search_options)},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
        "judge": {"samples": 20, "validation_samples": 10, "sampling_seeds": 2, "steps": 1} | judge,
    }
    return find_request(build(tables), None, out, "again")


def run(out, *args, **options):
    """Carry a search out in this process; (result, notes)."""
    notes = Notes()
    with in_process.Restored():
        return search.run(request(out, *args, **options), notes), notes.lines


@pytest.fixture(scope="module", autouse=True)
def here():
    """Searches run in this process, and what is asked twice is resolved once."""
    with pytest.MonkeyPatch.context() as patch:
        in_process.use(patch)
        known = {}
        resolve = search.resolve

        def remember(config, *rest):
            key = json.dumps(config.tables(), sort_keys=True), *rest
            if key not in known:
                known[key] = resolve(config, *rest)
            return known[key]

        patch.setattr(search, "resolve", remember)
        yield


@functools.cache
def finished(base, **options):
    """A finished search of one level, and what one of two levels comes to, by file."""
    run(base / "one", rounds=1, **options)
    shutil.copytree(base / "one", base / "two")
    run(base / "two", rounds=2, **options)
    return base / "one", {1: results(base / "one"), 2: results(base / "two")}


def results(out):
    found = {p for pattern in RESULTS for p in out.glob(pattern)}
    return {str(p.relative_to(out)): p.read_bytes() for p in found}


def damage(path, kind, draw):
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    if kind == "gone":
        return path.unlink()
    if kind == "flip":
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        whole[middle:] = bytes(len(whole) - middle)
    path.write_bytes({"half": whole[:middle], "empty": b""}.get(kind, whole))
    return None


def check(source, whole, target, where, kind, rounds, **options):
    """Damage a file of a copy, run, and compare: the same bytes, and a note that says why."""
    shutil.copytree(source, target)
    damage(target / where, kind, random.Random(f"{where}/{kind}"))
    there = results(target)
    try:
        _, notes = run(target, rounds=rounds, **options)
        refused = ""
    except tombola.UserError as error:
        refused = str(error)
    if refused:  # what was asked for is in this file alone
        assert where == "config.json"
        assert "config.json" in refused or "another config" in refused
        assert results(target) == there
        return
    assert results(target) == whole[rounds], (where, kind, rounds)
    assert not list(target.rglob("*.part"))
    if where.startswith("store") and kind not in (
        "flip",
        "zeros",
    ):  # of the old size: found if read
        (line,) = [note for note in notes if "made again" in note]
        assert "that are made again, with the same results: " in line
    shutil.rmtree(target)


def files(out):
    paths = (p for p in out.rglob("*") if p.is_file() and p.name not in (".lock", "report.html"))
    return sorted(str(p.relative_to(out)) for p in paths)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("healing")


def kind_of(out, where):
    parts = Path(where).parts
    if parts[0] != "store":
        return parts[0]
    return json.loads((out / "store" / parts[1] / "run.json").read_text())["kind"], parts[2]


def test_one_file_of_every_kind_is_mended(base, tmp_path):
    source, whole = finished(base / "fast")
    first = {kind_of(source, where): where for where in reversed(files(source))}
    assert {("train", "final.safetensors"), ("mask", "ticket.safetensors")} < first.keys()
    assert {("rewind", "state.safetensors"), ("evaluate", "grid.png")} < first.keys()
    for index, where in enumerate(first.values()):
        check(source, whole, tmp_path / str(index), where, KINDS[index % 5], 1 + index % 2)


def damaged(base, tmp_path, where, kind="flip"):
    """A copy of the fast search with a file damaged."""
    source, whole = finished(base / "fast")
    shutil.copytree(source, tmp_path / "out")
    (path,) = [p for p in files(source) if where == kind_of(source, p)][:1]
    damage(tmp_path / "out" / path, kind, random.Random(0))
    return tmp_path / "out", whole


def test_a_copy_that_is_handed_out_stays_though_the_store_lost_its_source(base, tmp_path):
    out, whole = damaged(base, tmp_path, ("train", "final.safetensors"), "gone")
    seen = []

    class Watching(Notes):
        def finished(self, node):
            seen.append(results(out))

    with in_process.Restored():
        search.run(request(out), Watching())
    assert seen
    assert all(each.keys() == whole[1].keys() for each in seen)
    assert results(out) == whole[1]


def test_a_changed_digit_of_a_judgement_is_found(base, tmp_path):
    source, whole = finished(base / "fast")
    out = tmp_path / "out"
    shutil.copytree(source, out)
    changed = 0
    for path in (out / "store").glob("*/run.json"):
        text = path.read_text()
        found = re.search(r'"reconstruction_error": 0\.\d', text)
        if found and "dense" in json.loads(text)["label"]:
            path.write_text(
                text.replace(found[0], f"{found[0][:-1]}{(int(found[0][-1]) + 1) % 10}")
            )
            changed += 1
    _, (note,) = run(out)
    assert note.count("run.json does not read (the checksum does not agree)") == min(changed, 3)
    assert results(out) == whole[1]


def test_a_file_that_is_damaged_again_once_it_was_mended_is_the_disk_s_fault(
    base, tmp_path, monkeypatch
):
    out, _ = damaged(base, tmp_path, ("mask", "ticket.safetensors"))
    commit = Store.commit

    def badly(self, name, record):
        commit(self, name, record)
        path = self.path(name) / "ticket.safetensors"
        if path.exists():
            damage(path, "flip", random.Random(0))

    monkeypatch.setattr(Store, "commit", badly)
    with pytest.raises(tombola.ConfigError, match=r"made again just now; look after the disk"):
        run(out)


def test_a_store_of_an_older_version_is_read_and_extended(base, tmp_path):
    source, whole = finished(base / "fast")
    out = tmp_path / "out"
    shutil.copytree(source, out)
    for path in (out / "store").glob("*/*"):
        if path.name == "run.json":
            record = json.loads(path.read_text())
            del record["sha256"], record["files"]
            path.write_text(json.dumps(record))
        elif path.name in ("final.safetensors", "state.safetensors"):
            strip_checksum(path)
    result, notes = run(out, rounds=2)
    assert (result.summary["runs"]["reused"], notes) == (3, [])
    assert results(out) == whole[2]
    for path in (out / "store").glob("*/final.safetensors"):
        path.unlink()
    assert results(out) == whole[2]  # nothing was handed out less
    _, notes = run(out, rounds=2)
    assert any("final.safetensors is damaged or gone" in note for note in notes)
    assert results(out) == whole[2]


@pytest.mark.parametrize("task", [AE, GAN])
def test_judgements_of_a_newer_version_are_made_though_states_are_gone(
    base, tmp_path, monkeypatch, task
):
    source, whole = finished(base / "fast") if task == AE else finished(base / "gan", task=GAN)
    shutil.copytree(source, tmp_path / "out")
    monkeypatch.setitem(plans.SCHEMA, "evaluate", plans.SCHEMA["evaluate"] + 1)
    result, notes = run(tmp_path / "out", task=task)
    again = 0 if task == AE else 3
    assert result.summary["runs"]["trained"] == again  # an autoencoder's last state is what counts
    assert len(notes) == (again > 0)
    assert results(tmp_path / "out") == whole[1]


def test_a_lost_judgement_of_states_that_are_gone_trains_that_network_again(base, tmp_path):
    out, whole = damaged(base, tmp_path, ("evaluate", "run.json"), "gone")
    setting, plan = search.prepare(request(out))
    del setting
    store = Store(out / "store")
    assert len(store.finished() - whole_runs(plan, store)) == 1  # as --dry-run tells
    result, (note,) = run(out)
    assert result.summary["runs"] == {"trained": 1, "reused": 2, "diverged": 0}
    assert "run.json is gone" in note
    assert "needs states that are not kept" in note
    assert results(out) == whole[1]
    assert not list((out / "store").glob("*/judge-*"))


def test_a_checkpoint_that_is_damaged_counts_for_nothing(base, tmp_path):
    source, whole = finished(base / "fast")
    shutil.copytree(source, tmp_path / "out")
    store = Store(tmp_path / "out" / "store")
    name = next(n for n in store.finished() if store.record(n)["label"] == "dense, seed 0")
    shutil.rmtree(store.path(name))
    part = store.begin(name)
    (part / "checkpoint.safetensors").write_bytes(b"half of a checkpoint")
    run(tmp_path / "out")
    assert results(tmp_path / "out") == whole[1]


def test_without_hard_links_states_are_copied(base, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted", "state")

    monkeypatch.setattr(os, "link", refuse)
    run(tmp_path / "out")
    assert results(tmp_path / "out") == finished(base / "fast")[1][1]


def test_every_file_in_a_store_has_a_checksum(base):
    source, _ = finished(base / "fast")
    store = Store(source / "store")
    for name in store.finished():
        told = store.record(name)["files"]
        for path in store.path(name).iterdir():
            if path.name != "run.json" and "sha256" not in told[path.name]:
                assert container.read_header(path).sha256, path


@pytest.mark.slow
def test_every_kind_of_file_of_a_search_of_one_s_own_training_is_mended(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    data = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))

    def train():
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(6):
            optimizer.zero_grad()
            (net(data) - data).square().mean().backward()
            optimizer.step()

    def draw(out, rounds=1):
        notes = []
        tombola.draw(
            train, {"net": net}, steps=6, rewind="2it", rounds=rounds, rate="0.5", out=out,
            judge=lambda: {"loss": float((net(data) - data).square().mean())}, better="lower",
            sample=lambda: torch.zeros(4, 1, 8, 8), tell=notes.append,
        )  # fmt: skip
        return notes

    draw(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    draw(tmp_path / "two", 2)
    whole = results(tmp_path / "two")
    stored = [where for where in files(tmp_path / "one") if where.startswith("store")]
    kinds = {Path(where).name: where for where in stored}
    assert kinds.keys() == {
        "run.json", "final.safetensors", "rewind.safetensors", "start.safetensors",
        "ticket.safetensors", "grid.png",
    }  # fmt: skip
    for index, where in enumerate(kinds.values()):
        out, kind = tmp_path / str(index), KINDS[index % 5]
        shutil.copytree(tmp_path / "one", out)
        damage(out / where, kind, random.Random(where))
        notes = draw(out, 2)
        assert results(out) == whole, (where, kind)
        told = [note for note in notes if "made again, with the same results: " in note]
        assert len(told) == 1 or (not told and kind in ("flip", "zeros")), (where, kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("ae", 60, {}),
        ("gan", 20, {"task": GAN}),
        ("snip", 10, {"search_options": (("method", ("snip",)),)}),
        ("early-bird", 10, {"task": WIDE, "search_options": (("method", ("early-bird",)),)}),
    ],
)
def test_a_hundred_damages(base, tmp_path, name, count, options):
    source, whole = finished(base / name, **options)
    draw = random.Random(name)
    for index in range(count):
        where, kind = draw.choice(files(source)), draw.choice(KINDS)
        check(source, whole, tmp_path / str(index), where, kind, draw.choice((1, 2)), **options)
