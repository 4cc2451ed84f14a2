"""A folder that is taken up again: what is added, what is refused, and which files stay."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import in_process
import tombola
from tombola import api
from tombola.api import carry_out
from tombola.config.sections import build
from tombola.engine import rebuild as rebuilding
from tombola.engine import search
from tombola.engine.request import train_request
from tombola.engine.ticket_config import ticket_config
from tombola.errors import ConfigError, DataError
from tombola.plan import plans as recipes
from tombola.plan.cells import Arm, Cell, Plan
from tombola.plan.setting import resolve
from tombola.results import handed_out
from tombola.store.container import read_manifest
from tombola.store.runs import Store, write_json, write_log
from tombola.store.tables import read_costs

HERE = Path(__file__).parent
AE, GAN = (f"{HERE / 'toy_task.py'}:{name}" for name in ("TinyAE", "TinyGAN"))
VAE = f"{HERE / 'twin_tasks.py'}:TwinVAE"
OPTIONS = {
    "data": "digits",
    "steps": 6,
    "rounds": 1,
    "rate": "0.5",
    "seeds": 1,
    "rewind": "2it",
    "controls": "none",
    "threads": 1,
    "workers": 1,
    "device": "cpu",
}
JUDGE = {"samples": 20, "validation_samples": 10, "sampling_seeds": 2}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Searches run in this process, and nobody reads their pages."""
    in_process.use(monkeypatch)
    monkeypatch.setattr(api, "write_report", lambda out: None)
    with in_process.Restored():
        yield


def find(out, task=AE, judge=(), **options):
    settings = {"judge": {**JUDGE, **dict(judge)}}
    return tombola.find(task, out=out, settings=settings, **{**OPTIONS, **options})


def train(out, task=AE, **options):
    """What ``tombola train`` does."""
    tables = {
        "task": {"name": task},
        "data": {"name": "digits"},
        "train": {"steps": OPTIONS["steps"], **options},
        "search": {"seeds": 1, "rewind": "0it"},
        "judge": JUDGE,
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }
    return carry_out(train_request(build(tables), None, out, "train"))


def train_ticket(out, ticket):
    """What ``tombola train --ticket`` does."""
    tables = {"task": {"name": AE}, "data": {"name": "digits"}}
    config = ticket_config(ticket, read_manifest(ticket), tables)
    return carry_out(train_request(config, None, out, "train", ticket))


def kept(out):
    """The files of a folder but for its store, and what is in them."""
    paths = (p for p in out.rglob("*") if p.is_file() and "store" not in p.parts)
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if p.name != ".lock"}


def names(out):
    return {name for name in kept(out) if "/" in name}


# --- what a folder holds is not lost ---


def test_what_would_make_less_of_a_folder_is_refused_and_changes_nothing(tmp_path):
    out = tmp_path / "out"
    ticket = find(out, rounds=2, method="imp,one-shot", controls="reinit").tickets[0]
    before = kept(out)
    full = {"rounds": 2, "method": "imp,one-shot", "controls": "reinit"}
    for change, words in (
        ({"rounds": 1}, r"search\.rounds 2 -> 1 \(it can only grow\)"),
        (
            {"method": "one-shot"},
            r"search\.method \['imp', 'one-shot'\] -> \['one-shot'\] \(it can",
        ),
        ({"controls": "erk"}, r"search\.controls \['reinit'\] -> \['erk'\] \(they can only gain"),
    ):
        with pytest.raises(tombola.ConfigError, match=words) as caught:
            find(out, **{**full, **change})
        assert f"{out} holds a search" in str(caught.value)
        assert "choose another folder with --out" in str(caught.value)
    with pytest.raises(tombola.ConfigError, match="the kind of command 'search' -> 'dense'"):
        train(out)
    with pytest.raises(tombola.ConfigError, match="the kind of command 'search' -> 'ticket:"):
        train_ticket(out, ticket)
    assert kept(out) == before
    more = find(out, rounds=2, method="one-shot,imp", controls="shuffle,reinit")
    assert more.summary["runs"]["trained"] == 3  # of the first level both methods have one mask
    assert {row.arm for row in more.rows} == {"dense", "ticket", "reinit", "shuffle"}


def test_levels_that_are_given_can_be_added_above_those_that_are_there(tmp_path):
    out, plain = tmp_path / "out", {**OPTIONS}
    for key in ("rounds", "rate"):
        del plain[key]
    settings = {"judge": JUDGE}
    first = tombola.find(AE, out=out, settings=settings, sparsity="0.5,0.7", **plain)
    masks = {p.name: p.read_bytes() for p in first.tickets}
    more = tombola.find(AE, out=out, settings=settings, sparsity="0.5,0.7,0.8", **plain)
    assert more.summary["runs"] == {"trained": 1, "reused": 3, "diverged": 0}
    ticket = tombola.load(more.tickets[0])
    assert len(more.tickets) == 3
    (out / "again").mkdir()
    (out / "again" / "old.safetensors").write_bytes(masks[more.tickets[0].name])
    old = tombola.load(out / "again" / "old.safetensors")
    assert all((old.masks[name] == ticket.masks[name]).all() for name in ticket.masks)


