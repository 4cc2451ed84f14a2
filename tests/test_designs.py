"""Cheaper designs: an arm stops where it is worse, controls are trained at the frontier alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import in_process
import tombola
from tombola import api
from tombola.cli import command_line as cli
from tombola.config.sections import build
from tombola.engine import stages
from tombola.engine.phases import Phases, frontier_level
from tombola.metrics.rules import Rule, is_beyond
from tombola.metrics.verdict.losses import gather, search_key
from tombola.plan import plans as recipes
from tombola.plan.cells import Arm, Cell
from tombola.plan.setting import resolve
from tombola.report.curves import curves_of
from tombola.report.folder import ended, read_folder
from tombola.report.page import write_report
from tombola.results import handed_out
from tombola.store.tables import read_costs

HERE = Path(__file__).parent
AE = f"{HERE / 'toy_task.py'}:TinyAE"
JUDGE = {"samples": 60, "validation_samples": 0, "sampling_seeds": 1}
CPU = {"threads": 1, "workers": 1, "device": "cpu"}


def planned(method="imp", rounds=6, seeds=3, **search):
    """The setting and whole plan of a small search, of which nothing is trained."""
    search = {"anyway": False, **search}
    tables = {
        "task": {"name": AE},
        "train": {"steps": 20},
        "search": {"method": method, "rounds": rounds, "rate": "0.4", "seeds": seeds, **search},
        "judge": JUDGE,
        "run": CPU,
    }
    setting = resolve(build(tables), None)
    return setting, recipes.search(setting)


class Records(dict):
    """A store without files: the records of runs that are whole."""

    folder = HERE

    def finished(self):
        return set(self)

    def record(self, name):
        return self[name]


class Pool:
    """Carries out runs that teach what ``errors`` says: (method, arm, round, seed) -> error.

    None diverges. With so many workers, and in an order and with interruptions by chance.
    """

    def __init__(self, setting, plan, errors, workers=1, seed=0):
        self.setting, self.plan, self.errors = setting, plan, errors
        self.workers, self.random = workers, Random(seed)
        self.store, self.begun, self.notes, self.left = Records(), [], [], 0
        self.answers, self.cells = {}, {}
        for cell in plan.cells:
            self.cells.setdefault(cell.evaluate, cell)

    def carry_out(self, cuts=0):
        """The phases at the end, after so many interruptions, each after a few runs."""
        for last in [*[self.random.randrange(1, 25) for _ in range(cuts)], 10**9]:
            self.left = 0
            phases = Phases(
                self.setting, self.plan, self.store, note=self.notes.append, expect=self._expect
            )
            self.left += sum(node.steps for node in phases.plan.graph.missing(self.store))
            self._until(phases, last)
        assert self.left == 0
        phases.settle()
        assert all(node.hash in self.store for node in phases.plan.graph)
        return phases

    def _expect(self, steps):
        self.left += steps

    def _until(self, phases, last):
        todo = {node.hash: node for node in phases.due.missing(self.store)}
        busy = []
        while (todo or busy) and last > 0:
            ready = [n for n in todo.values() if set(n.parents.values()) <= set(self.store)]
            self.random.shuffle(ready)
            for node in ready[: self.workers - len(busy)]:
                busy.append(todo.pop(node.hash))
            node = busy.pop(self.random.randrange(len(busy)))
            self.store[node.hash] = self._record(node)
            self.begun.append(node.hash)
            self.left -= node.steps
            last -= 1
            todo |= {each.hash: each for each in phases.more(node)}

    def _record(self, node):
        if node.kind == "trivial":
            error = self.answers.get(node.hash)
            return {"values": {} if error is None else {"reconstruction_error": error}}
        if node.kind != "evaluate" or node.hash not in self.cells:
            return {"values": {}} if node.kind == "evaluate" else {}
        cell = self.cells[node.hash]
        error = self.errors(cell.arm.method, cell.kind, cell.round, cell.seed)
        if error is None:
            return {"diverged": 3}
        return {"values": {"reconstruction_error": error}, "n_of": {}, "n": 60, "step": 20}


def by_level(*errors, seeds=None):
    """Errors of tickets by round, each seed's own by ``seeds``; dense and controls have 1."""

    def error(method, kind, level, seed):
        return (seeds or {}).get(seed, errors)[level - 1] if kind == "ticket" else 1.0

    return error


