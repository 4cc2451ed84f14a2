"""Tombola from Python: find on images at hand, tickets in a loop of one's own, models back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import helpers
import in_process
import tombola
from tombola import api
from tombola.config.registry import TASKS
from tombola.config.runtime import rng
from tombola.engine import loop
from tombola.engine.models import check_fit
from tombola.engine.progress import Progress
from tombola.errors import ConfigError, TicketError

TASK = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"
SMALL = {
    "steps": 12,
    "rounds": 1,
    "rate": 0.5,
    "seeds": 1,
    "rewind": "2it",
    "controls": "none",
    "workers": 1,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Searches run in this process, in an empty folder at hand."""
    in_process.use(monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with in_process.Restored():
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        return tombola.find(TASK, out=tmp_path_factory.mktemp("result") / "out", **SMALL)


def test_a_result_has_the_summary_the_rows_and_the_tickets(result):
    assert result.summary == json.loads((result.out / "summary.json").read_text())
    assert [(row.arm, row.round, row.metric) for row in result.rows] == [
        ("dense", 0, "accuracy"),
        ("dense", 0, "reconstruction_error"),
        ("dense", 0, "early_stopping_step"),
        ("ticket", 1, "accuracy"),
        ("ticket", 1, "reconstruction_error"),
        ("ticket", 1, "early_stopping_step"),
    ]
    assert result.tickets == [result.out / "tickets" / "seed0-round01.safetensors"]
    assert (result.out / "report.html").is_file()
    command = json.loads((result.out / "config.json").read_text())["command"]
    assert command.startswith(f"tombola.find({TASK!r}, steps=12, rounds=1, rate=0.5, seeds=1")


def test_the_log_has_each_judgement_on_validation_in_order(result):
    lines = [json.loads(line) for line in (result.out / "log.jsonl").read_text().splitlines()]
    for arm, steps in (("dense", range(1, 13)), ("ticket", range(2, 13))):
        own = [line for line in lines if line["arm"] == arm and "event" in line]
        assert {line["event"] for line in own} == {"judged on validation"}
        assert [line["step"] for line in own] == list(steps)
        early = next(
            row.value for row in result.rows if row.arm == arm
            and row.metric == "early_stopping_step"
        )  # fmt: skip
        best = min(line["value"] for line in own)
        good = [line["step"] for line in own if line["value"] <= 1.02 * best]
        assert early == good[0]


def test_a_search_of_a_version_with_fewer_options_is_taken_up_again(result, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(result.out, out)
    config = json.loads((out / "config.json").read_text())
    del config["config"]["prune"]["score_batches"]
    (out / "config.json").write_text(json.dumps(config))
    again = tombola.find(TASK, out=out, **SMALL)
    assert again.summary["runs"]["trained"] == 0
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(tombola.ConfigError, match=r"prune\.score_batches 10 -> 3"):
        tombola.find(TASK, out=out, **SMALL, settings={"prune": {"score_batches": 3}})


def test_find_takes_a_tensor_of_images():
    images = helpers.images(60)
    first = tombola.find(TASK, data=images, out="out", **SMALL)
    (data,) = {row.data for row in first.rows}
    assert data.startswith("tensor-")
    assert {row.n for row in first.rows} == {6}  # a tenth of 60 judges
    assert Path("out", f"data-{data.removeprefix('tensor-')}.safetensors").is_file()
    again = tombola.find(TASK, data=images.numpy(), out="out", **SMALL)
    assert again.summary["runs"] == {"trained": 0, "reused": 2, "diverged": 0}
    before = sorted(path.name for path in Path("out").iterdir())
    with pytest.raises(tombola.ConfigError, match=r"data\.name .* the images of the data source"):
        tombola.find(TASK, data=helpers.images(61), out="out", **SMALL)
    assert sorted(path.name for path in Path("out").iterdir()) == before


class Pairs(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        if not 0 <= index < 40:
            raise IndexError
        image = np.full((8, 8), 6 * index, np.uint8)
        return (image, index % 2)


def test_find_takes_a_dataset_without_a_folder_of_its_own():
    found = tombola.find(TASK, data=Pairs(), **SMALL)
    (data,) = {row.data for row in found.rows}
    assert found.out == Path("runs") / f"TinyAE-{data}-imp"
    assert {row.n for row in found.rows} == {4}


def test_find_takes_a_class_from_its_file():
    named = tombola.find(f"{helpers.__file__}:TinyAE", out="named", **SMALL)
    given = tombola.find(helpers.TinyAE, out="given", **SMALL)
    csv = [(found.out / "results.csv").read_bytes() for found in (named, given)]
    assert csv[0] == csv[1]
    assert {row.task for row in given.rows} == {"TinyAE"}


def test_a_registered_class_is_its_name():
    from tombola.tasks.autoencoding import VAE

    assert api.task_spec(VAE) == "vae"


def test_settings_reach_every_key_and_options_win_over_them():
    settings = {"task": {"batch_size": 8}, "judge": {"samples": 30}, "search": {"rounds": 3}}
    found = tombola.find(TASK, out="out", settings=settings, **SMALL)
    assert settings["search"] == {"rounds": 3}, "the caller's tables are the caller's"
    tables = json.loads((found.out / "config.json").read_text())["config"]
    assert tables["task"]["batch_size"] == 8
    assert tables["search"]["rounds"] == 1
    judged = [row for row in found.rows if row.metric != "early_stopping_step"]
    assert {row.n for row in judged} == {30}
    folder = {"data": {"name": "no-such-data"}}
    with pytest.raises(tombola.ConfigError, match="unknown data source 'no-such-data'"):
        tombola.find(TASK, settings=folder, **SMALL)


class Odd(helpers.TinyAE):
    """A class that a file's top level does not have, once it is renamed."""


NOWHERE = type("Nowhere", (helpers.TinyAE,), {"__module__": "no.such.module"})


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (TASK, {"round": 3}, "find has no option 'round' rounds, settings"),
        (TASK, {"rounds": "three"}, "search.rounds 'three' whole number"),
        (TASK, {"rate": 0}, "rate '0' between 0 and 1"),
        (TASK, {"rewind": "20it"}, "20it step 20 12 steps"),
        (TASK, {"prune": "encodr"}, "'encodr' did you mean encoder"),
        (TASK, {"settings": {"tsk": {}}}, "section 'tsk' did you mean task"),
        (TASK, {"settings": {"task": 3}}, "settings dict of sections"),
        (TASK, {"settings": "task"}, "settings 'task' dict of sections"),
        (TASK, {"data": 3}, "int is not a data source uint8 (N, C, H, W)"),
        (TASK, {"data": torch.zeros(40, 8, 8)}, "(40, 8, 8) not allowed (N, C, H, W)"),
        (TASK, {"data": torch.zeros(3, 1, 8, 8)}, "3 images at least 20"),
        (TASK, {"data": helpers.images(60), "rewind": "30it"}, "30it step 30"),
        (TASK, {"data": helpers.images(60), "rounds": "three"}, "search.rounds 'three'"),
        (TASK, {"sparsity": ["0.5"]}, "both rounds and sparsity"),
        ("linear-a", {}, "'linear-a' did you mean linear-ae"),
        (None, {}, "task got a NoneType linear-ae path/to/file.py:Class tombola.Task"),
        (3, {}, "task got a int path/to/file.py:Class"),
        (nn.Linear(2, 2), {}, "task got a Linear path/to/file.py:Class"),
        (nn.Linear, {}, "task got the class Linear path/to/file.py:Class"),
        (helpers.TinyAE(), {}, "task got a TinyAE class derived from tombola.Task"),
        (NOWHERE, {}, "Nowhere in no file .py file"),
        (type("Even", (Odd,), {"__module__": __name__}), {}, "Even"),
    ],
)
def test_bad_input_is_an_error_to_catch_and_leaves_nothing(task, options, words):
    with pytest.raises(tombola.UserError) as caught:
        tombola.find(task, **{**SMALL, **options})
    missing = [word for word in words.split() if word not in str(caught.value)]
    assert not missing, str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(Path().rglob("*")) == []


def test_a_class_typed_at_the_prompt_is_in_no_file(monkeypatch):
    def no_source(_):
        raise OSError("source code not available")

    monkeypatch.setattr("inspect.getsourcefile", no_source)
    with pytest.raises(tombola.ConfigError, match="task Odd is in no file"):
        tombola.find(Odd, **SMALL)


class Steps(Progress):
    def __init__(self):
        self.told, self.more = [], []
        self.steps = 0

    def begin(self, steps, runs):
        self.told.append((steps, runs))

    def advance(self, steps):
        self.steps += steps

    def expect(self, steps):
        self.more.append(steps)

    def finished(self, node):
        self.told.append(node.kind)

    def end(self):
        self.told.append("end")


def test_progress_is_told_to_the_last_step(monkeypatch):
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0.0)
    progress = Steps()
    tombola.find(TASK, out="out", progress=progress, **SMALL)
    # Runs: dense, its judgement, rewind point, mask, ticket, its judgement; the trivial answer.
    assert progress.told[0] == (12 + 10, 7)
    once = ["rewind", "mask", "trivial"]
    assert sorted(progress.told[1:-1]) == sorted(["train", "evaluate"] * 2 + once)
    assert progress.told[-1] == "end"
    assert progress.steps == 22
    assert not any(progress.more)


