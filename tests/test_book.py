"""The rounds of a search around one's own training: their names, and the folder made of them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import tombola
from tombola.config import sections as configs
from tombola.errors import ConfigError
from tombola.loops import asking, draws
from tombola.loops.book import FINAL, REWIND, TICKET, Book, Facts, Round
from tombola.loops.folder import write_config, write_folder
from tombola.loops.measured import check_rule, save_images
from tombola.tickets.ticket import save_ticket
from tombola.training.checkpoint import save_weights

# Of names that sort otherwise than the pool: equal scores go by the pool's order.
SHAPES = {"z.weight": (2, 4), "a.weight": (4, 2), "a.bias": (4,)}


def facts(**more) -> Facts:
    given = {"task": "own", "rewind_steps": 5, "rounds": 2, "rate": "0.5", "seeds": 3, **more}
    return Facts(**given)


def learned(book: Book) -> Book:
    book.learn({"z": 8, "a": 12}, {"z.weight": 8, "a.weight": 8})
    return book


def filled(out, values) -> Book:
    """A search whose rounds measured ``values(arm, level, seed)``, in 10 s each."""
    out.mkdir()
    book = learned(Book(out, facts()))
    for arm, seed, level in book.rounds():
        part = book.begin(arm, seed, level)
        weights = {name: torch.ones(shape) for name, shape in SHAPES.items()}
        if arm == "dense":
            save_weights(part / REWIND, weights)
        else:
            save_ticket(part / TICKET, draws.ticket_of(book, arm, seed, level))
        if arm == "ticket":  # what is pruned is largest here: it must not compete again
            sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
            weights = {k: torch.arange(1.0, n + 1).view(SHAPES[k]) for k, n in sizes.items()}
            weights["a.weight"] += 100
        save_weights(part / FINAL, weights)
        rules = {"oddness": {"better": "lower", "margin": 0.1}}
        made = {"oddness": values(arm, level, seed)}
        book.commit(
            Round(
                arm=arm, seed=seed, round=level, steps=40, seconds=10.0, values=made, rules=rules,
                n={"oddness": 64}, at={"oddness": 40},
            )
        )  # fmt: skip
    return book


def test_a_round_is_named_by_what_was_asked_and_nothing_else(tmp_path):
    name = Book(tmp_path, facts()).name("ticket", 1, 2)
    assert name == Book(tmp_path / "b", facts(rounds=9, seeds=9, controls=(), command="x")).name(
        "ticket", 1, 2
    )
    assert name == "5f0e79cd34cbdc5db4873d9a626b3200"
    others = [
        Book(tmp_path, facts()).name(*which)
        for which in (("shuffle", 1, 2), ("ticket", 2, 2), ("ticket", 1, 1))
    ]
    for key, value in (
        ("rewind_steps", 6), ("rate", "0.4"), ("steps", 7), ("networks", "z"),
        ("asked", {"words": ["python", "a.py"]}), ("sparsity", ("0.5", "0.75")),
    ):  # fmt: skip
        others.append(Book(tmp_path, facts(**{key: value})).name("ticket", 1, 2))
    assert len({name, *others}) == 10


def test_equal_weights_go_by_the_order_of_the_pool_also_from_the_store(tmp_path):
    book = filled(tmp_path / "out", lambda *_: 1.0)
    again = Book(tmp_path / "out", facts())
    assert again.recall()
    assert list(again.facts.prunable) == ["z.weight", "a.weight"]
    ticket = draws.ticket_of(again, "ticket", 0, 1)
    assert int(ticket.masks["z.weight"].sum()) == 8  # the first half of 16 equal weights
    assert int(ticket.masks["a.weight"].sum()) == 0
    next_one = draws.ticket_of(again, "ticket", 0, 2).masks
    assert next_one["z.weight"].flatten().tolist() == [False] * 4 + [True] * 4
    assert not bool(next_one["a.weight"].any())
    assert book.facts.sparsities(1) == (0.5, 1 - 12 / 20)


def test_a_ticket_that_wins_and_what_it_cost(tmp_path):
    quality = {"dense": 1.0, "ticket": 1.0, "reinit": 2.0, "shuffle": 2.5}
    book = filled(tmp_path / "out", lambda arm, level, seed: quality[arm] + 0.01 * seed)
    summary = write_folder(book, {"trained": 21, "reused": 0})
    assert summary["primary"] == "oddness"
    found = summary["verdicts"]["oddness"]
    assert (found["state"], found["bracket"], found["at_least"]) == ("wins", [0.75, None], True)
    assert list(summary["arms"]) == ["imp/all/r5/"]
    with (tmp_path / "out/costs.csv").open() as file:
        rows = {(r["arm"], r["seed"], r["round"]): r for r in csv.DictReader(file)}
    seconds = {key: float(row["search_seconds"]) for key, row in rows.items()}
    assert seconds["dense", "0", "0"] == 0.0
    assert seconds["ticket", "0", "1"] == 10.0
    assert seconds["ticket", "2", "2"] == seconds["shuffle", "2", "2"] == 20.0
    row = rows["ticket", "0", "2"]
    assert (row["train_flops"], row["train_seconds"]) == ("", "10.0")
    assert (row["parameters"], row["nonzero_parameters"]) == ("20", "8")
    page = (tmp_path / "out/report.html").read_text()
    assert "wins" in page
    assert "oddness" in page
    manifest = tombola.load(tmp_path / "out/tickets/seed1-round02.safetensors").manifest
    assert (manifest["seed"], manifest["round"], manifest["rewind_step"]) == (1, 2, 5)
    assert len(manifest["parents"]) == 2
    models = sorted(path.name for path in (tmp_path / "out/models").iterdir())
    assert models == [
        *(f"dense-seed{seed}-round00.safetensors" for seed in range(3)),
        *(f"ticket-seed{seed}-round02.safetensors" for seed in range(3)),
    ]


def test_trainings_of_other_lengths_are_told(tmp_path):
    (tmp_path / "out").mkdir()
    book = learned(Book(tmp_path / "out", facts(seeds=1, rounds=1, controls=())))
    for arm, level, steps in (("dense", 0, 40), ("ticket", 1, 30)):
        book.begin(arm, 0, level)
        book.commit(
            Round(arm=arm, seed=0, round=level, steps=steps, seconds=1.0, values={"fid": 1.0})
        )
    notes = write_folder(book, {"trained": 2, "reused": 0})["notes"]
    assert notes == ["Not all trainings had the same length: 30 to 40 steps."]
    assert notes[0] in (tmp_path / "out/report.html").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    book = Book(tmp_path, facts())
    book.check()
    (tmp_path / "config.json").write_text(json.dumps({"config": {"task": {"name": "dcgan"}}}))
    with pytest.raises(ConfigError, match="is of no search around a training of your own"):
        book.check()
    write_config(book)
    book.check()
    book.begin("dense", 0, 0)
    book.commit(Round(arm="dense", seed=0, round=0, steps=1, seconds=1.0))
    with pytest.raises(ConfigError, match=r"rate: '0.5' -> '0.3'"):
        Book(tmp_path, facts(rate="0.3")).check()


def test_levels_that_keep_nothing_are_refused_once_the_pool_is_known(tmp_path):
    with pytest.raises(ConfigError, match="keeps none of 16 weights"):
        learned(Book(tmp_path, facts(rounds=9)))


def test_rules_of_metrics():
    assert check_rule("fid", None, None) is None
    assert check_rule("elbo", "higher", None) is None
    assert check_rule("oddness", "lower", None) == {"better": "lower", "margin": 0.1}
    assert check_rule("oddness", "higher", 0.5) == {"better": "higher", "margin": 0.5}
    for metric, better, margin in (
        ("fid", "higher", None), ("fid", None, 0.3), ("oddness", None, None),
        ("oddness", "lower", 0), ("oddness", "lower", float("nan")),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            check_rule(metric, better, margin)


def test_images_become_a_sheet_of_eight_columns(tmp_path):
    images = torch.full((40, 3, 4, 4), -1.0)
    images[1] = 1.0
    images[2] = float("nan")
    save_images(tmp_path / "a.png", images)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (16, 32, 3)
    assert [int(sheet[0, 4 * k, 0]) for k in range(3)] == [0, 255, 128]
    save_images(tmp_path / "b.png", torch.full((2, 1, 4, 4), 200, dtype=torch.uint8))
    assert int(np.asarray(Image.open(tmp_path / "b.png"))[0, 0]) == 200
    for bad in (torch.zeros(4, 4), torch.zeros(2, 5, 4, 4), np.zeros((2, 1, 4, 4)), None):
        with pytest.raises(ConfigError, match="sample gave"):
            save_images(tmp_path / "c.png", bad)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_script_search_is_named_by_what_it_leaves_out_only_if_it_does(tmp_path):
    words = ["python", "-c", "pass"]
    asked = [
        asking.request_of(
            configs.build({"prune": prune, "search": {"seeds": 1}}), words, tmp_path / "o", ""
        ).facts.asked
        for prune in ({}, {"exclude": ["first"]})
    ]
    assert asked == [
        {"words": words, "files": {}},
        {"words": words, "files": {}, "exclude": ["first"]},
    ]


def test_what_was_judged_is_kept_only_where_it_is_not_what_was_left(tmp_path):
    facts = Facts(task="t", rewind_steps=1, rounds=1)
    book = Book(tmp_path, facts)
    (tmp_path / "store").mkdir()
    for level, judged in ((0, ""), (1, "judged with the evaluation weights of Free")):
        arm = "ticket" if level else "dense"
        round_ = Round(arm=arm, seed=0, round=level, steps=2, seconds=1.0, judged=judged)
        book.commit(round_)
        assert book.read(arm, 0, level).judged == judged
        kept = book.store.record(book.name(arm, 0, level))["round"]
        assert ("judged" in kept) == bool(judged)