def trained(phases, kind):
    """(round, seed) of the trainings of a kind that took place."""
    cells = [cell for cell in phases.plan.cells if cell.kind == kind]
    return {(c.round, c.seed) for c in cells if c.evaluate not in phases.plan.left_out}


GOOD, BAD = 1.0, 1.2


@pytest.mark.parametrize(
    ("stop_after", "errors", "last"),
    [
        (2, (GOOD, BAD, BAD, GOOD, GOOD, GOOD), 3),
        (2, (BAD, BAD, GOOD, GOOD, GOOD, GOOD), 2),
        (2, (BAD, GOOD, BAD, GOOD, BAD, BAD), 6),
        (2, (GOOD, BAD, None, GOOD, GOOD, GOOD), 3),
        (1, (GOOD, GOOD, BAD, GOOD, GOOD, GOOD), 3),
        (3, (GOOD, BAD, BAD, BAD, GOOD, GOOD), 4),
        (0, (BAD, BAD, BAD, BAD, BAD, BAD), 6),
        (2, (1.0499, 1.0499, 1.0501, 1.0501, GOOD, GOOD), 4),
    ],
)
def test_an_arm_stops_after_levels_in_a_row_that_are_worse_in_every_seed(stop_after, errors, last):
    setting, plan = planned(stop_after=stop_after, controls=[])
    for workers, seed in ((1, 0), (2, 1), (4, 2)):
        pool = Pool(setting, plan, by_level(*errors), workers, seed)
        phases = pool.carry_out(cuts=seed)
        assert trained(phases, "ticket") == {(k, s) for k in range(1, last + 1) for s in range(3)}
        assert len(pool.begun) == len(set(pool.begun)) == len(phases.plan.graph)


def test_one_seed_that_is_not_worse_keeps_all_going():
    setting, plan = planned(stop_after=2, controls=[])
    last = (GOOD, GOOD, GOOD, GOOD, BAD, BAD)
    bad = (BAD,) * 6
    phases = Pool(setting, plan, by_level(*bad, seeds={1: last}), workers=3).carry_out()
    assert max(trained(phases, "ticket")) == (6, 2)
    dense = Pool(setting, plan, by_level(*bad, seeds={1: last}), workers=3)
    errors, dense.errors = (
        dense.errors,
        lambda *key: None if key[1:] == ("dense", 0, 1) else errors(*key),
    )
    # Nothing can be said of a seed whose dense run diverged.
    assert max(trained(dense.carry_out(), "ticket")) == (2, 2)


@pytest.mark.parametrize("method", ["imp", "one-shot", "random"])
def test_the_same_runs_come_out_in_any_order_with_any_workers_and_cuts(method):
    setting, plan = planned(
        method, controls_at="frontier", stop_after=2, controls=["reinit", "erk"]
    )
    errors = by_level(GOOD, GOOD, 1.04, BAD, BAD, GOOD)
    found = set()
    for seed in range(12):
        pool = Pool(setting, plan, errors, workers=1 + seed % 4, seed=seed)
        phases = pool.carry_out(cuts=seed % 3)
        cells = [(c.kind, c.round, c.seed, c.draw) for c in phases.plan.cells]
        found.add((tuple(cells), phases.plan.left_out, tuple(n.hash for n in phases.plan.graph)))
        assert set(pool.begun) == {node.hash for node in phases.plan.graph}
    ((cells, left_out, _),) = found
    # n (1 + L + c m) trainings, of L levels those that no stop left out, of them c m at the third.
    assert sum(node.kind == "train" for node in phases.plan.graph) == 3 * (1 + 5 + 2 * 3)
    assert {c[1] for c in cells if c[0] == "reinit"} == {3}
    assert {c[3] for c in cells if c[0] == "erk"} == {1, 2, 3}
    assert {c[3] for c in cells if c[0] == "ticket"} == {None}
    assert len(left_out) == 3 * 3  # of the last level the ticket, its training and its judgement