@pytest.mark.parametrize("task", [AE, VAE, GAN])
def test_a_search_adds_to_a_dense_training(task, tmp_path):
    out = tmp_path / "out"
    assert train(out, task).summary["runs"]["trained"] == 1
    assert json.loads((out / "config.json").read_text())["resolved"]["recipe"] == "dense"
    found = find(out, task)
    assert found.summary["runs"] == {"trained": 1, "reused": 1, "diverged": 0}
    whole = find(tmp_path / "whole", task)
    assert (out / "results.csv").read_bytes() == (whole.out / "results.csv").read_bytes()
    assert found.summary["sampling_sd"] == whole.summary["sampling_sd"]
    assert json.loads((out / "config.json").read_text())["resolved"]["recipe"] == "search"
    assert not list((out / "store").rglob("judge-*.safetensors"))  # none is judged again


# --- metrics that are added ---


@pytest.mark.parametrize("task", [AE, VAE])
def test_a_classifier_is_added_without_training_again(task, tmp_path):
    out = tmp_path / "out"
    bare = find(out, task, {"downstream": "none"})
    assert not any(row.metric == "accuracy" for row in bare.rows)
    more = find(out, task, {"downstream": "auto"})
    assert more.summary["runs"]["trained"] == 0
    at_once = find(tmp_path / "whole", task)
    assert {"accuracy", "early_stopping_step"} <= {row.metric for row in more.rows}
    assert (out / "results.csv").read_bytes() == (at_once.out / "results.csv").read_bytes()
    assert (out / "log.jsonl").read_bytes() == (at_once.out / "log.jsonl").read_bytes()
    # Early states are gone, so whether the accuracy had settled is not known afterwards.
    late = more.summary["verdicts"]["accuracy"]["learning"]
    assert (late.pop("moved"), late.pop("settled")) == (None, None)
    for name in ("moved", "settled"):
        at_once.summary["verdicts"]["accuracy"]["learning"].pop(name)
    for key in ("convergence", "sampling_sd", "verdicts"):
        assert more.summary[key] == at_once.summary[key]
    assert more.summary["convergence"]
    with pytest.raises(tombola.ConfigError, match=r"judge\.downstream 'auto' -> 'none'"):
        find(out, task, {"downstream": "none"})


def test_what_needs_states_that_are_gone_is_refused_before_anything_runs(tmp_path, monkeypatch):
    for name, task, before, after in (
        ("gan", GAN, {"downstream": "none"}, {}),
        ("ae", AE, {"validation_samples": 0}, {}),
    ):
        out = tmp_path / name
        find(out, task, before)
        there = kept(out)
        with monkeypatch.context() as patch:
            patch.setattr(search, "carry_graph", None)
            with pytest.raises(
                tombola.ConfigError, match="states on the way are not kept"
            ) as caught:
                find(out, task, after)
        assert "choose another folder with --out, where --keep all keeps them" in str(caught.value)
        assert kept(out) == there


def test_kept_states_are_judged_by_whatever_is_added(tmp_path):
    for name, task, before in (
        ("gan", GAN, {"downstream": "none"}),
        ("ae", AE, {"validation_samples": 0}),
    ):
        out = tmp_path / name
        find(out, task, before, keep="all")
        more = find(out, task, keep="all")
        assert more.summary["runs"]["trained"] == 0
        whole = find(tmp_path / f"{name}-whole", task)
        assert (out / "results.csv").read_bytes() == (whole.out / "results.csv").read_bytes()


def test_features_of_one_s_own_can_be_added(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef halves(images):\n"
        "    return images.flatten(1).unfold(1, 8, 8).float().mean(2)\n"
    )
    out, own = tmp_path / "out", f"{tmp_path / 'mine.py'}:halves"
    find(out, VAE, {"validation_samples": 0})
    more = find(out, VAE, {"validation_samples": 0, "features": own})
    assert more.summary["runs"]["trained"] == 0
    assert any("mine" in row.metric or "halves" in row.metric for row in more.rows)


# --- files that are handed out ---