def test_progress_counts_no_steps_that_a_divergence_spares():
    progress = Steps()
    task = TASK.replace("TinyAE", "HalfDiverging")
    result = tombola.find(task, out="out", progress=progress, **{**SMALL, "rounds": 4})
    # Dense and two tickets train; the third diverges at its first step, and the fourth is not run.
    assert result.summary["runs"]["diverged"] == 1
    assert progress.told[0][0] == 12 + 4 * 10
    assert [steps for steps in progress.more if steps] == [-9, -10]
    assert progress.steps == 12 + 2 * 10 + 1


def test_a_ticket_has_what_the_contract_lists(result):
    ticket = tombola.load(result.tickets[0])
    assert {
        "task", "data", "data_hash", "method", "granularity", "networks", "shapes", "sparsity",
        "sparsity_all", "rewind_step", "seed", "round", "parents", "config", "scores", "cost",
        "created_with",
    } <= ticket.manifest.keys()  # fmt: skip
    assert ticket.manifest["scores"] == {
        "accuracy": result.rows[3].value,
        "reconstruction_error": result.rows[4].value,
    }
    assert (ticket.manifest["sparsity"], ticket.manifest["rewind_step"]) == (0.5, 2)
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == 768


def test_a_ticket_is_held_in_a_loop_of_ones_own(result):
    ticket = tombola.load(result.tickets[0])
    networks = helpers.TinyAE().networks((1, 8, 8))
    ticket.start(networks)
    for name, mask in ticket.masks.items():
        network, _, parameter = name.partition(".")
        weight = networks[network].get_parameter(parameter)
        assert torch.equal(weight != 0, mask & (ticket.weights[name] != 0))
        assert torch.equal(weight, ticket.weights[name])
    optimizer = torch.optim.Adam([p for n in networks.values() for p in n.parameters()], lr=0.01)
    batch = torch.rand(8, 1, 8, 8, generator=rng(0, "batch"))
    with ticket.enforce(networks, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            networks["decoder"](networks["encoder"](batch)).sub(batch).square().mean().backward()
            optimizer.step()
    for name, mask in ticket.masks.items():
        network, _, parameter = name.partition(".")
        weight = networks[network].get_parameter(parameter)
        assert not weight[~mask].any()
        assert not torch.equal(weight, ticket.weights[name])


def test_a_model_comes_back_as_the_trained_networks(result):
    path = result.out / "models" / "ticket-seed0-round01.safetensors"
    networks = tombola.load_model(path, task=TASK)
    assert list(networks) == ["encoder", "decoder"]
    assert not any(network.training for network in networks.values())
    model = tombola.load(path)
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, model.weights[f"{name}.{key}"])
    same = tombola.load_model(path, task=helpers.TinyAE)
    assert torch.equal(same["decoder"][0].weight, networks["decoder"][0].weight)
    assert model.manifest["scores"] == {
        "accuracy": result.rows[3].value,
        "reconstruction_error": result.rows[4].value,
    }


