"""Do the kept searches, their summaries and the table of docs/results say the same?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tombola
from tombola.metrics.verdict.decide import RULE_VERSION
from tombola.metrics.verdict.sentences import percent
from tombola.store.tables import read_costs

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SEARCHES = sorted(path.parent for path in RESULTS.glob("*/summary.json"))
ARM = r"`[\w-]+/[\w-]+/r\d+/\w+`"
DECIDED = ("state", "frontier", "first_worse", "at_least", "seeds", "bracket", "learning")


def load(folder, name):
    return json.loads((folder / name).read_text("utf-8"))


def rows_of_the_readme():
    lines = (RESULTS / "README.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == 8 and re.fullmatch(ARM, row[1])]


def row_of(folder, arm, verdict, config):
    """One line of the README's table, from the files alone."""
    resolved, learning = config["resolved"], verdict["learning"]
    method, rewind = arm.split("/")[0], int(arm.split("/")[2][1:])
    epochs = resolved["steps"] / resolved["epoch_steps"]
    edge, worse = (None if x is None else percent(x) for x in verdict["bracket"])
    bracket = f"at least {edge}" if verdict["at_least"] else f"{edge or '-'}, {worse or '-'}"
    rewound = method in ("imp", "one-shot")
    why = ["under one epoch"] * (epochs < 1)
    why += ["not settled"] * (not learning["settled"])
    why += ["one seed"] * (verdict["seeds"] == 1)
    return [
        f"[{folder.name}]({folder.name})",
        f"`{arm}`",
        f"{epochs:.3g}",
        f"{100 * rewind / resolved['steps']:.2g}%" if rewound else "-",
        str(verdict["seeds"]),
        verdict["state"],
        bracket,
        f"no: {', '.join(why)}" if why else "yes",
    ]


def table():
    """Every search and arm in the metric that decides, those that count first."""
    found = []
    for folder in SEARCHES:
        summary, config = load(folder, "summary.json"), load(folder, "config.json")
        found += [
            row_of(folder, arm, verdicts[summary["primary"]], config)
            for arm, verdicts in summary["arms"].items()
        ]
    return sorted(found, key=lambda row: row[-1] != "yes")


@pytest.mark.parametrize("folder", SEARCHES, ids=lambda folder: folder.name)
def test_a_kept_search_is_judged_by_the_rule_of_today(folder):
    summary = load(folder, "summary.json")
    assert summary["rule"] == RULE_VERSION
    if "transfer" in summary:  # of two tasks: its routes have verdicts of their own
        return
    found = json.loads(json.dumps(tombola.verdict(folder / "results.csv")))
    assert found["comparisons"] == summary["comparisons"]
    assert {*found["arms"]} == {*summary["arms"]}
    for arm, verdicts in summary["arms"].items():
        for metric, kept in verdicts.items():
            now = found["arms"][arm][metric]
            assert {k: now[k] for k in DECIDED} == {k: kept[k] for k in DECIDED}, (arm, metric)
            assert {k: c["p"] for k, c in now["controls"].items()} == {
                k: c["p"] for k, c in kept["controls"].items()
            }


def test_the_table_of_the_readme_is_of_the_files():
    assert rows_of_the_readme() == table()


@pytest.mark.parametrize("folder", SEARCHES, ids=lambda folder: folder.name)
def test_dense_costs_are_of_the_steps_that_were_trained(folder):
    resolved = load(folder, "config.json")["resolved"]
    for row in read_costs(folder / "costs.csv"):
        if row.arm == "dense" and row.task == resolved["task"]:
            assert row.train_flops == 2 * resolved["step_macs"] * resolved["steps"]
            assert row.macs_per_sample == resolved["sample_macs"]
