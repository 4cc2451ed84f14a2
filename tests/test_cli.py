"""What the commands print and write, and with which exit code they end."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.cli import commands
from tombola.cli import words as asked
from tombola.config import registry
from tombola.config import sections as config
from tombola.data.sources import load_images
from tombola.engine import dry_run, sampling, search

TOY = Path(__file__).parent / "toy_task.py"
TASK = f"{TOY}:TinyAE"
SMALL = ["--steps", "12", "--rounds", "1", "--rate", "0.5", "--seeds", "1", "--rewind", "2it"]
PLACE = ["--threads", "1", "--workers", "1", "--device", "cpu"]
ARM = [*SMALL, "--controls", "none", *PLACE]


def call(*words):
    """(exit code, stdout, stderr) of the command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        in_process.Restored(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        in_process.use(patch)
        code = cli.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def rows(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "out"
    code, _, err = call("find", TASK, *ARM, "--out", out)
    assert code == 0, err
    return out


@pytest.fixture
def request_of(monkeypatch):
    """The request that a command would carry out."""

    def given(*words):
        caught = []
        monkeypatch.setattr(commands, "_carry_out", lambda request, _: caught.append(request) or 0)
        code, _, err = call(*words)
        assert code == 0, err
        return caught[0]

    return given


@pytest.fixture
def quick_probe(monkeypatch):
    monkeypatch.setattr(dry_run, "seconds_per_step", lambda _: 0.001)


def apart(*words, cwd):
    """What the command does in a process of its own, with workers of theirs."""
    environment = {**os.environ, "PYTHONPATH": str(Path(tombola.__file__).parent.parent)}
    command = [sys.executable, "-m", "tombola", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_find_prints_one_json_object_and_its_progress_elsewhere(tmp_path):
    done = apart("find", TASK, "--anyway", *ARM, "--json", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["runs"] == {"trained": 2, "reused": 0, "diverged": 0}
    assert summary["primary"] == "reconstruction_error"
    assert "22.0/22.0 steps" in done.stderr  # 12 of the dense run, 10 of the ticket
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_worker_tells_the_bar_of_the_steps_that_a_divergence_spares(tmp_path):
    words = [*ARM, "--anyway", "--rounds", "4", "--out", "out"]
    done = apart("find", f"{TOY}:HalfDiverging", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # The third ticket diverges at its first step, and the fourth is not run.
    assert "/52.0 steps" in done.stderr, "12 of the dense run, 10 of each ticket were planned"
    assert "33.0/33.0 steps" in done.stderr


LOUD = """
import helpers
print("said on import")
class TinyAE(helpers.TinyAE):
    def networks(self, shape):
        print("said by networks")
        return super().networks(shape)
"""


def test_what_a_users_code_prints_goes_to_stderr(found, tmp_path, quick_probe):
    (tmp_path / "loud.py").write_text(LOUD)
    task, model = f"{tmp_path}/loud.py:TinyAE", found / "models" / "dense-seed0-round00.safetensors"
    for words in (
        ["find", task, *ARM, "--dry-run", "--json", "--out", tmp_path / "out"],
        ["train", task, "--steps", "3", *PLACE, "--json", "--out", tmp_path / "out"],
        ["sample", model, "--task", task, "--n", "2", "--out", tmp_path / "made", "--json"],
    ):
        code, out, err = call(*words)
        assert code == 0, err
        assert isinstance(json.loads(out), dict)
        assert "said by networks" in err
    made = tmp_path / "made"
    pictures = [str(made / f"0000{n}.png") for n in range(2)]
    assert out == json.dumps({"grid": str(made / "grid.png"), "images": pictures}) + "\n"


def test_find_ends_with_the_verdict_and_the_report(found):
    code, out, _ = call("find", TASK, *ARM, "--out", found)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:4] == ["metric", "verdict", "matches", "up"]
    assert lines[-2].startswith("The dense network is not trained, so no ticket of it is judged")
    assert lines[-1] == f"report: {found / 'report.html'}"


def test_train_prints_what_it_measured_or_its_summary(tmp_path):
    words = ["train", TASK, "--steps", "3", "--seeds", "2", "--precision", "fp32,bf16", *PLACE]
    code, out, err = call(*words, "--out", tmp_path / "out")
    assert code == 0, err
    table = rows(tmp_path / "out")
    errors = [row for row in table if row["metric"] == "reconstruction_error"]
    assert [(row["precision"], row["seed"]) for row in errors] == [
        ("bf16", "0"),
        ("bf16", "1"),
        ("fp32", "0"),
        ("fp32", "1"),
    ]
    assert {(row["arm"], row["method"], row["round"]) for row in table} == {("dense", "dense", "0")}
    assert out.count("dense seed 0: reconstruction_error 0.") == 2
    code, out, err = call(*words, "--out", tmp_path / "out", "--json")
    assert json.loads(out)["runs"] == {"trained": 0, "reused": 4, "diverged": 0}


def test_train_with_a_ticket_repeats_its_row(found, tmp_path):
    ticket = found / "tickets" / "seed0-round01.safetensors"
    code, out, err = call("train", TASK, "--ticket", ticket, "--out", tmp_path / "out")
    assert code == 0, err
    expected = [row for row in rows(found) if row["arm"] == "ticket"]
    assert rows(tmp_path / "out") == expected
    error = next(row for row in expected if row["metric"] == "reconstruction_error")
    assert out.startswith(f"ticket seed 0: reconstruction_error {float(error['value']):.6g}")
    # The file names its data; a name that is built in need not be said again.
    assert expected[0]["data"] == "digits"


def test_the_tasks_with_their_networks_and_sizes():
    code, out, _ = call("list", "tasks", "--json")
    assert code == 0
    coder, gan = ["encoder", "decoder"], ["generator", "discriminator"]
    assert json.loads(out) == [
        {"name": "beta-vae", "networks": coder, "parameters": {"quick": 371171, "paper": 5613347}},
        {"name": "conv-ae", "networks": coder, "parameters": {"quick": 184107, "paper": 2937507}},
        {"name": "dcgan", "networks": gan, "parameters": {"quick": 477796, "paper": 6564228}},
        {
            "name": "ddpm",
            "networks": ["denoiser"],
            "parameters": {"quick": 217468, "paper": 7553283},
        },
        {"name": "linear-ae", "networks": coder, "parameters": {"quick": 106291, "paper": 219891}},
        {
            "name": "resnet-dcgan",
            "networks": gan,
            "parameters": {"quick": 156932, "paper": 2208772},
        },
        {
            "name": "resnet-vae",
            "networks": coder,
            "parameters": {"quick": 179251, "paper": 2821251},
        },
        {"name": "sngan", "networks": gan, "parameters": {"quick": 489876, "paper": 6741572}},
        {"name": "vae", "networks": coder, "parameters": {"quick": 371171, "paper": 5613347}},
        {"name": "wgan", "networks": gan, "parameters": {"quick": 477796, "paper": 6564228}},
        {"name": "wgan-gp", "networks": gan, "parameters": {"quick": 477572, "paper": 6563332}},
    ]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("tasks", registry.TASKS.names()),
        ("data", ["celeba", "cifar10", "digits", "mnist", "folder:PATH"]),
        (
            "methods",
            [
                "imp",
                "one-shot",
                "early-bird",
                "snip",
                "grasp",
                "synflow",
                "random",
                "gates",
                "gradual",
            ],
        ),
    ],
)
def test_lists_name_what_is_built(what, names):
    assert [line.split()[0] for line in call("list", what)[1].splitlines()] == names
    assert [entry["name"] for entry in json.loads(call("list", what, "--json")[1])] == names


def test_the_lists_say_what_each_task_and_source_is():
    code, out, _ = call("list")
    lines = out.splitlines()
    assert code == 0
    assert (
        "  linear-ae     The paper's linear autoencoder for MNIST: 784-128-64-12-3 and back "
        "(219,891 parameters). Quick: 400 steps."
    ) in lines
    assert any(re.match(r"  beta-vae .* Quick: 1,200 steps\.$", line) for line in lines)
    assert "  folder:PATH  Any tree of images." in lines
    assert "  imp, one-shot, early-bird, snip, grasp, synflow, random, gates, gradual" in lines
    for name in registry.TASKS.names():
        preset = registry.TASKS.load(name).presets["quick"]
        assert f"Quick: {preset['steps']:,} steps." in next(
            line for line in lines if line.startswith(f"  {name} ")
        )
    whole = json.loads(call("list", "--json")[1])
    assert list(whole) == ["data", "methods", "metrics", "tasks"]


def test_a_file_without_a_class_says_which_it_has(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "raise SystemExit\n"
        "class Net(nn.Module): pass\n"
        "class Mine(tasks.Task): pass\n"
        "class Deep(Mine): pass\n"
        "class Other(DCGAN): pass\n"
    )
    code, _, err = call("find", path)
    meant = f"{path}:Mine or {path}:Deep or {path}:Other"
    assert (code, err) == (2, f"error: task {str(path)!r} is a file; did you mean {meant}?\n")
    example = Path(__file__).parent.parent / "examples" / "my_gan.py"
    assert call("find", example)[2].endswith(f"did you mean {example}:MyGAN?\n")


def test_the_list_of_metrics_has_every_metric_that_is_measured():
    listed = set(call("list", "metrics")[1].split())
    assert {"reconstruction_error", "elbo", "kl", "active_units", "discriminator_loss"} <= listed
    assert {"fid", "kid", "fcd-<data>-<hash8>", "kcd-<data>-<hash8>"} <= listed


def test_doctor_says_what_is_there_and_how_to_get_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("tombola.data.checks.can_download", lambda: False)
    code, out, _ = call("doctor", "--data-dir", tmp_path, "--json")
    seen = json.loads(out)
    assert code == 0
    assert seen["data"]["digits"] == "found"
    assert "put there" in seen["data"]["mnist"]
    assert seen["judges"]["digits"] == "shipped"
    assert "TOMBOLA_INCEPTION" in seen["judges"]["inception"]
    assert seen["versions"]["torch"] == torch.__version__
    assert seen["export"]["torch-export"] == "found"
    monkeypatch.setenv("TOMBOLA_INCEPTION", str(tmp_path / "nothing"))
    code, out, _ = call("doctor", "--data-dir", tmp_path)
    assert code == 0
    assert out.startswith("device ")
    assert "digits       found" in out
    assert "TOMBOLA_INCEPTION names" in out


def test_doctor_does_not_call_found_what_is_still_to_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("tombola.data.checks.can_download", lambda: True)
    seen = json.loads(call("doctor", "--data-dir", tmp_path, "--json")[1])["data"]
    absent = "not here; it is downloaded when it is first used"
    assert seen == {"celeba": absent, "cifar10": absent, "digits": "found", "mnist": absent}


def test_sound_files_are_verified_and_shown(found):
    ticket = found / "tickets" / "seed0-round01.safetensors"
    model = found / "models" / "dense-seed0-round00.safetensors"
    for path in (ticket, model):
        assert call("verify", path) == (0, f"{path}: sound\n", "")
    code, out, _ = call("inspect", ticket, "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["format"], shown["task"]) == ("tombola.ticket/1", "TinyAE")
    assert (shown["kept"], shown["prunable"], shown["sparsity"]) == (768, 1536, 0.5)
    assert "768 of 1,536 prunable weights kept" in call("inspect", ticket)[1]
    assert json.loads(call("inspect", model, "--json")[1])["format"] == "tombola.model/1"


ODD = [
    "find",
    TASK,
    *["--method", "imp,one-shot", "--prune", "encoder", "--prune", "decoder,encoder"],
    *["--rewind", "2it,5it", "--controls", "erk,reinit-chain", "--precision", "fp32,bf16"],
    *["--sparsity", "0.3,0.5", "--seeds", "2", "--epochs", "0.2", "--threads", "1"],
    *["--set", "task.learning_rate=0.005", "--set", "prune.criterion=random"],
    *["--set", "verdict.elbo=0.02", "--set", "judge.samples=100", "--set", "train.ema=0.9"],
]
PLANS = {
    "every option": ODD,
    "a preset": ["find", "vae", "--preset", "paper", "--epochs", "2", "--rounds", "2"],
    "defaults": ["find", "linear-ae"],
    "train": ["train", TASK, "--steps", "4", "--seeds", "3"],
}


@pytest.mark.parametrize("name", PLANS)
def test_a_dry_run_prints_a_config_that_gives_the_same_runs(
    name, tmp_path, monkeypatch, quick_probe, request_of
):
    monkeypatch.chdir(tmp_path)
    words = PLANS[name]
    code, text, err = call(*words, "--dry-run")
    assert code == 0, err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.toml").write_text(text)
    again = [words[0], words[1], "--config", "c.toml"]
    assert call(*again, "--dry-run")[1] == text
    plans = [search.prepare(request_of(*line))[1] for line in (words, again)]
    assert [node.hash for node in plans[0].graph] == [node.hash for node in plans[1].graph]
    assert plans[0].cells == plans[1].cells
    as_json = json.loads(call(*words, "--dry-run", "--json")[1])
    assert [f"# {line}" for line in as_json["notes"]] == [
        line for line in text.splitlines() if line.startswith("#")
    ]
    assert as_json["config"]["task"]["name"] == words[1]


def test_a_dry_run_leaves_to_the_next_machine_what_the_machine_decides(tmp_path, quick_probe):
    words = ["find", TASK, "--threads", "1", "--out", tmp_path / "out", "--dry-run"]
    asked = json.loads(call(*words, "--json")[1])["config"]["run"]
    wanted = {"workers": 0, "threads": 1, "device": "auto", "keep": "final", "executor": "local"}
    assert asked == wanted


def test_a_dry_run_counts_what_is_left(found, quick_probe):
    code, text, _ = call("find", TASK, *ARM, "--rounds", "2", "--out", found, "--dry-run")
    assert code == 0
    assert "#   train: 3 runs, 2 of them done" in text
    assert "#   prune all: 1536 weights, kept by level: 768, 384" in text
    assert "# left: 10 training steps in 1 trainings" in text


def config_of(*words):
    options = cli.build_parser()[0].parse_args(["find", "vae", *words])
    return config.build(asked.tables_of(options))


def test_flags_win_over_the_file_and_set_wins_over_flags(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        "[search]\nrounds = 5\nrate = 0.3\nseeds = 7\n[train]\nepochs = 4\n[task]\nwidth = 8\n"
    )
    file = ["--config", str(path)]
    made = config_of(*file, "--rounds", "2", "--seeds", "4", "--set", "search.seeds=9")
    assert made.task.name == "vae"
    assert (made.search.rounds, made.search.rate, made.search.seeds) == (2, "0.3", 9)
    assert made.task.options == {"width": 8}
    assert (config_of(*file, "--steps", "6").train.steps, made.train.epochs) == (6, 4.0)
    assert config_of(*file, "--steps", "6").train.epochs == 0.0


def test_levels_by_rounds_win_over_those_of_a_file(tmp_path):
    (tmp_path / "c.toml").write_text('[search]\nsparsity = ["0.5"]\n')
    assert config_of("--config", str(tmp_path / "c.toml")).search.sparsity == ("0.5",)
    assert config_of("--config", str(tmp_path / "c.toml"), "--rounds", "3").search.sparsity == ()


def test_levels_are_asked_of_a_search_alone(tmp_path, quick_probe):
    """By 20 rounds at 0.9 no weight of 1,536 is left, which matters to no dense training."""
    rate = ["--set", "search.rate=0.9"]
    assert "none of 1536" in call("find", TASK, *rate, "--dry-run")[2]
    words = ["train", TASK, "--steps", "3", *rate, *PLACE, "--out", tmp_path / "out"]
    code, out, err = call(*words, "--dry-run")
    assert code == 0, err
    assert "kept by level" not in out
    assert call(*words)[0] == 0


def test_words_of_options_that_make_lists():
    made = config_of("--prune", "encoder", "--prune", "decoder,encoder", "--controls", "none")
    assert made.prune.networks == ("encoder", "decoder,encoder")
    assert made.search.controls == ()
    made = config_of("--method", "imp, one-shot", "--set", 'search.rewind=["0it", "2ep"]')
    assert made.search.method == ("imp", "one-shot")
    assert made.search.rewind == ("0it", "2ep")
    assert config_of("--set", "prune.exclude=first,last").prune.exclude == ("first", "last")


def test_the_folder_is_named_after_task_data_and_method(request_of, monkeypatch, tmp_path):
    assert request_of("find", TASK).out == Path("runs/TinyAE-digits-imp")
    both = request_of("find", "linear-ae", "--method", "imp,one-shot")
    assert both.out == Path("runs/linear-ae-digits-imp+one-shot")
    assert request_of("train", "vae").out == Path("runs/vae-digits-dense")
    assert both.command == "tombola find linear-ae --method imp,one-shot"
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path))
    assert request_of("find", TASK).data_dir is None  # asked when data are sought


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model files of small networks, trained for a few wild steps, so that images differ."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for task, width in (("linear-ae", 2), ("vae", 2), ("dcgan", 2)):
        out = root / task
        size = ["--set", f"task.width={width}", "--set", "task.learning_rate=0.02"]
        words = ["--steps", "8", *size, "--set", "judge.samples=8"]
        code, _, err = call("train", task, *words, *PLACE, "--out", out)
        assert code == 0, err
        found[task] = out / "models" / "dense-seed0-round00.safetensors"
    return found


@pytest.mark.parametrize("task", ["vae", "dcgan"])
def test_samples_of_a_prior_are_files_and_a_grid(task, models, tmp_path):
    code, out, err = call("sample", models[task], "--n", "5", "--out", tmp_path / "a")
    assert code == 0, err
    assert out == f"5 images and {tmp_path / 'a' / 'grid.png'}\n"
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"{number:05d}.png" for number in range(5)] + ["grid.png"]
    assert Image.open(tmp_path / "a" / "00000.png").size == (32, 32)
    assert Image.open(tmp_path / "a" / "grid.png").size == (8 * 32, 32)
    call("sample", models[task], "--n", "2", "--out", tmp_path / "b")
    call("sample", models[task], "--n", "2", "--out", tmp_path / "c", "--seed", "1")
    content = [(tmp_path / name / "00001.png").read_bytes() for name in "abc"]
    assert content[0] == content[1]
    assert content[0] != content[2]