def test_a_model_is_built_by_a_named_task_only(result):
    path = result.out / "models" / "ticket-seed0-round01.safetensors"
    with pytest.raises(tombola.TicketError, match="TinyAE, which is not registered; say with"):
        tombola.load_model(path)
    with pytest.raises(tombola.TicketError, match="does not fit task TinyGAN"):
        tombola.load_model(path, task=TASK.replace("TinyAE", "TinyGAN"))
    with pytest.raises(tombola.ConfigError, match=r"is no tombola\.Task"):
        tombola.load_model(path, task=TASK.replace("TinyAE", "Path"))
    with pytest.raises(tombola.TicketError, match=r"take .*/models/ticket-seed0-round01\.safe"):
        tombola.load_model(result.tickets[0], task=TASK)


class Sketchless(helpers.TinyAE):
    """Networks that cannot be made without numbers."""

    def networks(self, shape):
        made = super().networks(shape)
        assert float(made["decoder"][0].weight.detach().sum()) != 7
        return made


def test_networks_that_need_numbers_are_loaded_too(result):
    path = result.out / "models" / "ticket-seed0-round01.safetensors"
    networks = tombola.load_model(path, task=Sketchless)
    assert torch.equal(
        networks["decoder"][0].weight, tombola.load(path).weights["decoder.0.weight"]
    )


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (("ddpm", {"blocks": 10**9}), "blocks is 1000000000"),
        (("ddpm", {"levels": (10**30,)}), "width_of_a_level is"),
        (("ddpm", {"blocks": 10**18}), "blocks is"),
        (("conv-ae", {"width": 280_000_000}), "width is 280000000; it must be at most 65,536"),
        (("dcgan", {"width": 70_000_000, "latent": 10**5}), "it must be at most 65,536"),
        (("linear-ae", {"size": 10**9}), "size is 1000000000; it must be at most 65,536"),
    ],
)
def test_options_of_a_stranger_s_file_take_no_memory(task, words):
    name, options = task
    with pytest.raises((ConfigError, TicketError), match=words):
        check_fit("model", TASKS.load(name)(**options), (3, 32, 32), {})


def test_options_go_before_settings_that_say_the_same_in_another_way(tmp_path):
    settings = {**SMALL.get("settings", {}), "search": {"sparsity": ["0.5"]}, "train": {"steps": 3}}
    rest = {k: v for k, v in SMALL.items() if k not in ("settings", "steps", "rounds", "rate")}
    asked = {**rest, "rounds": 2, "rate": None, "epochs": 2, "settings": settings}
    found = tombola.find(TASK, data=helpers.images(60), out=tmp_path / "out", **asked)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["config"]
    assert config["search"]["sparsity"] == []
    assert {row.round for row in found.rows if row.arm == "ticket"} == {1, 2}