def test_chains_run_ahead_of_each_other_only_as_far_as_no_stop_can_come_before():
    setting, plan = planned(stop_after=2, controls=[])
    pool = Pool(setting, plan, by_level(*(GOOD,) * 6))
    phases = Phases(setting, plan, pool.store)
    due = {cell.round for cell in plan.cells if cell.evaluate in phases.due}
    assert due == {0}  # before anything else the dense networks must have learnt
    for node in phases.due:
        pool.store[node.hash] = pool._record(node)
        phases.more(node)
    due = {cell.round for cell in plan.cells if cell.evaluate in phases.due}
    assert due == {0, 1, 2}
    # One seed that is not worse at the first level is enough for the third to be due.
    seed = [node for node in phases.due if node.label.endswith("seed 1")]
    for node in seed:
        pool.store[node.hash] = pool._record(node)
        phases.more(node)
    due = {cell.round for cell in plan.cells if cell.evaluate in phases.due}
    assert due == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("method", ["imp", "one-shot", "snip"])
@pytest.mark.parametrize("controls_at", ["all", "frontier"])
def test_of_dense_networks_that_have_not_learnt_no_ticket_is_trained(method, controls_at):
    errors = by_level(*(GOOD,) * 3)

    def stuck(*key):
        """One of three dense networks answers as the mean image does."""
        return 2.0 if key[1:] == ("dense", 0, 2) else errors(*key)

    def search(**more):
        setting, plan = planned(method, rounds=3, controls_at=controls_at, **more)
        pool = Pool(setting, plan, stuck, workers=3, seed=1)
        for name in plan.trivial:
            pool.answers[name] = 2.0
        return pool, pool.carry_out(cuts=2)

    pool, phases = search()
    assert {c.kind for c in pool.plan.cells if c.train in pool.store} == {"dense"}
    assert {c.evaluate for c in pool.plan.cells if c.kind != "dense" and c.draw is None} == {
        name for name in phases.plan.left_out if name in pool.cells
    }
    assert pool.notes[0] == (
        "no ticket is trained: the dense networks have not learnt, which is to be better than a "
        "trivial answer; train longer, or go on with --anyway"
    )
    pool, phases = search(anyway=True)
    assert {k for k, _ in trained(phases, "ticket")} == {1, 2, 3}
    assert not [text for text in pool.notes if "learnt" in text]


def test_a_level_beyond_a_stop_that_is_there_already_stays():
    setting, plan = planned(stop_after=0, controls=[])
    errors = by_level(GOOD, BAD, BAD, BAD, BAD, BAD)
    pool = Pool(setting, plan, errors)
    assert max(trained(pool.carry_out(), "ticket")) == (6, 2)
    late = {cell.round: cell for cell in plan.cells if cell.seed == 1}
    # Cut off when the fifth level of a seed was trained and the mask of the sixth was there; of
    # the fourth the training was lost, and is made again for what builds on it.
    there = {late[5].train, *(late[k].ticket for k in (4, 5, 6))}
    setting, plan = planned(stop_after=2, controls=[])
    again = Pool(setting, plan, errors)
    runs = ((c.evaluate, c.train, c.ticket) for c in plan.cells if c.round > 3)
    gone = {name for names in runs for name in names} - there
    again.store.update({name: pool.store[name] for name in pool.store.keys() - gone})
    phases = again.carry_out()
    beyond = {(4, 1), (5, 1)}
    assert trained(phases, "ticket") == {(k, s) for k in (1, 2, 3) for s in range(3)} | beyond
    assert {late[4].evaluate, late[5].evaluate} < {node.hash for node in phases.plan.graph}
    assert late[6].evaluate in phases.plan.left_out
    assert not phases.plan.left_out & there  # what is there can be asked, such as what it cost