def test_files_of_a_plan_that_was_outgrown_are_removed_and_no_others(tmp_path):
    out = tmp_path / "out"
    find(out, keep="all")
    flat = names(out)
    assert "tickets/seed0-round01.safetensors" in flat
    mine = [
        out / "tickets" / "mine.safetensors",
        out / "tickets" / "backup" / "seed0-round01.safetensors",
        out / "models" / "mine-seed0-round01.safetensors",
        out / "samples" / "notes.png",
        out / "seed0-round01.safetensors",
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    more = find(out, rewind="2it,0it")
    assert [str(p.relative_to(out)) for p in more.tickets if p not in mine] == [
        "tickets/imp-all-r0/seed0-round01.safetensors",
        "tickets/imp-all-r2/seed0-round01.safetensors",
    ]
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert names(out) & flat == {"samples/originals.png"}
    find(out, rewind="2it,0it", precision="fp32,bf16")
    arms = {path.name for path in (out / "tickets").iterdir() if path.is_dir()}
    assert arms == {f"imp-all-r{k}-{p}" for k in (0, 2) for p in ("fp32", "bf16")} | {"backup"}


def test_only_one_s_own_names_are_cleared_and_only_after_all_is_written(tmp_path, monkeypatch):
    cell = Cell(
        arm=Arm(method="imp", networks="all", rewind="0it", precision="fp32"),
        kind="reinit-chain", seed=3, round=101, rewind_steps=0, kept=1, pool=1,
        sparsity=0.0, sparsity_all=0.0, train="", evaluate="",
    )  # fmt: skip
    written = [
        folder / handed_out.name_of(folder.name, cell)
        for folder in (tmp_path / kind for kind in ("tickets", "models", "samples"))
    ]
    arm = "imp-generator<-vae.decoder-r10"
    channels = "early-bird-generator+discriminator-c0.5-bf16"
    old = [path.parent / folder / path.name for path in written for folder in ("", arm, channels)]
    other = [path.parent / "imp-mine" / path.name for path in written]
    for path in (*old, *other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    handed_out.clear(tmp_path, old)
    assert all(path.exists() for path in (*old, *other))
    handed_out.clear(tmp_path, written)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {*written, *other}
    assert not (tmp_path / "tickets" / arm).exists()

    out = tmp_path / "out"
    find(out)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tombola.results.exports.clear", stop)
    with pytest.raises(KeyboardInterrupt):
        find(out, rewind="2it,0it")
    assert {
        "tickets/seed0-round01.safetensors",
        "tickets/imp-all-r0/seed0-round01.safetensors",
        "models/imp-all-r2/ticket-seed0-round01.safetensors",
    } <= names(out)


def test_sizes_are_those_of_the_files_that_are_handed_out(tmp_path):
    out = tmp_path / "out"
    found = find(out, rounds=2)
    for row in read_costs(out / "costs.csv"):
        if row.arm == "ticket":
            path = out / "tickets" / f"seed0-round{row.round:02d}.safetensors"
            assert row.ticket_bytes == path.stat().st_size
        path = out / "models" / f"{row.arm}-seed0-round{row.round:02d}.safetensors"
        if not path.exists():  # not the best round
            (path,) = (
                p for p in (out / "store").glob("*/final.safetensors")
                if json.loads((p.parent / "run.json").read_text())["label"]
                == f"ticket of level {row.round}, seed 0"
            )  # fmt: skip
        assert row.model_bytes == path.stat().st_size
    before = (out / "costs.csv").read_bytes()
    assert find(out, rounds=2).summary["runs"]["trained"] == 0
    assert (out / "costs.csv").read_bytes() == before
    shutil.rmtree(found.out / "models")
    find(out, rounds=2)
    assert (out / "costs.csv").read_bytes() == before


def test_the_log_tells_arms_of_two_precisions_apart(tmp_path):
    out = tmp_path / "out"
    find(out, precision="fp32,bf16")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {line["precision"] for line in lines} == {"fp32", "bf16"}


def test_originals_are_whole_or_not_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    find(out)
    path = out / "samples" / "originals.png"
    before = path.read_bytes()

    def broken(place, images, **_):
        place.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tombola.results.exports.save_grid", broken)
    with pytest.raises(OSError, match="No space"):
        find(out)
    assert path.read_bytes() == before


def test_a_ticket_that_needs_an_optimizer_s_state_says_so(tmp_path):
    settings = {"judge": JUDGE, "search": {"optimizer_at_rewind": "restore"}}
    (ticket,) = tombola.find(AE, out=tmp_path / "a", settings=settings, **OPTIONS).tickets
    with pytest.raises(tombola.TicketError, match=r"--set search\.optimizer_at_rewind=fresh"):
        train_ticket(tmp_path / "b", ticket)
    assert not (tmp_path / "b").exists()
    told = rebuilding.rebuild(ticket, AE, "digits")  # its start weights do not depend on that
    assert "equal bits" in told


@pytest.mark.parametrize(
    "policy", [{"rewind": {"schedule": "restart"}}, {"search": {"optimizer_at_rewind": "restore"}}]
)
def test_a_channel_ticket_goes_on_at_its_cut_whatever_weights_are_rewound_to(policy):
    tables = {
        "task": {"name": AE.replace("TinyAE", "WideGAN")},
        **policy,
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }
    ticket = {
        "sha256": "0" * 64, "method": "early-bird", "networks": "all", "rewind": "10it",
        "rewind_step": 10, "seed": 0, "round": 1, "granularity": "channel", "sparsity": 0.5,
        "sparsity_all": 0.4, "compact": True,
    }  # fmt: skip
    (cell,) = (plan := recipes.from_ticket(resolve(build(tables), None), ticket)).cells
    config = plan.graph[cell.train].config
    assert (config["from_step"], config["optimizer"]) == (10, "fresh")


# --- numbers that JSON does not have ---


def test_numbers_that_are_not_finite_are_null(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, (-math.inf,)], "c": {"d": 2, "e": "NaN"}}
    plain = {"a": None, "b": [1.5, None, [None]], "c": {"d": 2, "e": "NaN"}}
    write_json(tmp_path / "a.json", value)
    write_log(tmp_path / "a.jsonl", [value, {"f": 0.1}])
    assert "Infinity" not in (tmp_path / "a.json").read_text()
    assert json.loads((tmp_path / "a.json").read_text()) == plain
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [plain, {"f": 0.1}]
    assert "NaN," not in lines[0]


def test_precisions_may_come_in_another_order(tmp_path):
    out = tmp_path / "out"
    first = find(out, GAN, precision="fp32,bf16")
    again = find(out, GAN, precision="bf16,fp32")
    assert again.summary["runs"]["trained"] == 0
    assert again.summary["sampling_sd"] == first.summary["sampling_sd"]


def test_the_most_memory_is_that_of_each_training_alone():
    from tombola.engine import stages

    device = torch.device("cpu")
    if not stages._forget_peak(device):
        pytest.skip("this system does not tell")
    before = stages._peak_memory_bytes(device)
    held = torch.ones(50_000_000)
    with_it = stages._peak_memory_bytes(device)
    assert with_it > before + 150_000_000
    del held
    assert stages._peak_memory_bytes(device) > with_it - 10_000_000
    assert stages._forget_peak(device)
    assert stages._peak_memory_bytes(device) < with_it - 100_000_000


# --- what changes while a search runs ---


def test_a_task_s_file_that_is_changed_meanwhile_ends_the_search(tmp_path, monkeypatch):
    own = tmp_path / "own.py"
    text = (
        (HERE / "toy_task.py").read_text().replace("Path(__file__).parent", f"Path({str(HERE)!r})")
    )
    own.write_text(text)
    from tombola.engine import stages

    train = stages.STAGES["train"]

    def edited(node, context):
        train(node, context)
        own.write_text(text + "\n# another thought\n")

    with monkeypatch.context() as patch:
        patch.setitem(stages.STAGES, "train", edited)
        with pytest.raises(ConfigError, match=r"own\.py was changed while its search ran"):
            find(tmp_path / "out", f"{own}:TinyAE")
    own.write_text(text)
    again = find(tmp_path / "out", f"{own}:TinyAE")
    assert again.summary["runs"]["reused"] == 1


def test_images_that_come_in_another_order_are_no_images_of_the_search(tmp_path):
    from tombola.engine.context import Context

    shape = [1, 8, 8]
    fields = {"task": AE, "data": "digits", "data_dir": None, "skip_broken": False, "device": "cpu"}
    context = Context(store=Store(tmp_path), **fields)
    with pytest.raises(DataError, match="has other images now than when the search began"):
        context.images({"sha256": "0" * 64, "shape": shape})
    setting = resolve(build({"task": {"name": AE}}), None)
    same = {"sha256": setting.images.sha256, "shape": list(setting.shape)}
    assert context.images(same).sha256 == setting.images.sha256


def test_states_that_nobody_judges_are_not_kept(tmp_path):
    from tombola.store.graph import Graph, Node

    store, graph = Store(tmp_path), Graph()
    judged, other = (graph.add(Node("train", {"start": s}, {}, s)) for s in ("dense", "ticket"))
    graph.add(Node("evaluate", {}, {"train": judged}, "judge"))
    graph.add(Node("mask", {}, {"source": other}, "mask"))
    for name in (judged, other):
        part = store.begin(name)
        (part / "judge-5.safetensors").write_bytes(b"x")
        (part / "final.safetensors").write_bytes(b"x")
        store.commit(name, {"kind": "train"})
    plan = Plan(graph=graph)
    for name in (judged, other):
        search.Discards(plan, store).look_again(graph[name])
    assert sorted(p.parent.name for p in store.folder.rglob("judge-*")) == [judged]
    assert len(list(store.folder.rglob("final*"))) == 2
