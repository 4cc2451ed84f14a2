"""A whole three-round search on the CPU, with exact expectations."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tombola
from tombola.engine.starts import derive
from tombola.sparsity.masks import nested, shuffle
from tombola.store.runs import Store
from tombola.training.checkpoint import load_state, load_weights_file

OTHERS = ("accuracy", "early_stopping_step")
TASK = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"
OPTIONS = {
    "steps": 30,
    "rounds": 3,
    "rate": "0.4",
    "seeds": 3,
    "rewind": "7it",
    "controls": ["reinit", "shuffle", "erk", "reinit-chain"],
}
WEIGHTS = 64 * 12 + 12 * 64
KEPT = [922, 553, 332]
"""floor(1536 * 0.6^k + 1/2) = 921.6, 552.96, 331.776 rounded."""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("chain") / "out"
    return tombola.find(TASK, out=out, workers=2, threads=1, **OPTIONS)


def records(result, kind):
    store = Store(result.out / "store")
    found = {name: store.record(name) for name in store.finished()}
    return {n: r for n, r in found.items() if r["kind"] == kind}


def by_label(result, label):
    store = Store(result.out / "store")
    return next(
        store.path(name) for name in store.finished() if store.record(name)["label"] == label
    )


def rows(result):
    """The rows of results.csv in the metric that decides: one a training."""
    return deciding(result.out / "results.csv")


def deciding(path):
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["metric"] not in OTHERS]


def test_rows_are_complete_and_exact(result):
    table = rows(result)
    assert len(table) == 3 * (1 + 3 * 5)
    assert {row["arm"] for row in table} == {
        "dense",
        "ticket",
        "reinit",
        "shuffle",
        "erk",
        "reinit-chain",
    }
    parameters = WEIGHTS + 12 + 64
    for row in table:
        kept = WEIGHTS if row["round"] == "0" else KEPT[int(row["round"]) - 1]
        assert float(row["sparsity"]) == 1 - kept / WEIGHTS
        assert float(row["sparsity_all"]) == 1 - (parameters - (WEIGHTS - kept)) / parameters
        assert row["metric"] == "reconstruction_error"
        assert row["n"] == "360"
        assert row["step"] == "30"
        assert row["rewind_steps"] == "7"


def test_masks_have_exact_counts_and_are_nested(result):
    for seed in range(3):
        tickets = [tombola.load(p) for p in result.tickets if f"seed{seed}-" in p.name]
        assert len(tickets) == 3
        assert [sum(int(m.sum()) for m in t.masks.values()) for t in tickets] == KEPT
        assert nested(tickets[1].masks, tickets[0].masks)
        assert nested(tickets[2].masks, tickets[1].masks)


def test_masks_are_the_largest_survivors_of_the_round_before(result):
    dense = load_weights_file(by_label(result, "dense, seed 1") / "final.safetensors")
    ticket = tombola.load(result.out / "tickets" / "seed1-round01.safetensors")
    names = list(ticket.masks)
    pool = torch.cat([dense[n].abs().flatten() for n in names])
    mask = torch.cat([ticket.masks[n].flatten() for n in names])
    assert pool[mask].min() >= pool[~mask].max()


def test_start_weights_are_mask_times_rewind_weights_bit_for_bit(result):
    for seed in range(3):
        path = by_label(result, f"rewind point 7, seed {seed}") / "state.safetensors"
        state, manifest = load_state(path)
        assert manifest["step"] == 7
        for round_ in (1, 2, 3):
            ticket = tombola.load(
                result.out / "tickets" / f"seed{seed}-round{round_:02d}.safetensors"
            )
            assert ticket.manifest["rewind_step"] == 7
            for name, weight in ticket.weights.items():
                rewound = state[f"network.{name}"]
                mask = ticket.masks.get(name)
                expected = rewound if mask is None else torch.where(mask, rewound, 0.0)
                assert torch.equal(weight, expected)
                assert mask is None or torch.equal(
                    torch.signbit(weight[~mask]), torch.zeros_like(weight[~mask]).bool()
                )


def test_trained_tickets_and_controls_hold_their_masks(result):
    ticket = tombola.load(result.out / "tickets" / "seed0-round02.safetensors")
    for kind in ("ticket", "reinit", "shuffle", "erk"):
        path = by_label(result, f"{kind} of level 2, seed 0")
        weights = load_weights_file(path / "final.safetensors")
        zeros = {name: weights[name] == 0 for name in ticket.masks}
        assert sum(int(z.sum()) for z in zeros.values()) == WEIGHTS - KEPT[1]
        same = all(torch.equal(zeros[n], ~ticket.masks[n]) for n in ticket.masks)
        assert same == (kind in ("ticket", "reinit"))
        if kind == "shuffle":
            config = json.loads((path / "run.json").read_text())["config"]
            moved = shuffle(ticket.masks, derive(config))
            assert all(torch.equal(zeros[n], ~moved[n]) for n in moved)


def test_reinit_chain_prunes_its_own_weights(result):
    own = [r for r in records(result, "mask").values() if r["config"]["seed"] == 0]
    # Level 1 is the ticket's own mask; levels 2 and 3 are masks of its own.
    assert len(own) == 3 + 2


def test_costs_name_own_and_search_work(result):
    with (result.out / "costs.csv").open() as file:
        table = list(csv.DictReader(file))
    step = json.loads((result.out / "config.json").read_text())["resolved"]["step_macs"] * 2
    found = {(r["arm"], r["round"]): r for r in table if r["seed"] == "0"}
    assert float(found["dense", "0"]["train_flops"]) == 30 * step
    assert float(found["dense", "0"]["search_flops"]) == 0
    assert float(found["ticket", "3"]["train_flops"]) == 23 * step
    assert float(found["ticket", "3"]["search_flops"]) == (30 + 23 + 23) * step
    assert float(found["reinit", "2"]["train_flops"]) == 30 * step
    assert float(found["erk", "2"]["search_flops"]) == 0
    assert int(found["ticket", "3"]["nonzero_parameters"]) == 332 + 12 + 64


def test_same_call_again_trains_nothing_and_keeps_every_byte(result):
    before = {p: p.read_bytes() for p in (result.out / "results.csv", *result.tickets)}
    again = tombola.find(TASK, out=result.out, workers=2, threads=1, **OPTIONS)
    assert again.summary["runs"] == {"trained": 0, "reused": 3 * 16, "diverged": 0}
    assert {p: p.read_bytes() for p in before} == before


def test_one_worker_writes_the_bytes_of_two(result, tmp_path):
    one = tombola.find(TASK, out=tmp_path / "one", workers=1, threads=1, **OPTIONS)
    assert (one.out / "results.csv").read_bytes() == (result.out / "results.csv").read_bytes()
    for path in result.tickets:
        assert (one.out / "tickets" / path.name).read_bytes() == path.read_bytes()


def test_more_rounds_and_seeds_extend_and_other_changes_are_refused(result, tmp_path):
    out = tmp_path / "out"
    small = {**OPTIONS, "rounds": 1, "seeds": 1, "controls": []}
    first = tombola.find(TASK, out=out, workers=1, threads=1, **small)
    assert first.summary["runs"] == {"trained": 2, "reused": 0, "diverged": 0}
    more = tombola.find(TASK, out=out, workers=2, **{**small, "rounds": 2, "rewind": "7it,0it"})
    # one more round, and the second rewind point's two; the dense run is shared
    assert more.summary["runs"] == {"trained": 3, "reused": 2, "diverged": 0}
    with pytest.raises(tombola.ConfigError, match=r"train\.steps 30 -> 31"):
        tombola.find(TASK, out=out, **{**small, "steps": 31})
    with pytest.raises(tombola.ConfigError, match=r"run\.threads 1 -> 2"):
        tombola.find(TASK, out=out, threads=2, **small)


def test_train_ticket_repeats_the_row_of_find(result, tmp_path):
    ticket = result.out / "tickets" / "seed2-round03.safetensors"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tombola",
            "train",
            TASK,
            "--data",
            "digits",
            "--ticket",
            str(ticket),
            "--out",
            str(tmp_path / "again"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (again,) = deciding(tmp_path / "again" / "results.csv")
    found = [r for r in rows(result) if (r["arm"], r["seed"], r["round"]) == ("ticket", "2", "3")]
    assert found == [again]


def test_a_rewind_point_in_the_last_fifth_has_fewer_judgements(tmp_path):
    small = {**OPTIONS, "seeds": 1, "rounds": 1, "rewind": "95%"}
    found = tombola.find(TASK, out=tmp_path, workers=1, threads=1, **small)
    assert {row.round for row in found.rows if row.arm == "ticket"} == {1}
    assert found.summary["runs"]["diverged"] == 0