def test_more_seeds_move_the_frontier_and_a_stop():
    errors = by_level(GOOD, BAD, BAD, GOOD, seeds={3: (GOOD, GOOD, BAD, BAD), 4: (BAD,) * 4})
    design = {"rounds": 4, "controls_at": "frontier", "draws": 2, "stop_after": 2}
    setting, plan = planned(**design)
    pool = Pool(setting, plan, errors)
    phases = pool.carry_out()
    assert trained(phases, "ticket") == {(k, s) for k in (1, 2, 3) for s in range(3)}
    assert trained(phases, "reinit") == {(1, s) for s in range(3)}
    assert pool.notes == [
        "level 3 of 4 (78.4% sparsity) is the last to be trained: it and the one before are worse "
        "than dense in every seed",
        "controls are trained at level 1, 2 draws a seed",
    ]
    more = Pool(*planned(**design, seeds=4), errors)
    more.store.update(pool.store)
    phases = more.carry_out()
    assert trained(phases, "ticket") == {(k, s) for k in range(1, 5) for s in range(4)}
    assert len(more.begun) == len(set(more.begun) - set(pool.store))
    whole = Pool(*planned(**design, seeds=4), errors).carry_out()
    assert [node.hash for node in whole.plan.graph] == [node.hash for node in phases.plan.graph]
    # With a seed that is worse from the first level on nothing matches, and no control is trained.
    last = Pool(*planned(**design, seeds=5), errors)
    last.store.update(more.store)
    assert not trained(last.carry_out(), "reinit")
    assert last.notes[-1] == (
        "no controls are trained: the first level is not shown to match dense"
    )


def test_without_three_seeds_nothing_is_shown_to_match():
    pool = Pool(*planned(rounds=1, seeds=2, controls_at="frontier"), by_level(GOOD))
    assert not trained(pool.carry_out(), "reinit")
    assert pool.notes[-1].endswith("not shown to match dense, which takes three seeds")


def test_each_arm_goes_its_own_way():
    def errors(method, kind, level, seed):
        return BAD if kind == "ticket" and level > (1 if method == "snip" else 4) else GOOD

    setting, plan = planned(["imp", "snip"], controls_at="frontier", draws=1)
    phases = Pool(setting, plan, errors, workers=3).carry_out()
    found = {(c.arm.method, c.kind): c.round for c in phases.plan.cells if c.draw}
    assert found == {
        ("imp", "reinit"): 4, ("imp", "shuffle"): 4, ("snip", "reinit"): 1, ("snip", "shuffle"): 1,
    }  # fmt: skip
    assert sum(node.kind == "train" for node in phases.plan.graph) == 3 * (1 + 6 + 2 + 3 + 2)


def test_a_control_that_is_one_run_at_all_levels_is_there_at_all():
    found = set()
    setting, plan = planned("one-shot", controls=["dense-long", "erk"])
    for seed in range(8):
        pool = Pool(setting, plan, by_level(GOOD, *(BAD,) * 5), workers=2, seed=seed)
        phases = pool.carry_out(cuts=seed % 2)
        found.add(tuple(frozenset(trained(phases, kind)) for kind in ("ticket", "dense-long")))
        assert trained(phases, "erk") == trained(phases, "ticket")
    ((tickets, longer),) = found
    assert (max(tickets), max(longer)) == ((3, 2), (6, 2))


def test_the_first_draw_of_a_control_is_the_run_that_is_drawn_once():
    controls = ["reinit", "shuffle", "erk", "dense-long"]
    tables = {"rounds": 2, "seeds": 1, "controls": controls}
    _, once = planned(**tables)
    setting, drawn = planned(**tables, controls_at="frontier", draws=2)
    first = {(c.kind, c.round): c.train for c in once.cells}
    names = {(c.kind, c.round, c.draw): c.train for c in drawn.cells}
    for kind in ("reinit", "shuffle", "erk"):
        assert names[kind, 1, 1] == first[kind, 1]
        assert drawn.graph[names[kind, 2, 1]].config["draw"] == f"{kind}/2"
        assert drawn.graph[names[kind, 2, 2]].config["draw"] == f"{kind}/2/2"
    assert names["dense-long", 2, 1] == first["dense-long", 2]
    assert drawn.graph[names["dense-long", 2, 2]].config["draw"] == "dense-long/2/2"
    assert setting.config.search.control_draws == (1, 2)


@pytest.mark.parametrize(
    ("states", "level"),
    [
        (["matches", "matches", "undecided", "matches"], 2),
        (["undecided", "matches"], None),
        (["worse"], None),
        (["matches"], 1),
        ([], None),
    ],
)
def test_the_frontier_is_the_last_of_the_leading_levels_that_match(states, level):
    levels = [{"round": number, "state": state} for number, state in enumerate(states, 1)]
    assert frontier_level(levels) == level


