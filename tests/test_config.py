"""How values are written, what is in a run's name, and what a resumed search may change."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import standins
from tombola.config import sections as config
from tombola.config import values
from tombola.config.learned import LEARNED
from tombola.config.sections import Config, build
from tombola.engine import earlier as earlier_call
from tombola.engine import search
from tombola.engine.executors.agenda import FIRST
from tombola.engine.stages import STAGES
from tombola.errors import ConfigError
from tombola.metrics.rules import fixed_margins
from tombola.plan import plans as recipes
from tombola.plan.setting import resolve
from tombola.store.graph import SCHEMA, Graph, Node
from tombola.tasks.base import Task

TASK = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"


def test_canonical_json_is_one_text_for_one_value():
    value = {"b": [1, 2.5, None, True], "a": {"d": "\u00fc", "c": 1e-5}}
    text = '{"a":{"c":1e-05,"d":"\\u00fc"},"b":[1,2.5,null,true]}'
    assert values.canonical_json(value) == text
    assert values.canonical_json(dict(reversed(value.items()))) == text
    with pytest.raises(ValueError):
        values.canonical_json({"a": math.nan})


def test_a_content_hash_is_sha256_of_that_text():
    digest = "43258cff783fe7036d8a43033f830adfc60ec037382473548ac742b888292777"
    assert values.content_hash({"b": 2, "a": 1}) == digest


HASHES = {
    "import": "69a62913b8804594e210b7f3144634f5",
    "train": "0d35e4aa7032cbd38c014ef59d42dbe2",
    "rewind": "94533253fcb860e01405b1e45f52251b",
    "mask": "3fcd6012f92ada2f1051b2e418fbad60",
    # The next three are of the order of a hash since schema 2, 4 and 2, and of more samples.
    "judge": "5146f794781dd48a9dd25895b8f56dcc",
    "evaluate": "7e8beebd449cc9c2a9b0f433eaf07c48",
    "floor": "6a27ba5f725363455288fed50875e622",
    "trivial": "ad47b33dcc24237f49647bd8072feeed",
    "scores": "69be1e872b7327b699ba487a4b9983ec",
    "watch": "8b5fd900cdd54a1e40f90a21720e7f2e",
    "cut": "e5b7a5499a88a0e54e98db25d0a6a292",
    "overlap": "e950f3afc07576d026e6c8dd5a8b0f83",
    "thin": "ee5eec2af2041eef6d0bae985f50704d",
    "transfer": "c4be540a54e511095e8d36999b64823a",
    "search": "ed4cf6e82fb01f5793e720507c554059",
}


@pytest.mark.parametrize("kind", HASHES)
def test_the_name_of_a_run_never_changes(kind):
    """A change here makes every finished run of every user a run that is not there."""
    made = {"steps": 100, "precision": "fp32", "rate": 0.001, "seed": 3}
    node = Node(kind, made, {"dense": "0" * 32}, label="for people", steps=7)
    assert node.hash == HASHES[kind]
    assert Node(kind, made, {"dense": "0" * 32}).hash == node.hash
    assert Node(kind, made, {"train": "0" * 32}).hash != node.hash
    assert Node(kind, made, {"dense": "1" + "0" * 31}).hash != node.hash
    assert Node(kind, {**made, "seed": 4}, {"dense": "0" * 32}).hash != node.hash


def test_the_name_of_a_run_contains_its_schema_number(monkeypatch):
    assert set(HASHES) == set(SCHEMA) == set(STAGES) == set(FIRST)
    before = Node("train", {}).hash
    monkeypatch.setitem(SCHEMA, "train", SCHEMA["train"] + 1)
    assert Node("train", {}).hash != before


def test_a_graph_has_a_node_once_and_lists_what_is_missing():
    graph = Graph()
    first = graph.add(Node("train", {"seed": 0}, label="one"))
    assert graph.add(Node("train", {"seed": 0}, label="two")) == first
    second = graph.add(Node("rewind", {"step": 1}, {"dense": first}))
    assert (len(graph), graph[first].label, second in graph) == (2, "one", True)
    assert [node.hash for node in graph.missing([])] == [first, second]
    assert [node.hash for node in graph.missing([first])] == [second]
    with pytest.raises(AssertionError, match="its dense is not in the graph"):
        graph.add(Node("rewind", {}, {"dense": "nowhere"}))


def plan_of(name=TASK, data="digits", **tables):
    tables = {
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
        "search": {"rounds": 1, "seeds": 1, "rewind": "2it"},
        **tables,
    }
    tables["task"] = {**tables.get("task", {}), "name": name}
    tables["data"] = {"name": data}
    return recipes.search(resolve(build(tables), None)).graph


def trainings(graph):
    return {node.hash for node in graph if node.kind == "train"}


CHANGED = {
    "steps": {"train": {"steps": 21}},
    "a task's option": {"task": {"batch_size": 8}},
    "precision": {"train": {"precision": "bf16"}},
    "averaging": {"train": {"ema": 0.5}},
    "threads": {"run": {"threads": 2, "workers": 1, "device": "cpu"}},
}
SAME = {
    "workers": {"run": {"threads": 1, "workers": 2, "device": "cpu"}},
    "keep": {"run": {"threads": 1, "workers": 1, "device": "cpu", "keep": "all"}},
    "margins": {"verdict": {"elbo": 0.5}},
    "samples": {"judge": {"samples": 50}},
    "steps as in the preset": {"train": {"steps": 20}},
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_decides_a_training_is_in_its_name(name):
    assert trainings(plan_of()).isdisjoint(trainings(plan_of(**CHANGED[name])))


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_decide_a_training_is_not_in_its_name(name):
    assert trainings(plan_of()) == trainings(plan_of(**SAME[name]))


def test_the_images_and_the_users_file_are_in_a_trainings_name(tmp_path):
    folder = standins.make_folder(tmp_path / "images", 24)
    assert trainings(plan_of()).isdisjoint(trainings(plan_of(data=f"folder:{folder}")))
    source = Path(__file__).with_name("helpers.py").read_text()
    names = []
    for name, text in (("a", source), ("b", source), ("c", source + "# another line\n")):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(trainings(plan_of(name=f"{tmp_path / name}.py:TinyAE")))
    assert names[0] == names[1]
    assert names[0].isdisjoint(names[2])


def test_more_seeds_rounds_and_controls_keep_the_names_of_what_is_there():
    small = plan_of(search={"rounds": 1, "seeds": 1, "rewind": "2it", "controls": "reinit"})
    more = {"rounds": 2, "seeds": 2, "rewind": "2it,0it", "controls": "reinit,erk"}
    large = plan_of(search={**more, "method": "imp,one-shot"})
    assert {node.hash for node in small} < {node.hash for node in large}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-5", 1e-5),
        ("true", True),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("imp,one-shot", "imp,one-shot"),
        ("folder:a b", "folder:a b"),
        ("", ""),
        ("3\nb = 4", "3\nb = 4"),
    ],
)
def test_the_values_of_set(text, value):
    made = values.parse_value(text)
    assert (made, type(made)) == (value, type(value))


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(
    st.dictionaries(
        st.from_regex("[a-z_]+", fullmatch=True),
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.one_of(SCALARS, st.lists(SCALARS)),
            max_size=3,
        ),
        max_size=3,
    )
)
def test_tables_written_as_toml_are_read_back(tmp_path_factory, tables):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(values.to_toml(tables), encoding="utf-8", newline="")
    again = values.read_toml(path)
    assert again == tables
    assert json.dumps(again) == json.dumps(tables)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500it", (500, "it")),
        ("0it", (0, "it")),
        ("2ep", (2, "ep")),
        ("0.5ep", (0.5, "ep")),
        ("5%", (5, "%")),
        ("0.1%", (0.1, "%")),
    ],
)
def test_rewind_steps_are_read(text, value):
    assert values.parse_rewind(text) == value


@pytest.mark.parametrize(
    "text", ["", "it", "5", "-1it", "1.5it", "nanep", "infit", "5 steps", "%", "-1%", "nan%", "5%%"]
)
def test_what_is_no_rewind_step_is_refused(text):
    with pytest.raises(ConfigError, match="500it, epochs as 2ep"):
        values.parse_rewind(text)


def test_epochs_of_rewind_are_rounded_to_steps():
    search = {"rewind": "0.1ep", "rounds": 1}
    setting = resolve(build({"task": {"name": TASK}, "search": search}), None)
    # 1,200 images in batches of 16: 75 steps an epoch; round(7.5) = 8.
    assert (setting.epoch_steps, setting.rewind_step("0.1ep")) == (75, 8)


@pytest.mark.parametrize(
    ("text", "step"), [("5%", 2), ("5.9%", 2), ("6.25%", 3), ("0%", 0), ("0.1%", 0), ("99%", 40)]
)
def test_a_share_of_the_training_is_rounded_to_the_nearest_step(text, step):
    assert values.percent_of(values.parse_rewind(text)[0], 40) == step
    assert values.percent_of(0.35, 1000) == 4  # 3.5, which floats may put below


def test_a_share_of_the_training_is_the_rewind_point_of_that_step():
    def names(rewind, steps=40):
        search = {"rewind": rewind, "rounds": 1, "seeds": 1}
        tables = {"task": {"name": TASK}, "train": {"steps": steps}, "search": search}
        return {node.hash for node in recipes.search(resolve(build(tables), None)).graph}

    assert names("5%") == names("2it")
    assert names("5%", 60) == names("3it", 60)
    with pytest.raises(ConfigError, match="rewind 100% is step 40, but the training has 40 steps"):
        names("100%")
    with pytest.raises(ConfigError, match="rewind 2it,5% names one step twice"):
        names(["2it", "5%"])


def test_decimal_fractions_are_exact_and_strictly_inside():
    assert values.decimal_fraction("rate", "0.1") == Decimal("0.1")
    for text in ("0", "1", "-0.1", "nan", "inf", "x", "", "1e400"):
        with pytest.raises(ConfigError, match=r"rate got .* between 0 and 1, both excluded"):
            values.decimal_fraction("rate", text)


def test_the_defaults_of_the_contract():
    made = Config()
    assert (made.data.name, made.task.preset) == ("digits", "quick")
    assert (made.search.seeds, made.search.rounds, made.search.rate) == (3, 20, "0.2")
    assert (made.search.method, made.search.rewind) == (("imp",), ("10it",))
    assert (made.prune.networks, made.search.controls) == (("all",), ("reinit", "shuffle"))
    assert made.train.precision == ("fp32",)
    assert made.run.device == "auto"
    assert (made.judge.samples, made.judge.fakes, Task.judged_samples) == (0, 0, 50_000)


def test_how_many_samples_are_judged():
    """As asked; as many as reals; or of a cheap generator five times as many, up to 50,000."""
    tables = {"task": {"name": "vae", "width": 2}, "run": {"threads": 1, "device": "cpu"}}
    setting = resolve(build(tables), None)

    def counts(images=360, macs=19_999_999, task=setting.task, **judge):
        splits = {**setting.images.splits, "judge": torch.zeros(images, 1, 1, 1)}
        changed = dataclasses.replace(
            setting,
            config=build({**tables, "judge": judge}),
            task=task,
            images=dataclasses.replace(setting.images, splits=splits),
            work=dataclasses.replace(setting.work, sample_macs=macs),
        )
        return changed.reals, changed.fakes

    assert counts() == (360, 1800)
    assert counts(10_000) == (10_000, 50_000)
    assert counts(60_000) == (50_000, 50_000)
    assert counts(macs=20_000_000) == (360, 360)
    assert counts(10_000, samples=5000) == (5000, 5000)
    assert counts(samples=5000) == (360, 360)
    assert counts(10_000, samples=5000, fakes=7000) == (5000, 7000)
    assert counts(fakes=70, macs=20_000_000) == (360, 70)
    assert counts(task=resolve(build({"task": {"name": TASK}}), None).task, fakes=70) == (360, 0)


def test_a_config_is_its_own_tables():
    tables = {
        "task": {"name": "vae", "width": 8, "betas": [0.5, 0.9]},
        "search": {"method": "imp,one-shot", "rate": 0.25, "sparsity": [0.5, 0.75]},
        "train": {"epochs": 2},
        "prune": {"networks": ["encoder", "decoder,encoder"]},
        "verdict": {"elbo": 0.02},
    }
    made = build(tables)
    assert made.search.method == ("imp", "one-shot")
    assert (made.search.rate, made.search.sparsity) == ("0.25", ("0.5", "0.75"))
    assert made.train.epochs == 2.0
    assert made.task.options == {"width": 8, "betas": [0.5, 0.9]}
    assert build(made.tables()) == made
    assert build(json.loads(json.dumps(made.tables()))) == made


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "steps", 1.5, "train.steps got 1.5; it takes a whole number"),
        ("train", "steps", True, "train.steps got True; it takes a whole number"),
        ("data", "skip_broken", "yes", "it takes true or false"),
        ("train", "ema", 1.0, "train.ema got 1.0; it takes a finite number from 0 to below 1"),
        ("search", "controls", ["reinit", "reinit"], "controls got reinit,reinit; give each"),
        ("prune", "networks", [], "prune.networks is empty"),
    ],
)
def test_values_of_a_wrong_kind_are_refused(section, key, value, words):
    with pytest.raises(ConfigError) as caught:
        build({section: {key: value}})
    assert words in str(caught.value)


def earlier_of(tables=None, data="d" * 64):
    made = build(tables or {"task": {"name": TASK}, "run": {"threads": 2, "device": "cpu"}})
    return {"config": made.tables(), "resolved": {"data_sha256": data}}


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "more"] if isinstance(value, list) else f"{value}x"


KEYS = [
    (section.name, field.name)
    for section, kind in zip(dataclasses.fields(Config), config._SECTIONS.values(), strict=True)
    for field in dataclasses.fields(kind)
    if field.name not in ("options", "margins")
]
MORE = {
    "search.seeds": 4,
    "search.rounds": 21,
    "search.controls": ["erk", "shuffle", "reinit"],
    "search.controls_at": "all",
    "search.draws": 3,
    "search.stop_after": 3,
    "search.anyway": False,
    "search.method": ["one-shot", "imp"],
    "search.rewind": ["0it", "10it"],
    "search.sparsity": ["0.5", "0.6", "0.7"],
    "prune.networks": ["encoder", "all"],
    "prune.compress": ["0.5", "0.6"],
    "train.precision": ["bf16", "fp32"],
    "judge.fakes": 20,
    "judge.validation_samples": 20,
    "judge.features": "mine.py:features",
    "judge.downstream": "resnet18",
    "run.workers": 2,
    "run.keep": "all",
    "run.executor": "serial",
}
"""What each value that may differ can become; from an empty one where that alone is free."""
BEFORE = {
    "search.sparsity": ["0.5", "0.6"],
    "search.controls_at": "frontier",
    "search.anyway": True,
    "judge.validation_samples": 0,
    "judge.fakes": 0,
}
BOTH_WAYS = {"search.stop_after", "search.anyway", "run.workers", "run.keep", "run.executor"}


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_only_some_values_may_change_in_the_same_folder(section, key, tmp_path):
    name = f"{section}.{key}"
    earlier = earlier_of()
    if section == "prune" and key in earlier_call.OF_EARLY_BIRD:
        earlier["config"]["search"]["method"] = ["early-bird"]
    if section in LEARNED:
        tables = {"task": {"name": TASK}, "run": {"threads": 2, "device": "cpu"}}
        earlier = earlier_of({**tables, "search": {"method": section}})
    value = earlier["config"][section][key] = BEFORE.get(name, earlier["config"][section][key])
    now = copy.deepcopy(earlier)
    now["config"][section][key] = MORE.get(name, other(value))
    if name == "judge.downstream":
        now["resolved"]["classifier"] = {"source": "run", "network": "resnet18"}
    if name not in MORE:
        with pytest.raises(ConfigError) as caught:
            earlier_call.refuse_changes(earlier, now, tmp_path)
        told = str(caught.value)
        assert f"({name} {value!r} -> {other(value)!r}); choose another" in told
        assert str(tmp_path) in told
        return
    earlier_call.refuse_changes(earlier, now, tmp_path)
    if name in BOTH_WAYS:
        earlier_call.refuse_changes(now, earlier, tmp_path)
        return
    with pytest.raises(ConfigError) as caught:
        earlier_call.refuse_changes(now, earlier, tmp_path)
    assert f"({name} {MORE[name]!r} -> {value!r} (" in str(caught.value)
    assert "can only" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("search.sparsity", [], ["0.5"]),
        ("search.sparsity", ["0.5", "0.7"], ["0.5", "0.6", "0.7"]),
        ("search.sparsity", ["0.5"], ["0.4", "0.5"]),
        ("search.method", ["imp"], ["one-shot"]),
        ("prune.networks", ["all"], ["encoder"]),
        ("judge.validation_samples", 20, 30),
        ("judge.fakes", 20, 30),
        ("judge.features", "a.py:f", "b.py:f"),
    ],
)
def test_what_would_lose_or_change_what_is_there_is_refused(name, before, now, tmp_path):
    section, key = name.split(".")
    earlier, after = earlier_of(), earlier_of()
    earlier["config"][section][key], after["config"][section][key] = before, now
    with pytest.raises(ConfigError) as caught:
        earlier_call.refuse_changes(earlier, after, tmp_path)
    assert f"{name} {before!r} -> {now!r} (it can only" in str(caught.value)


def test_controls_are_those_that_each_method_gets(tmp_path):
    """A control that fits early-bird takes the place of all that it gets where none does."""
    tables = {"search": {"method": ["imp", "early-bird"], "controls": ["reinit"]}}
    earlier = earlier_of({"task": {"name": TASK}, "run": {"threads": 2}, **tables})
    now = copy.deepcopy(earlier)
    now["config"]["search"]["controls"] = ["reinit", "thin-parameters"]
    with pytest.raises(ConfigError, match=r"search\.controls \['reinit'\] -> .*only gain values"):
        earlier_call.refuse_changes(earlier, now, tmp_path)
    now["config"]["search"]["controls"] = ["reinit", "thin-parameters", "thin-flops"]
    now["config"]["search"]["controls"].append("random-channels")
    earlier_call.refuse_changes(earlier, now, tmp_path)


def test_a_classifier_may_be_added_and_is_then_the_same(tmp_path):
    own, paper = {"source": "run"}, {"source": "run", "network": "resnet18"}
    for before, after, refused in (
        (None, own, False),
        (own, own, False),
        (own, paper, True),
        (own, None, True),
    ):
        earlier, now = earlier_of(), earlier_of()
        earlier["resolved"]["classifier"], now["resolved"]["classifier"] = before, after
        now["config"]["judge"]["downstream"] = "judge"
        if refused:
            with pytest.raises(ConfigError, match=r"judge\.downstream 'auto' -> 'judge' \(it can"):
                earlier_call.refuse_changes(earlier, now, tmp_path)
        else:
            earlier_call.refuse_changes(earlier, now, tmp_path)


def test_a_margin_is_judgement_and_may_change_which_is_kept(tmp_path):
    earlier, now = earlier_of(), earlier_of({"task": {"name": TASK}, "verdict": {"elbo": 0.5},
                                             "run": {"threads": 2, "device": "cpu"}})  # fmt: skip
    earlier["resolved"]["margins"] = fixed_margins()
    now["resolved"]["margins"] = fixed_margins({"elbo": 0.5})
    earlier_call.refuse_changes(earlier, now, tmp_path)
    assert earlier_call.first_margins(tmp_path, earlier) == {}  # no results yet: nothing to say
    (tmp_path / "results.csv").touch()
    assert earlier_call.first_margins(tmp_path, earlier) == fixed_margins()
    now["resolved"]["margins_first"] = fixed_margins()
    assert earlier_call.first_margins(tmp_path, now) == fixed_margins()


@pytest.mark.parametrize("before", [None, "search", "dense", "ticket:1", "search+transfer"])
@pytest.mark.parametrize("after", ["search", "dense", "ticket:1", "compact:1", "search+transfer"])
def test_another_kind_of_command_is_refused_unless_it_only_adds(before, after, tmp_path):
    earlier, now = earlier_of(), earlier_of()
    now["resolved"]["recipe"] = after
    if before is not None:  # an older version did not record it
        earlier["resolved"]["recipe"] = before
    adds = {("dense", "search"), ("dense", "search+transfer"), ("search", "search+transfer")}
    if before in (None, after) or (before, after) in adds:
        earlier_call.refuse_changes(earlier, now, tmp_path)
        return
    words = f"(the kind of command {before!r} -> {after!r}); choose another folder"
    with pytest.raises(ConfigError, match=re.escape(words)):
        earlier_call.refuse_changes(earlier, now, tmp_path)


def test_transfers_can_be_added_and_not_left_out(tmp_path):
    def told(*targets):
        routes = [
            {"source": "vae", "target": t, "networks": f"generator<-vae.{t}"} for t in targets
        ]
        return {**earlier_of(), "transfer": {"routes": routes}}

    earlier_call.refuse_changes(told("dcgan"), told("dcgan", "sngan"), tmp_path)
    earlier_call.refuse_changes(earlier_of(), told("dcgan"), tmp_path)
    words = r"\(the transfer from vae to dcgan is left out\); choose another folder"
    with pytest.raises(ConfigError, match=words):
        earlier_call.refuse_changes(told("dcgan", "sngan"), told("sngan"), tmp_path)


def test_a_dense_training_knows_nothing_of_a_search(tmp_path):
    earlier = earlier_of()
    earlier["resolved"]["recipe"] = "dense"
    tables = {"search": {"rounds": 2, "rate": "0.5", "seeds": 5}, "prune": {"exclude": ["last"]}}
    now = earlier_of({"task": {"name": TASK}, "run": {"threads": 2, "device": "cpu"}, **tables})
    now["resolved"]["recipe"] = "search"
    earlier_call.refuse_changes(earlier, now, tmp_path)
    now["config"]["search"]["seeds"] = 2
    with pytest.raises(ConfigError, match=r"\(search\.seeds 3 -> 2 \(it can only grow\)\)"):
        earlier_call.refuse_changes(earlier, now, tmp_path)


def test_changed_images_and_options_are_refused(tmp_path):
    now = earlier_of({"task": {"name": TASK, "width": 4}, "run": {"threads": 2, "device": "cpu"}})
    with pytest.raises(ConfigError, match=r"task\.width None -> 4"):
        earlier_call.refuse_changes(earlier_of(), now, tmp_path)
    with pytest.raises(ConfigError, match="the images of the data source"):
        earlier_call.refuse_changes(earlier_of(), earlier_of(data="e" * 64), tmp_path)


def test_what_the_machine_decided_stays_unless_asked_otherwise():
    earlier = earlier_of()
    assert earlier_call.inherit(build({}), None) == build({})
    same = earlier_call.inherit(build({"search": {"rounds": 2}}), earlier)
    assert (same.run.threads, same.run.device, same.search.rounds) == (2, "cpu", 2)
    asked = earlier_call.inherit(build({"run": {"threads": 1, "device": "cuda"}}), earlier)
    assert (asked.run.threads, asked.run.device) == (1, "cuda")
    earlier["config"]["judge"]["samples"] = 10_000
    assert earlier_call.inherit(build({}), earlier).judge.samples == 0
    del earlier["config"]["judge"]["fakes"]  # of a version that judged by as many reals as fakes
    assert earlier_call.inherit(build({}), earlier).judge.samples == 10_000
    assert earlier_call.inherit(build({"judge": {"samples": 9}}), earlier).judge.samples == 9


def test_an_earlier_config_is_read_or_refused(tmp_path):
    assert earlier_call.read_earlier(tmp_path) is None
    path = tmp_path / "config.json"
    path.write_text(json.dumps(earlier_of()))
    assert earlier_call.read_earlier(tmp_path) == earlier_of()
    lacking = earlier_of()
    del lacking["resolved"]["data_sha256"]
    unknown = earlier_of()
    unknown["config"]["judge"]["moods"] = 3
    for text in ("{", "[]", "3", "{}", json.dumps(lacking), json.dumps(unknown)):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json of an earlier call cannot be used"):
            earlier_call.read_earlier(tmp_path)


def test_a_refused_search_takes_away_what_it_made_and_nothing_else(tmp_path):
    out = tmp_path / "a" / "b"
    made = search.absent(out)
    assert made == [out / ".lock", out, out.parent]
    out.mkdir(parents=True)
    (out / ".lock").touch()
    with search.gone_if_refused(made):
        pass
    assert (out / ".lock").exists()
    with pytest.raises(KeyError), search.gone_if_refused(made):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("a user's own")
    made = [*search.absent(out), out]
    (out / ".lock").touch()
    with pytest.raises(KeyError), search.gone_if_refused(made):
        raise KeyError
    assert {path.name for path in out.iterdir()} == {"notes.txt"}
