"""A restarted training has the rewound weights at its step 0, and everything else anew."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import in_process
import tombola
from helpers import TinyGAN, run, same
from tombola.api import carry_out
from tombola.config.runtime import Runtime, seed_everything
from tombola.config.sections import build
from tombola.data.batches import Batches
from tombola.data.sources import load_images
from tombola.engine.context import Context
from tombola.engine.request import train_request
from tombola.engine.stages import execute
from tombola.engine.ticket_config import ticket_config
from tombola.plan import plans as recipes
from tombola.plan.setting import resolve
from tombola.store.container import read_manifest
from tombola.store.runs import Store
from tombola.tickets.ticket import load_ticket
from tombola.training.checkpoint import load_state, load_weights_file
from tombola.training.trainer import Settings, Trainer

HERE = Path(__file__).parent
GAN = f"{HERE / 'toy_task.py'}:TinyGAN"
AE = f"{HERE / 'toy_task.py'}:TinyAE"
N, K = 12, 5
RESTART = {"rewind": {"schedule": "restart"}}


def find(out, task=AE, **options):
    small = {
        "steps": N,
        "rounds": 2,
        "rate": "0.5",
        "seeds": 1,
        "controls": "reinit,shuffle",
        "rewind": f"{K}it",
        "threads": 1,
        "workers": 1,
    }
    judge = {"samples": 20, "validation_samples": 0, "sampling_seeds": 1, "steps": 1}
    settings = {**RESTART, "judge": judge, **options.pop("settings", {})}
    with in_process.Restored():
        return tombola.find(task, out=out, settings=settings, **{**small, **options})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        in_process.use(patch)
        return find(tmp_path_factory.mktemp("restart") / "out")


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """The store of a restarted search's trainings, which nobody judges: (store, label -> node)."""
    tables = {
        "task": {"name": GAN},
        "train": {"steps": N},
        "search": {"rounds": 1, "rate": "0.5", "seeds": 1, "rewind": f"{K}it"},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
        **RESTART,
    }
    store = Store(tmp_path_factory.mktemp("gan"))
    context = Context(
        store=store,
        task=GAN,
        data="digits",
        data_dir=None,
        skip_broken=False,
        device="cpu",
        keep_steps=(K,),
        inputs={"criterion": "magnitude"},
    )
    nodes = {}
    with in_process.Restored():
        for node in recipes.search(resolve(build(tables), None)).graph:
            if node.kind in ("train", "rewind", "mask"):
                execute(node, context)
                nodes[node.label] = node
    return store, nodes


@pytest.mark.parametrize("kind", ["ticket", "shuffle"])
def test_a_restart_is_a_training_from_step_0_with_the_weights_of_the_rewind_point(gan, kind):
    store, nodes = gan
    node = nodes[f"{kind} of level 1, seed 0"]
    assert (node.config["from_step"], node.config["steps"], node.steps) == (0, N, N)
    end = load_weights_file(store.path(node.hash) / "final.safetensors")
    point = nodes[f"rewind point {K}, seed 0"]
    state, manifest = load_state(store.path(point.hash) / "state.safetensors")
    assert manifest["step"] == K
    ticket = load_ticket(store.path(nodes["mask of level 1, seed 0"].hash) / "ticket.safetensors")
    masks = {name: end[name] != 0 for name in ticket.masks}
    assert same(masks, ticket.masks) == (kind == "ticket")
    with in_process.Restored():
        seed_everything(0, "another")
        task = TinyGAN()
        networks = task.networks((1, 8, 8))
        pictures = load_images("digits", (1, 8, 8)).splits["train"]
        settings = Settings(runtime=Runtime.open("cpu", "fp32", 1), seed=0, total_steps=N)
        batches = Batches(pictures, task.batch_size, 0)
        trainer = Trainer(task, networks, batches, settings, masks)
        trainer.rewind(state, {"step": 0}, optimizer=False)
        assert same(run(trainer, N).judged_weights(), end)


def rows(out):
    with (out / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["metric"] == "reconstruction_error"]


def test_a_restarted_search_says_where_it_rewound_to_and_costs_n_steps_a_round(found):
    assert {row["rewind_steps"] for row in rows(found.out)} == {str(K)}
    assert tombola.load(found.tickets[0]).manifest["rewind_step"] == K
    with (found.out / "costs.csv").open() as file:
        costs = {(row["arm"], row["round"]): row for row in csv.DictReader(file)}
    dense = float(costs["dense", "0"]["train_flops"])
    for arm in ("ticket", "reinit", "shuffle"):
        assert float(costs[arm, "2"]["train_flops"]) == dense
        assert float(costs[arm, "2"]["search_flops"]) == 2 * dense


def test_train_with_a_restarted_ticket_repeats_its_row(found, tmp_path, monkeypatch):
    in_process.use(monkeypatch)
    ticket = found.tickets[1]
    tables = {"task": {"name": AE}, "data": {"name": "digits"}}
    config = ticket_config(ticket, read_manifest(ticket), tables)
    assert config.rewind.schedule == "restart"
    with in_process.Restored():
        carry_out(train_request(config, None, tmp_path / "out", "again", ticket))
    wanted = [row for row in rows(found.out) if (row["arm"], row["round"]) == ("ticket", "2")]
    assert rows(tmp_path / "out") == wanted


def test_the_dense_run_and_the_first_mask_are_those_of_the_usual_policy():
    def names(kind, **more):
        tables = {
            "task": {"name": AE},
            "search": {"rounds": 1, "seeds": 1, "rewind": f"{K}it", "controls": []},
            "run": {"threads": 1, "workers": 1, "device": "cpu"},
            **more,
        }
        graph = recipes.search(resolve(build(tables), None)).graph
        return {node.label: node.hash for node in graph if node.kind == kind}

    for kind in ("rewind", "mask"):
        assert names(kind) == names(kind, **RESTART)
    usual, again = names("train"), names("train", **RESTART)
    assert usual["dense, seed 0"] == again["dense, seed 0"]
    assert usual["ticket of level 1, seed 0"] != again["ticket of level 1, seed 0"]
    assert usual == names("train", rewind={"schedule": "continue"})


def test_another_policy_in_the_same_folder_is_refused_with_the_difference(found):
    before = (found.out / "results.csv").read_bytes()
    with pytest.raises(tombola.ConfigError, match=r"rewind\.schedule 'restart' -> 'continue'"):
        find(found.out, settings={"rewind": {"schedule": "continue"}})
    assert (found.out / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"rewind": {"schedule": "again"}}, "unknown rewind.schedule 'again'"),
        (
            {**RESTART, "search": {"optimizer_at_rewind": "restore"}},
            "rewind.schedule=restart begins with a fresh optimizer",
        ),
        ({"rewind": {"step": 3}}, r"unknown key of section \[rewind\] 'step'"),
    ],
)
def test_what_does_not_go_together_is_refused(tables, words):
    with pytest.raises(tombola.ConfigError, match=words):
        build(tables)