@pytest.mark.parametrize(
    ("rule", "value", "dense", "beyond"),
    [
        (Rule("lower", 0.05), 1.051, 1.0, True),
        (Rule("lower", 0.05), 1.049, 1.0, False),
        (Rule("higher", 0.05), 0.951, 1.0, True),  # 1 / 0.951 = 1.0515
        (Rule("higher", 0.05), 0.953, 1.0, False),
        (Rule("higher", 0.01), -101.1, -100.0, True),
        (Rule("higher", 0.01), -100.9, -100.0, False),
        (Rule("lower", 0.10), 0.3, -1.0, True),
        (Rule("higher", 0.02, share=False), 0.47, 0.5, True),
        (Rule("higher", 0.02, share=False), 0.49, 0.5, False),
    ],
)
def test_a_value_is_beyond_the_margin_by_its_ratio_or_by_its_difference(rule, value, dense, beyond):
    assert is_beyond(value, dense, rule) is beyond


# --- whole searches ---

OPTIONS = {
    "steps": 60,
    "rounds": 6,
    "rate": "0.3",
    "seeds": 3,
    "rewind": "20%",
    "controls": "reinit",
    "controls_at": "frontier",
    "draws": 2,
    **CPU,
}
"""Level 2 is the frontier, level 5 the last that is trained; dense has learnt."""
SETTINGS = {"judge": JUDGE, "task": {"learning_rate": 0.03}}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Searches run in this process, nobody reads their pages, and no power fails."""
    in_process.use(monkeypatch)
    monkeypatch.setattr(api, "write_report", lambda out: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with in_process.Restored():
        yield


def find(out, **options):
    return tombola.find(AE, out=out, settings=SETTINGS, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        patch.setattr(os, "fsync", lambda descriptor: None)
        return find(tmp_path_factory.mktemp("designs") / "out")


@pytest.fixture
def copied(whole, tmp_path):
    """The folder of that search, to go on in."""
    return shutil.copytree(whole.out, tmp_path / "out")


def tables(out):
    """What a search says, but for how long it took and what was there before."""
    summary = json.loads((out / "summary.json").read_text())
    del summary["runs"], summary["cost"]
    return (out / "results.csv").read_bytes(), summary


def test_the_chain_goes_first_and_controls_are_drawn_anew_at_the_frontier(whole):
    assert whole.summary["runs"] == {"trained": 3 * (1 + 5 + 2), "reused": 0, "diverged": 0}
    deciding = [row for row in whole.rows if row.metric == "reconstruction_error"]
    found = [(row.arm, row.round, row.seed, row.draw) for row in deciding]
    levels = [("ticket", level, seed, None) for level in (1, 2, 3, 4, 5) for seed in range(3)]
    draws = [("reinit", 2, seed, draw) for seed in range(3) for draw in (1, 2)]
    dense = [("dense", 0, seed, None) for seed in range(3)]
    assert sorted(found, key=str) == sorted([*dense, *levels, *draws], key=str)
    assert len({row.value for row in deciding}) == len(deciding)
    not_run = [(row.arm, row.round, row.seed) for row in whole.rows if row.metric == "not-run"]
    assert not_run == [("ticket", 6, seed) for seed in range(3)]
    verdict = whole.summary["verdicts"]["reconstruction_error"]
    states = [(level["round"], level["seeds"]) for level in verdict["levels"]]
    assert states == [(1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (6, 0)]
    costs = read_costs(whole.out / "costs.csv")
    drawn = [(cost.seed, cost.draw) for cost in costs if cost.arm == "reinit"]
    assert sorted(drawn) == [(seed, draw) for seed in range(3) for draw in (1, 2)]
    assert len(costs) == 3 * (1 + 5 + 2)
    log = [json.loads(line) for line in (whole.out / "log.jsonl").read_text().splitlines()]
    assert {line.get("draw") for line in log if line["arm"] == "reinit"} == {1, 2}
    assert not any("draw" in line for line in log if line["arm"] != "reinit")
    config = json.loads((whole.out / "config.json").read_text())["config"]["search"]
    assert (config["stop_after"], config["draws"]) == (2, 2)


def test_a_page_says_what_was_not_run_and_means_over_draws(whole):
    page = write_report(whole.out).read_text()
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    levels = [row for row in rows if "88.2%" in row and "3 not run" in row]
    ends = {" ".join(re.sub("<.*?>", " ", level).split()[-2:]) for level in levels}
    assert ends == {"not run"}
    metric = "reconstruction_error"
    drawn = [row.value for row in whole.rows if (row.metric, row.arm) == (metric, "reinit")]
    (curve,) = [each for each in curves_of(whole.rows)[metric] if each.arm == "reinit"]
    means = [sum(drawn[index : index + 2]) / 2 for index in (0, 2, 4)]
    assert curve.points[0].values == pytest.approx(means)


def test_cut_off_at_several_moments_it_comes_to_the_same(whole, tmp_path, monkeypatch):
    execute, left = stages.execute, [0]

    def cut(node, context):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        execute(node, context)

    monkeypatch.setattr(stages, "execute", cut)
    for moment in (2, 9, 12, 20, 9, 5):
        left[0] = moment
        with pytest.raises(KeyboardInterrupt):
            find(tmp_path)
    found = find(tmp_path)
    assert found.summary["runs"]["trained"] > 0
    assert tables(tmp_path) == tables(whole.out)
    assert find(tmp_path).summary["runs"] == {"trained": 0, "reused": 24, "diverged": 0}


def test_the_draws_of_a_seed_are_ranked(whole):
    key = search_key(next(row for row in whole.rows if row.arm == "ticket"))
    losses = gather(whole.rows, "reconstruction_error", key, Rule("lower", 0.05), raw=True)
    level = next(level for level in losses.levels if level.round == 2)
    own = [
        row for row in whole.rows if row.arm == "reinit" and row.metric == "reconstruction_error"
    ]
    found = losses.at("reinit", level)
    assert found == {seed: {r.draw: r.value for r in own if r.seed == seed} for seed in range(3)}


def test_files_and_costs_of_draws_are_kept_apart(whole):
    cell = Cell(
        arm=Arm(method="imp", networks="all", rewind="2it", precision="fp32"), kind="reinit",
        seed=1, round=2, rewind_steps=2, kept=1, pool=2, sparsity=0.5, sparsity_all=0.5, train="",
        evaluate="",
    )  # fmt: skip
    names = [handed_out.name_of("models", replace(cell, draw=draw)) for draw in (None, 1, 2)]
    once = "reinit-seed1-round02.safetensors"
    assert names == [once, once, "reinit-seed1-round02-draw2.safetensors"]
    assert all(handed_out._NAMES["models"].fullmatch(name) for name in names)
    folder = read_folder(whole.out)
    rows = [row for row in folder.rows if (row.arm, row.seed, row.draw) != ("reinit", 1, 2)]
    gone = next(row for row in folder.rows if (row.arm, row.seed, row.draw) == ("reinit", 1, 2))
    left = ended(replace(folder, rows=[*rows, replace(gone, metric="diverged", value=1)])).costs
    assert [(c.seed, c.draw) for c in folder.costs if c not in left] == [(1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("most", [3, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_comes_to_the_same(whole, tmp_path, most):
    out, faults = tmp_path / "out", str(HERE / "faults")
    words = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in {**OPTIONS, "workers": 2}.items()
    )
    sets = [f"--set {s}.{k}={v}" for s, table in SETTINGS.items() for k, v in table.items()]
    command = [sys.executable, "-m", "tombola", "find", AE, "--anyway"]
    command += [*words.split(), *" ".join(sets).split()]
    path = os.pathsep.join([faults, str(Path(tombola.__file__).parent.parent)])
    environment, kills, random = {**os.environ, "PYTHONPATH": path}, 0, Random(7)
    while kills < most:
        event, last = random.choice([("step", 120), ("rename", 8), ("judge", 4)])
        fault = {"TOMBOLA_FAULT": f"{event}:{random.randint(1, last)}:kill"}
        done = subprocess.run(
            [*command, "--out", str(out)],
            env={**environment, **fault},
            start_new_session=True,
            capture_output=True,
        )
        assert done.returncode == -signal.SIGKILL, "it was whole before it was killed so often"
        kills += 1
    done = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"note: controls are trained at level 2, 2 draws a seed" in done.stderr
    assert tables(out) == tables(whole.out)
    reused = json.loads((out / "summary.json").read_text())["runs"]["reused"]
    assert 2 <= reused < 24


def test_more_seeds_in_the_same_folder_are_a_search_with_more_seeds(copied, tmp_path):
    more = find(copied, seeds=4)
    assert more.summary["runs"]["reused"] == 24
    find(tmp_path / "whole", seeds=4)
    assert tables(copied) == tables(tmp_path / "whole")
    with pytest.raises(tombola.ConfigError, match=r"search\.draws 2 -> 1 \(it can only grow\)"):
        find(copied, seeds=4, draws=1)
    # Draws that are not asked for stay as they were begun: from five seeds on they would be 2.
    found = find(copied, seeds=4, draws=None)
    assert found.summary["runs"]["trained"] == 0


def test_controls_can_be_trained_at_all_levels_later_and_not_taken_back(copied):
    found = find(copied, controls_at="all", draws=0)
    assert found.summary["runs"] == {"trained": 12, "reused": 21, "diverged": 0}
    assert {row.draw for row in found.rows} == {None}
    assert (copied / "results.csv").read_text().splitlines()[0].endswith(",n,step")
    not_run = {(row.arm, row.round) for row in found.rows if row.metric == "not-run"}
    assert not_run == {("ticket", 6), ("reinit", 6)}
    with pytest.raises(tombola.ConfigError, match="it can only change from frontier to all"):
        find(copied)


def test_a_folder_of_an_earlier_version_does_not_stop_unless_it_is_asked_to(tmp_path):
    plain = {"controls": "none", "controls_at": "all", "draws": 0, "seeds": 1, "rate": "0.5"}
    find(tmp_path, **plain, rounds=1)
    told = json.loads((tmp_path / "config.json").read_text())
    for key in ("stop_after", "controls_at", "draws"):
        del told["config"]["search"][key]
    (tmp_path / "config.json").write_text(json.dumps(told))
    found = find(tmp_path, **plain, rounds=5)
    assert found.summary["runs"] == {"trained": 4, "reused": 2, "diverged": 0}
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["config"]["search"]["stop_after"] == 0
    found = find(tmp_path, **plain, rounds=7, stop_after=2)
    assert found.summary["runs"] == {"trained": 0, "reused": 6, "diverged": 0}
    rows = {(row.round, row.metric) for row in found.rows}
    assert {(5, "reconstruction_error"), (6, "not-run"), (7, "not-run")} < rows
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["config"]["search"]["stop_after"] == 2


def test_a_dry_run_shows_the_chain_and_what_each_design_takes(tmp_path, capsys):
    words = "--steps 10 --rounds 5 --rate 0.5 --rewind 20% --threads 1 --device cpu --workers 1"
    line = ["find", AE, *words.split(), "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main([*line, "--controls-at", "frontier"]) == 0
    told = capsys.readouterr().out
    assert 'controls_at = "frontier"\ndraws = 3\nstop_after = 2\n' in told
    assert "train: 18 runs, 0 of them done" in told
    # Dense 10 steps, tickets and shuffle 8, reinit 10.
    assert "left: 150 training steps in 18 trainings" in told
    assert (
        "then at most 3 x 3 x 2 trainings of controls at the frontier (draws x seeds x controls), "
        "162 steps: about" in told
    )
    assert "--controls-at all: controls at every level: 48 trainings, 420 steps, about" in told
    assert (
        "--controls-at frontier: controls at one level, 3 draws of each, at most: 36 trainings, "
        "312 steps, about" in told
    )
    assert told.count("; at least 21 trainings by --stop-after 2") == 1
    assert told.count("; at least 9 trainings by --stop-after 2") == 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--controls-at frontier --controls reinit-chain", "no frontier cuts out"),
        ("--controls-at nowhere", "unknown search.controls_at 'nowhere'"),
        ("--draws 2", "at every level each control is drawn once"),
        ("--draws 0 --controls-at frontier", "--draws got 0"),
        ("--stop-after -2", "--stop-after got -2; it takes a whole number, 0 for never"),
        ("--set search.stop_after=-2", "search.stop_after got -2"),
        ("--transfer-to dcgan --prune decoder --stop-after 2", "but search.stop_after leaves"),
        ("--transfer-to dcgan --prune decoder --controls-at frontier", "controls_at=frontier"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, shown, tmp_path, capsys):
    assert cli.main(["find", "vae", *words.split(), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert shown in said
    assert not (tmp_path / "out").exists()