def test_many_samples_are_made_in_parts_to_the_same_images(models, tmp_path, monkeypatch):
    call("sample", models["vae"], "--n", "7", "--out", tmp_path / "a")
    monkeypatch.setattr(sampling, "BATCH", 3)
    call("sample", models["vae"], "--n", "7", "--out", tmp_path / "b")
    a, b = (
        np.stack([np.asarray(Image.open(tmp_path / x / f"{i:05d}.png")) for i in range(7)])
        for x in "ab"
    )
    assert np.abs(a.astype(int) - b).max() <= 1
    assert len({image.tobytes() for image in a}) > 1


def test_samples_of_an_autoencoder_are_reconstructions_of_judge_images(models, tmp_path):
    code, _, err = call("sample", models["linear-ae"], "--n", "3", "--out", tmp_path / "out")
    assert code == 0, err
    networks = tombola.load_model(models["linear-ae"])
    images = load_images("digits", (1, 28, 28)).splits["judge"][:3].float() / 127.5 - 1
    with torch.no_grad():
        again = networks["decoder"](networks["encoder"](images))
    expected = ((again + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[:, 0].numpy()
    for number in range(3):
        image = np.asarray(Image.open(tmp_path / "out" / f"{number:05d}.png"))
        assert np.array_equal(image, expected[number])


def test_what_is_written_and_verified_is_told_as_one_json_object(found):
    ticket = found / "tickets" / "seed0-round01.safetensors"
    told = {}
    for name, words in {
        "verify": [ticket],
        "report": [found],
        "figure": [found, "--images", "4"],
        "publish": [ticket, "hub:user/name", "--dry-run"],
    }.items():
        code, out, err = call(name, *words, "--json")
        assert code == 0, err
        told[name] = json.loads(out)
        assert out.count("\n") == 1
    assert told["verify"] == {
        "file": str(ticket), "format": "tombola.ticket/1", "sound": True, "rebuilt": [],
    }  # fmt: skip
    assert told["report"] == {"report": str(found / "report.html")}
    assert told["figure"] == {"figures": [str(found / f"figure.{end}") for end in ("png", "svg")]}
    assert told["publish"].keys() == {"place", "url", "card", "paths"}
    assert told["publish"]["url"] == ""


def test_numbers_that_json_does_not_have_are_null_in_answers(capsys):
    options = argparse.Namespace(json=True, stdout=sys.stdout)
    assert commands.answer(options, {"a": [math.nan, 1.5], "b": -math.inf}, "") == 0
    assert capsys.readouterr().out == '{"a": [null, 1.5], "b": null}\n'


def test_the_report_is_written_again_from_what_is_there(found):
    path = found / "report.html"
    before = path.read_text()
    path.write_text("gone")
    assert call("report", found) == (0, f"{path}\n", "")
    assert len(path.read_text()) == len(before)


def test_every_seed_diverged_is_exit_1_with_rows(tmp_path):
    words = ["find", f"{TOY}:Diverging", *SMALL, *PLACE, "--json"]
    code, out, err = call(*words, "--out", tmp_path / "out")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: every seed diverged; lower task.learning_rate")
    assert json.loads(out)["runs"] == {"trained": 1, "reused": 0, "diverged": 1}
    table = {(row["arm"], row["round"]): row for row in rows(tmp_path / "out")}
    dense = table.pop(("dense", "0"))
    assert (dense["metric"], dense["value"], dense["step"], dense["n"]) == (
        "diverged",
        "1",
        "0",
        "",
    )
    assert set(table) == {("ticket", "1"), ("reinit", "1"), ("shuffle", "1")}
    assert {(row["metric"], row["value"]) for row in table.values()} == {("not-run", "1")}
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


def test_later_rounds_of_a_diverged_chain_are_not_run_and_the_search_goes_on(tmp_path):
    words = ["--steps", "12", "--rounds", "4", "--rate", "0.4", "--seeds", "2", "--rewind", "2it"]
    out = tmp_path / "out"
    task = f"{TOY}:HalfDiverging"
    code, _, err = call("find", task, *words, "--controls", "reinit", *PLACE, "--out", out)
    assert code == 0, err
    for seed in "01":
        told = {
            (row["arm"], int(row["round"])): row["metric"]
            for row in rows(out)
            if row["seed"] == seed
        }
        assert len(told) == 9
        assert told["dense", 0] == told["ticket", 1] == "reconstruction_error"
        levels = [told["ticket", level] for level in (1, 2, 3, 4)]
        first = levels.index("diverged")
        assert levels[:first] == ["reconstruction_error"] * first
        assert levels[first + 1 :] == ["not-run"] * (3 - first)
        # Its control has the same mask, so it diverges too; what has no mask is not run.
        assert [told["reinit", level] for level in (1, 2, 3, 4)] == levels
    summary = json.loads((out / "summary.json").read_text())
    assert summary["runs"]["diverged"] == 4
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(event.get("event") == "diverged" for event in events) == 4


def test_an_interrupt_during_the_imports_is_exit_130_and_silent():
    code = """
import builtins, runpy
kept = builtins.__import__
def interrupted(name, *rest, **named):
    if name == "argparse":
        raise KeyboardInterrupt
    return kept(name, *rest, **named)
builtins.__import__ = interrupted
runpy.run_module("tombola", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(tombola.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    scripts = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert scripts["project"]["scripts"] == {"tombola": "tombola.__main__:main"}


def test_an_interrupt_is_exit_130_with_the_line_that_resumes(monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "do_find", interrupt)
    code, out, err = call("find", "vae", "--set", "data.name=folder:a b")
    assert (code, out) == (130, "")
    resume = "tombola find vae --set 'data.name=folder:a b'"
    assert err.splitlines()[-1] == f"interrupted; nothing is lost. To resume: {resume}"


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 1, "the disk is full free some space same command"),
        (errno.EROFS, 2, "cannot use mend its permissions"),
        (errno.EACCES, 2, "cannot use mend its permissions"),
        (errno.EIO, 1, "run the same command again"),
    ],
)
def test_disks_that_fail_are_one_line(number, code, words, monkeypatch):
    def fail(_):
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(commands, "do_find", fail)
    result, out, err = call("find", "vae")
    assert (result, out) == (code, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert all(word in err for word in ["somewhere", *words.split()]), err


def test_a_bare_call_shows_the_help_and_the_version_is_told(capsys):
    code, out, _ = call()
    assert code == 0
    assert "find" in out
    assert "doctor" in out
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"tombola {tombola.__version__}\n"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--set", "train.epochs=2"], {"steps": 0, "epochs": 2}),
        (["--epochs", "2"], {"steps": 0, "epochs": 2.0}),
        (["--set", "train.steps=7"], {"steps": 7, "epochs": 0.0}),
        (["--set", "search.rounds=3"], {"sparsity": (), "rounds": 3}),
        (["--set", "search.sparsity=['0.4']"], {"sparsity": ["0.4"]}),
    ],
)
def test_what_is_asked_for_goes_before_what_a_file_says_in_another_way(tmp_path, words, wanted):
    path = tmp_path / "dry.toml"
    path.write_text('[train]\nsteps = 500\n[search]\nsparsity = ["0.5", "0.9"]\n')
    options = cli.build_parser()[0].parse_args(["find", "vae", "--config", str(path), *words])
    tables = asked.tables_of(options)
    assert wanted.items() <= (tables["train"] | tables["search"]).items()


def test_a_length_in_two_ways_on_the_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("find", "vae", "--steps", "100", "--set", "train.epochs=2", "--dry-run")
    assert code == 2
    assert "both steps (100) and epochs (2" in err


def test_a_folder_that_a_variable_names_is_blamed_on_it_and_only_where_it_is_needed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path / "nowhere"))
    assert call("find", "linear-ae", "--data", "digits", "--dry-run")[0] == 0
    code, _, err = call("find", "linear-ae", "--data", "mnist", "--dry-run")
    assert code == 2
    assert "does not exist; create it or give another TOMBOLA_DATA" in err
