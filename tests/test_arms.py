"""Several values are several arms of one search, and what they share is trained once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import in_process
import tombola
from helpers import TinyAE, TinyGAN, images, run, same
from tombola.config.runtime import Runtime, seed_everything
from tombola.data.batches import Batches
from tombola.sparsity.masks import ones, prunable
from tombola.training.trainer import Settings, Trainer

OTHERS = ("accuracy", "early_stopping_step")
HERE = Path(__file__).parent
TASK = f"{HERE / 'toy_task.py'}:TinyAE"


def find(out, monkeypatch, task=TASK, **options):
    in_process.use(monkeypatch)
    with in_process.Restored():
        small = {
            "steps": 25,
            "rounds": 2,
            "rate": "0.5",
            "seeds": 1,
            "controls": "none",
            "rewind": "5it",
            "threads": 1,
            "workers": 1,
        }
        if "sparsity" in options:
            del small["rounds"], small["rate"]
        return tombola.find(task, out=out, **{**small, **options})


def trainings(result):
    records = [json.loads(p.read_text()) for p in (result.out / "store").glob("*/run.json")]
    return Counter(r["config"]["start"] for r in records if r["kind"] == "train")


def table(result):
    """The rows of results.csv in the metric that decides, and events: one a training."""
    with (result.out / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["metric"] not in OTHERS]


def test_methods_share_the_dense_run_and_the_first_level(tmp_path, monkeypatch):
    result = find(tmp_path / "out", monkeypatch, method="imp,one-shot")
    # Level 1 of both is the same mask of the same network; level 2 is another.
    assert trainings(result) == {"dense": 1, "ticket": 3}
    rows = table(result)
    assert Counter((r["method"], r["arm"]) for r in rows) == {
        ("imp", "dense"): 1,
        ("imp", "ticket"): 2,
        ("one-shot", "dense"): 1,
        ("one-shot", "ticket"): 2,
    }
    assert len({r["value"] for r in rows if r["round"] == "1"}) == 1
    assert len({r["value"] for r in rows if r["round"] == "2"}) == 2
    assert {p.parent.name for p in result.tickets} == {"imp-all-r5", "one-shot-all-r5"}
    assert set(result.summary["arms"]) == {"imp/all/r5/fp32", "one-shot/all/r5/fp32"}


def test_one_shot_costs_only_the_dense_run_before(tmp_path, monkeypatch):
    result = find(tmp_path / "out", monkeypatch, method="one-shot")
    with (result.out / "costs.csv").open() as file:
        costs = {(r["arm"], r["round"]): r for r in csv.DictReader(file)}
    dense = float(costs["dense", "0"]["train_flops"])
    assert float(costs["ticket", "2"]["search_flops"]) == dense
    assert float(costs["ticket", "2"]["train_flops"]) == dense / 25 * 20


def test_one_shot_levels_are_nested_and_exact(tmp_path, monkeypatch):
    result = find(tmp_path / "out", monkeypatch, method="one-shot", sparsity="0.3,0.9")
    tickets = [tombola.load(path) for path in result.tickets]
    counts = [sum(int(m.sum()) for m in t.masks.values()) for t in tickets]
    assert counts == [1075, 154]  # 1536 * 0.7 = 1075.2, 1536 * 0.1 = 153.6
    assert all(
        bool((a | ~b).all())
        for a, b in zip(tickets[0].masks.values(), tickets[1].masks.values(), strict=True)
    )


def test_networks_pruned_apart_share_the_dense_run(tmp_path, monkeypatch):
    result = find(tmp_path / "out", monkeypatch, prune=["all", "encoder", "encoder,decoder"])
    assert trainings(result)["dense"] == 1
    rows = [r for r in table(result) if r["arm"] == "ticket" and r["round"] == "1"]
    assert {r["networks"] for r in rows} == {"all", "encoder", "encoder+decoder"}
    encoder = next(r for r in rows if r["networks"] == "encoder")
    assert float(encoder["sparsity"]) == 0.5
    assert float(encoder["sparsity_all"]) == 1 - (1536 + 76 - 384) / (1536 + 76)
    ticket = tombola.load(next(p for p in result.tickets if "imp-encoder-r5" in str(p)))
    assert list(ticket.masks) == ["encoder.1.weight"]


def test_rewind_points_share_the_dense_run(tmp_path, monkeypatch):
    result = find(tmp_path / "out", monkeypatch, rewind="0it,5it,0.1ep", rounds=1)
    assert trainings(result) == {"dense": 1, "ticket": 3}
    rows = [r for r in table(result) if r["arm"] == "ticket"]
    # an epoch of 1,200 images is 75 steps of 16: a tenth of it is 7.5, rounded to even
    assert sorted(int(r["rewind_steps"]) for r in rows) == [0, 5, 8]


def test_precisions_are_arms_with_a_dense_run_each(tmp_path, monkeypatch):
    result = find(tmp_path / "out", monkeypatch, precision="fp32,bf16", rounds=1)
    assert trainings(result) == {"dense": 2, "ticket": 2}
    values = {r["precision"]: r["value"] for r in table(result) if r["arm"] == "dense"}
    assert values["fp32"] != values["bf16"]
    assert float(values["bf16"]) == pytest.approx(float(values["fp32"]), rel=0.05)


def test_a_gan_is_judged_by_the_median_of_its_last_five(tmp_path, monkeypatch):
    task = TASK.replace("TinyAE", "TinyGAN")
    result = find(
        tmp_path / "out", monkeypatch, task=task, rounds=1, prune=["generator"], data="digits"
    )
    record = next(
        r
        for p in (result.out / "store").glob("*/run.json")
        if (r := json.loads(p.read_text()))["kind"] == "evaluate"
    )
    assert sorted(record["by_step"], key=int) == ["21", "22", "23", "24", "25"]
    metric = next(name for name in record["values"] if name.startswith("fcd-digits-"))
    ordered = sorted(row[metric] for row in record["by_step"].values())
    assert record["values"][metric] == ordered[2]
    assert result.summary["primary"] == metric
    assert set(result.summary["sampling_sd"]) == set(record["values"])


@pytest.mark.parametrize("kind", [TinyAE, TinyGAN])
def test_bf16_trains_in_parts_as_in_one_go_and_holds_its_masks(kind):
    def trainer():
        task = kind()
        seed_everything(0, "init")
        networks = task.networks((1, 8, 8))
        settings = Settings(runtime=Runtime.open("cpu", "bf16", 1), seed=0, total_steps=12)
        return Trainer(
            task,
            networks,
            Batches(images(), task.batch_size, 0),
            settings,
            ones(prunable(networks)),
        )

    whole = run(trainer(), 12)
    first = run(trainer(), 5)
    tensors, manifest = first.state()
    second = trainer()
    second.resume({k: v.clone() for k, v in tensors.items()}, manifest)
    assert same(whole.judged_weights(), run(second, 12).judged_weights())
    assert all(v.dtype != torch.bfloat16 for v in whole.judged_weights().values())


def test_opponents_are_dense_networks_with_a_ticket_s_parameters_or_a_search_s_steps(
    tmp_path, monkeypatch
):
    result = find(
        tmp_path / "out",
        monkeypatch,
        "linear-ae",
        settings={"task": {"width": 16}},
        controls="thin-parameters,dense-long",
        rounds=3,
    )
    assert trainings(result) == {"dense": 1, "ticket": 3, "thin-parameters": 3, "dense-long": 3}
    rows = {(r["arm"], r["round"]): r for r in table(result)}
    # 25 + 25, 25 + 25 + 20; 25 + 25 + 20 + 20 is beyond three times 25
    assert [rows["dense-long", level]["step"] for level in "123"] == ["50", "70", "75"]
    assert rows["dense-long", "2"]["value"] < rows["dense", "0"]["value"]
    with (result.out / "costs.csv").open() as file:
        costs = {(r["arm"], r["round"]): r for r in csv.DictReader(file)}
    for level in "123":
        thin, ticket = costs["thin-parameters", level], costs["ticket", level]
        assert rows["thin-parameters", level]["sparsity"] == rows["ticket", level]["sparsity"]
        assert thin["parameters"] == thin["nonzero_parameters"]
        assert int(thin["parameters"]) <= int(ticket["nonzero_parameters"])
        assert float(thin["train_flops"]) < float(costs["dense", "0"]["train_flops"])
        assert float(thin["search_flops"]) == 0
    widths = [
        r["config"]["task"]["options"]["width"]
        for r in (json.loads(p.read_text()) for p in (result.out / "store").glob("*/run.json"))
        if r["kind"] == "train" and r["config"]["start"] == "thin-parameters"
    ]
    assert sorted(widths) == [2, 4, 8]


def test_opponents_are_part_of_the_verdict(tmp_path, monkeypatch):
    options = {"controls": "reinit,thin-parameters,dense-long", "rounds": 1, "seeds": 3}
    # 25 steps have not learnt, and controls are asked where a ticket matches: here anywhere.
    options |= {"steps": 200, "settings": {"verdict": {"reconstruction_error": 5.0}}}
    result = find(tmp_path / "out", monkeypatch, "linear-ae", **options)
    verdict = result.summary["verdicts"]["reconstruction_error"]
    assert set(verdict["controls"]) == {"reinit", "thin-parameters", "dense-long"}


def test_a_long_dense_training_begins_as_the_dense_one_did(tmp_path, monkeypatch):
    """With a constant learning rate it is the dense run, continued."""
    options = {"controls": "dense-long", "rounds": 1}
    result = find(tmp_path / "out", monkeypatch, "linear-ae", **options)
    records = [json.loads(p.read_text()) for p in (result.out / "store").glob("*/run.json")]
    dense = next(r for r in records if r["config"].get("start") == "dense")
    long = next(r for r in records if r["config"].get("start") == "dense-long")
    assert long["config"]["steps"] == 50
    early = {row["step"]: row["all.loss"] for row in dense["log"]}
    late = {row["step"]: row["all.loss"] for row in long["log"]}
    assert {step: late[step] for step in early} == early


def test_a_task_without_a_width_cannot_be_made_thin(tmp_path, monkeypatch):
    with pytest.raises(tombola.ConfigError, match="TinyAE does not have; give it one"):
        find(tmp_path / "out", monkeypatch, controls="thin-parameters")
