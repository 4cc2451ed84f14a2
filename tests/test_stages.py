"""Stages cut off in the middle, replayed rewind points, and whose fault an error is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tombola.config.sections import build
from tombola.data.sources import load_images
from tombola.engine import classifier, loop
from tombola.engine.context import Context
from tombola.engine.executors.protocol import blame_users_file
from tombola.engine.stages import execute
from tombola.errors import ConfigError
from tombola.plan.cells import judged_steps
from tombola.plan.plans import search
from tombola.plan.setting import resolve
from tombola.store.runs import Store
from tombola.training.checkpoint import load_state, load_weights_file
from tombola.training.trainer import Trainer

TASK = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"


def plan(kind="TinyAE", **search_options):
    config = build(
        {
            "task": {"name": TASK.replace("TinyAE", kind)},
            "train": {"steps": 25},
            "search": {"rounds": 1, "rate": "0.5", "seeds": 1, "rewind": "5it", **search_options},
            "run": {"threads": 1, "workers": 1, "device": "cpu"},
        }
    )
    return search(resolve(config, None))


def context(folder, keep_steps=(5,), kind="TinyAE"):
    return Context(
        store=Store(folder),
        task=TASK.replace("TinyAE", kind),
        data="digits",
        data_dir=None,
        skip_broken=False,
        device="cpu",
        keep_steps=keep_steps,
        inputs={"criterion": "magnitude"},
    )


def carry_out(plan, context):
    for node in plan.graph:
        execute(node, context)


class CutOffError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 9, 24])
@pytest.mark.parametrize("kind", ["TinyAE", "TinyGAN"])
def test_a_training_cut_off_between_checkpoints_ends_at_the_same_bytes(
    tmp_path, monkeypatch, at, kind
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    graph = plan(kind)
    dense = next(node for node in graph.graph if node.kind == "train")
    execute(dense, context(whole, kind=kind))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MOST_SHARE", float("inf"))
    advance = Trainer.advance

    def failing(self):
        if self.step == at:
            raise CutOffError
        advance(self)

    monkeypatch.setattr(Trainer, "advance", failing)
    with pytest.raises(CutOffError):
        execute(dense, context(cut, kind=kind))
    assert (cut / f"{dense.hash}.part" / "checkpoint.safetensors").exists()
    monkeypatch.setattr(Trainer, "advance", advance)
    started = []
    monkeypatch.setattr(
        Trainer,
        "resume",
        lambda self, t, m, f=Trainer.resume: (f(self, t, m), started.append(self.step)),
    )
    execute(dense, context(cut, kind=kind))
    assert started == [at]
    for name in ("final.safetensors", "state-5.safetensors"):
        assert (cut / dense.hash / name).read_bytes() == (whole / dense.hash / name).read_bytes()
    records = [Store(folder).record(dense.hash) for folder in (whole, cut)]
    assert records[0]["log"] == records[1]["log"]


def test_a_rewind_point_that_was_not_kept_is_replayed_to_the_same_state(tmp_path):
    graph = plan()
    carry_out(graph, context(tmp_path / "kept"))
    carry_out(graph, context(tmp_path / "replayed", keep_steps=()))
    rewind = next(node for node in graph.graph if node.kind == "rewind")
    stores = Store(tmp_path / "kept"), Store(tmp_path / "replayed")
    assert [store.record(rewind.hash)["replayed"] for store in stores] == [False, True]
    states = [load_state(store.path(rewind.hash) / "state.safetensors") for store in stores]
    assert states[0][0].keys() == states[1][0].keys()
    assert all(torch.equal(states[0][0][k], states[1][0][k]) for k in states[0][0])


def test_restored_optimizer_trains_another_ticket_than_a_fresh_one(tmp_path):
    ends = []
    for policy in ("fresh", "restore"):
        graph = plan(optimizer_at_rewind=policy)
        carry_out(graph, context(tmp_path / policy))
        node = next(n for n in graph.graph if n.label.startswith("ticket"))
        ends.append(load_weights_file(tmp_path / policy / node.hash / "final.safetensors"))
    assert any(not torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_judged_steps_are_the_last_five_of_25_for_gans():
    assert judged_steps("gan", 1000) == (840, 880, 920, 960, 1000)
    assert judged_steps("autoencoder", 1000) == (800, 1000)
    assert judged_steps("gan", 3) == (3,)


def test_a_judge_cut_off_in_training_ends_at_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "MIN_STEPS", 12)
    config = {"epochs": 0.1, "steps": 12}
    images = load_images("digits", (1, 32, 32))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    classifier.train_judge(config, images, tmp_path / "a")
    monkeypatch.setattr(classifier, "CHECKPOINT_SECONDS", 0.0)
    advance = Trainer.advance
    monkeypatch.setattr(
        Trainer,
        "advance",
        lambda self: advance(self) if self.step < 7 else (_ for _ in ()).throw(CutOffError),
    )
    with pytest.raises(CutOffError):
        classifier.train_judge(config, images, tmp_path / "b")
    monkeypatch.setattr(Trainer, "advance", advance)
    classifier.train_judge(config, images, tmp_path / "b")
    first, second = (load_judge_weights(tmp_path / name) for name in "ab")
    assert first == second


def load_judge_weights(folder):
    from tombola.metrics.features import load_judge

    return load_judge(folder / "judge.safetensors").sha256


def test_an_error_of_the_users_task_names_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def loss():\n    raise ValueError('no such thing')\n")
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    words = r"^mine\.py, line 2: ValueError: no such thing; mend"
    for context in ({"task": f"{path}:Mine"}, {"task": "ae", "tasks": {"b": f"{path}:Mine"}}):
        with pytest.raises(ConfigError, match=words), blame_users_file(context):
            space["loss"]()
    for task in ("dcgan", f"{tmp_path / 'other.py'}:Mine"):
        with pytest.raises(ValueError, match=r"^no such"), blame_users_file({"task": task}):
            space["loss"]()


def test_the_record_of_a_run_names_its_parents(tmp_path):
    graph = plan()
    carry_out(graph, context(tmp_path))
    for node in graph.graph:
        record = json.loads((tmp_path / node.hash / "run.json").read_text())
        assert record["parents"] == dict(node.parents)
        assert record["config"] == json.loads(json.dumps(node.config))


def test_a_network_whose_judged_values_are_not_finite_counts_as_diverged(tmp_path):
    graph = plan("Unjudgeable", controls=[])
    carry_out(graph, context(tmp_path, kind="Unjudgeable"))
    for node in graph.graph:
        record = Store(tmp_path).record(node.hash)
        if node.kind == "evaluate":
            assert record["diverged"] == 25
            assert record["why"] == "not finite: reconstruction_error"
            assert "values" not in record
