"""``tombola run``: somebody's script, once a round, resumed, refused, and its folder."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.config.surroundings import git_commit
from tombola.loops import attaching, orders

HERE = Path(__file__).parent
TWIN = HERE / "twin_linear_ae.py"


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Searches and scripts run in this process, in a folder of their own."""
    in_process.use(monkeypatch)
    in_process.use_scripts(monkeypatch)
    monkeypatch.setattr(attaching, "_told", True)
    monkeypatch.chdir(tmp_path)
    with in_process.Restored():
        yield tmp_path


def run(words: str, script: Path | str, more: str = "") -> int:
    return cli.main([*shlex.split(f"run {words} --"), "python", str(script), *shlex.split(more)])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


SIZE = (
    "--set judge.downstream=none --set task.width=8 --set task.batch_size=16 "
    "--threads 1 --device cpu"
)


@pytest.mark.parametrize("rewind", ["0it", "5it"])
def test_the_tickets_of_a_script_are_those_of_find_bit_for_bit(here, rewind, capsys):
    search = f"--steps 40 --rounds 3 --rate 0.4 --seeds 1 --rewind {rewind}"
    assert run(f"{search} --controls shuffle --out a", TWIN, "--seed {seed} --steps 40") == 0
    find = f"find linear-ae {search} --controls none --out b --set rewind.schedule=restart {SIZE}"
    assert cli.main(shlex.split(find)) == 0
    for level in (1, 2, 3):
        mine, theirs = (
            tombola.load(f"{out}/tickets/seed0-round{level:02d}.safetensors") for out in "ab"
        )
        assert list(mine.masks) == list(theirs.masks)
        assert list(mine.weights) == list(theirs.weights)
        for kind in ("masks", "weights"):
            own, other = getattr(mine, kind), getattr(theirs, kind)
            assert all(torch.equal(own[name], other[name]) for name in own)
        assert mine.manifest["sparsity"] == theirs.manifest["sparsity"]
        assert mine.manifest["sparsity_all"] == theirs.manifest["sparsity_all"]
    dense = [tombola.load(f"{out}/models/dense-seed0-round00.safetensors") for out in "ab"]
    assert all(torch.equal(dense[0].weights[k], dense[1].weights[k]) for k in dense[0].weights)


TINY = """
import torch, tombola
torch.manual_seed({seed})
net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
data = torch.randn(16, 8)
{attach}
optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
for step in range(6):
    loss = (net(data) - data).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    {inner}
{record}
"""
ATTACH = 'handle = tombola.attach({"network": net})'
RECORD = 'tombola.record("loss", loss, n=16, better="lower")'


def tiny(folder: Path, name: str = "tiny.py", **parts: str) -> Path:
    """A script of six steps; ``parts``: attach, inner, record, seed, or whole pieces replaced."""
    chosen = {"attach": ATTACH, "record": RECORD, "inner": "", "seed": "0", **parts}
    text = TINY
    for key, value in chosen.items():
        text = text.replace("{" + key + "}", value)
    (folder / name).write_text(text)
    return folder / name


def said(capsys) -> str:
    """The one error line."""
    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error")]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_folder_is_that_of_a_search(here, capsys):
    script = tiny(here, attach=ATTACH[:-1] + ", sample=lambda: net(data).view(16, 1, 2, 4))")
    words = "--rounds 2 --rate 0.5 --rewind 2it --out out"
    assert run(words, script) == 0
    out = here / "out"
    rows = [(r["arm"], r["round"], r["metric"], r["n"], r["step"]) for r in table(out)]
    assert rows == [
        (arm, level, "loss", "16", "6")
        for arm, levels in (("dense", "0"), ("reinit", "12"), ("shuffle", "12"), ("ticket", "12"))
        for level in levels
    ]
    # 128 of 144 parameters can go; a half and three quarters of them do.
    assert {(r["sparsity"], r["sparsity_all"]) for r in table(out) if r["round"] == "2"} == {
        ("0.75", repr(1 - 48 / 144))
    }
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert [n for n in names if not n.startswith(("store", "logs", ".lock"))] == [
        "config.json", "costs.csv", "log.jsonl",
        "models/dense-seed0-round00.safetensors", "models/ticket-seed0-round01.safetensors",
        "report.html", "results.csv",
        *(f"samples/{arm}.png" for arm in (
            "dense-round00", "reinit-round01", "reinit-round02", "shuffle-round01",
            "shuffle-round02", "ticket-round01", "ticket-round02")),
        "summary.json",
        "tickets/seed0-round01.safetensors", "tickets/seed0-round02.safetensors",
    ]  # fmt: skip
    assert not list((out / "store").glob("*.part"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["runs"] == {"trained": 7, "reused": 0, "diverged": 0}
    assert summary["verdicts"]["loss"]["state"] == "not enough runs"
    assert summary["verdicts"]["loss"]["margin_share"] == 0.1
    page = (out / "report.html").read_text()
    assert "tiny on own data" in page
    assert "tombola run" in page
    capsys.readouterr()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert run(words, script) == 0
    assert "nothing to do: all 7 trainings are there" in capsys.readouterr().err
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} <= {
        "summary.json", "report.html", ".lock",
    }  # fmt: skip
    assert json.loads((out / "summary.json").read_text())["runs"]["reused"] == 7
    assert run(words.replace("--out out", "--out again"), script) == 0
    for name in ("results.csv", "tickets/seed0-round02.safetensors", "log.jsonl"):
        assert (out / name).read_bytes() == (here / "again" / name).read_bytes(), name
    assert cli.main(["report", "out"]) == 0
    assert cli.main(["verify", "out/tickets/seed0-round02.safetensors"]) == 0


def test_more_rounds_and_seeds_extend_what_is_there(here, capsys):
    script = tiny(here, seed='int(__import__("sys").argv[1])')
    words = "--rate 0.5 --rewind 2it --controls none --out out"
    assert run(f"--rounds 1 {words}", script, "{seed}") == 0
    capsys.readouterr()
    assert run(f"--rounds 2 --seeds 2 {words}", script, "{seed}") == 0
    lines = capsys.readouterr().err.splitlines()
    begun = [line for line in lines if "started" in line]
    assert len(begun) == 4
    assert begun[0].startswith("1/4 ticket of round 2, seed 0")
    seen = {(row["arm"], row["seed"], row["round"]): row["value"] for row in table(here / "out")}
    assert len(seen) == 6
    assert seen["dense", "0", "0"] != seen["dense", "1", "0"]
    assert run(f"--rounds 2 --seeds 2 {words}", script, "7") == 2
    assert "put {seed} where the script takes its seed" in said(capsys)


def test_other_words_in_the_same_folder_are_refused(here, capsys):
    script = tiny(here)
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(words, script) == 0
    kept = {p: p.read_bytes() for p in (here / "out").rglob("*.*") if p.name != ".lock"}
    for other, more, shown in (
        (words.replace("0.5", "0.4"), "", "rate: '0.5' -> '0.4'"),
        (words.replace("2it", "1it"), "", "rewind_steps: 2 -> 1"),
        (words, "--flag 1", "words: ["),
        (words + " --prune network", "", "prune: 'all' -> 'network'"),
    ):
        capsys.readouterr()
        assert run(other, script, more) == 2
        assert shown in said(capsys)
    tiny(here, record="")
    assert run(words, script) == 2
    assert "tiny.py edited since, --same-script goes on" in said(capsys)
    assert cli.main(shlex.split(f"find linear-ae --steps 2 --out out {SIZE}")) == 2
    assert kept == {p: p.read_bytes() for p in kept}


def test_an_edited_comment_is_no_other_script_and_an_edited_line_may_be_said_to_be(here, capsys):
    script = tiny(here)
    words = "--rate 0.5 --rewind 2it --controls none --out out"
    assert run(f"--rounds 1 {words}", script) == 0
    script.write_text(f'"""A description."""\n{script.read_text()}# and a comment\n')
    capsys.readouterr()
    assert run(f"--rounds 2 {words}", script) == 0
    assert "1/1 ticket of round 2, seed 0: started" in capsys.readouterr().err
    tiny(here, inner="print(step)")
    assert run(f"--rounds 3 {words}", script) == 2
    assert "tiny.py edited since, --same-script goes on all the same" in said(capsys)
    assert run(f"--rounds 3 --same-script {words}", script) == 0
    assert "1/1 ticket of round 3, seed 0: started" in capsys.readouterr().err
    notes = json.loads((here / "out/summary.json").read_text())["notes"]
    assert notes[0].startswith("Edited between trainings, which went on by --same-script: ")
    assert run(f"--rounds 3 {words}", script) == 0  # as it was then


def test_excluded_layers_are_left_alone_and_another_list_is_another_search(here, capsys):
    script = tiny(here)
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(f"{words} --exclude last", script) == 0
    masks = tombola.load("out/tickets/seed0-round01.safetensors").masks
    assert list(masks) == ["network.0.weight"]
    assert int(masks["network.0.weight"].sum()) == 32  # of 64
    assert run(f"{words} --exclude first", script) == 2
    assert "exclude: ['last'] -> ['first']" in said(capsys)


@pytest.mark.parametrize("word", ["rate.yaml", "--config=rate.yaml"])
def test_an_edited_file_of_settings_is_another_search(here, capsys, word):
    script, settings = tiny(here), here / "rate.yaml"
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    settings.write_text("rate: 0.1\n")
    assert run(words, script, word) == 0
    assert run(words, script, word) == 0
    settings.write_text("rate: 0.2\n")
    assert run(words, script, word) == 2
    assert f"files: {word} edited since" in said(capsys)


RESUMED = """
import os
place = os.path.join(__import__("sys").argv[1], "last.pt")
if os.path.exists(place): net.load_state_dict(torch.load(place))
"""
SAVED = f"torch.save(net.state_dict(), place)\n{RECORD}"


@pytest.mark.parametrize("late", [False, True])
def test_a_script_that_resumes_from_another_training_is_told_of_dir(here, capsys, late):
    attach = f"{ATTACH}\n{RESUMED}" if late else f"{RESUMED}\n{ATTACH}"
    script = tiny(here, attach=attach, record=SAVED)
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(words, script, str(here)) == 2
    line = said(capsys)
    assert "ticket of round 1, seed 0: the networks have the weights that dense, seed 0 " in line
    assert "put {dir}, a folder of each training, where" in line
    own = here / "own" / "own"
    (own / "dense-seed0-round00").mkdir(parents=True)  # of a training that was cut off
    (own / "dense-seed0-round00" / "last.pt").write_text("half")
    assert run(words.replace("out out", "out own"), script, "{dir}") == 0
    assert sorted(path.name for path in own.iterdir()) == [
        "dense-seed0-round00", "ticket-seed0-round01"
    ]  # fmt: skip
    assert not json.loads((here / "own/summary.json").read_text())["notes"]


def test_a_script_that_draws_without_its_seed_is_told(here, capsys):
    script = tiny(here, seed="0")
    script.write_text(script.read_text().replace("torch.manual_seed", "torch.seed() # "))
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(words, script) == 0
    told = "ticket of round 1, seed 0: came with other weights than the dense training of its seed"
    assert told in capsys.readouterr().err
    (note,) = json.loads((here / "out/summary.json").read_text())["notes"]
    assert note.startswith("These came with other weights than the dense training of their seed")
    assert note.endswith("gives each a folder): ticket of round 1, seed 0.")


def test_record_by_hand_says_what_is_wrong_with_it(here):
    tombola.record("fid", 3.0)
    tombola.record("oddness", 3.0, better="lower")
    for metric, value in (("oddness", 3.0), ("fid", "much"), ("a metric", 3.0)):
        with pytest.raises(tombola.ConfigError, match="metric"):
            tombola.record(metric, value)


BAD_SCRIPTS = {
    "never attached": ({"attach": "", "record": ""}, "without calling tombola.attach"),
    "fails": ({"inner": "raise SystemExit(3)"}, "ended with exit code 3"),
    "raises": ({"inner": "optimiser"}, "saying \"NameError: name 'optimiser' is not defined\""),
    "too short": ({"inner": "break"}, "ended after 1 steps, before the rewind step 2"),
    "other networks": (
        {"record": 'tombola.attach({"network": torch.nn.Linear(8, 8)})'},
        "called twice, with other networks",
    ),
    "no step": (
        {"attach": 'tombola.attach({"network": torch.nn.Linear(8, 8)})'},
        "no optimizer step of the attached networks was seen",
    ),
    "no networks": ({"attach": "tombola.attach(net)"}, "give a dict of name to torch.nn.Module"),
    "a metric nobody knows": (
        {"record": 'tombola.record("loss", loss)'},
        'say better="lower" or better="higher"',
    ),
    "a metric known otherwise": (
        {"record": 'tombola.record("fid", loss, better="higher")'},
        "has a rule of its own (lower is better)",
    ),
    "no number": ({"record": 'tombola.record("fid", data)'}, "metric 'fid' got Tensor"),
    "recorded before": ({"attach": f"{RECORD.replace('loss,', '1,')}\n{ATTACH}"}, "attach first"),
    "weights drawn late": (
        {"attach": f"{ATTACH}\nnet[0].reset_parameters()"},
        "the weights were changed (network.0.weight, network.0.bias)",
    ),
    "weights replaced late": (
        {"attach": f"{ATTACH}\nnet[0] = torch.nn.Linear(8, 8)"},
        "the weights were changed (network.0.weight, network.0.bias)",
    ),
    "no images": (
        {"attach": ATTACH[:-1] + ", sample=lambda: data)"},
        "sample gave (16, 8); let it return a tensor (N, C, H, W)",
    ),
    "no verdict of a judge": (
        {"attach": ATTACH[:-1] + ", judge=lambda: 3.0)"},
        "judge gave float; let it return a dict",
    ),
    "a strange average": (
        {"attach": ATTACH[:-1] + ", ema=torch.nn.Linear(3, 3))"},
        "ema is a Linear that fits none of network",
    ),
}


@pytest.mark.parametrize("fault", BAD_SCRIPTS)
def test_what_is_wrong_with_a_script_is_one_line(here, capsys, fault):
    parts, shown = BAD_SCRIPTS[fault]
    script = tiny(here, **parts)
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(words, script) == 2
    line = said(capsys)
    assert shown in line
    if fault == "a metric nobody knows":  # seen before anything is run
        assert "tiny.py, line 14: metric 'loss'" in line
        assert not (here / "out").exists()
        return
    assert "dense, seed 0: " in line
    assert "output in out/logs/dense-seed0-round00.log" in line
    assert (here / "out/logs/dense-seed0-round00.log").exists()
    assert not (here / "out/results.csv").exists()
    tiny(here)  # mended: no round was whole, so nothing stands in the way
    assert run(words, script) == 0
    assert not list((here / "out" / "store").glob("*.part"))


def test_a_leak_is_an_error_of_its_round(here, capsys):
    script = tiny(here, record="with torch.no_grad(): net[2].weight += 1e-3")
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(words, script) == 2
    line = said(capsys)
    assert (
        "ticket of round 1, seed 0: pruned weights are not zero at step 6 in network.2.weight"
        in line
    )


@pytest.mark.parametrize(
    ("words", "script", "shown"),
    [
        ("--rounds 2", "", "cannot read"),
        ("--rounds 0", "tiny.py", "--rounds got 0"),
        ("--rate 1.5", "tiny.py", "rate got '1.5'"),
        ("--rewind 2ep", "tiny.py", "only the script knows"),
        ("--rewind 5%", "tiny.py", "a share of a length that only the script knows"),
        ("--rewind 99% --steps 9", "tiny.py", "not before the end of 9 steps"),
        ("--rewind 9it --steps 9", "tiny.py", "not before the end of 9 steps"),
        ("--controls erk", "tiny.py", "control 'erk' does not go with a training of your own"),
        ("--seeds 2", "tiny.py", "put {seed} where"),
        ("--method imp", "tiny.py", "does not take the option '--method'"),
    ],
)
def test_bad_words_are_refused_at_once(here, capsys, words, script, shown):
    tiny(here)
    assert run(f"{words} --out out", script or "absent.py") == 2
    assert shown in said(capsys)
    assert not (here / "out").exists()


def test_a_command_is_needed_and_must_be_there(here, capsys):
    for words, shown in (
        (["run", "--rounds", "2"], "got no command"),
        (["run", "--rounds", "2", "--"], "got no command"),
        (["run", "--", "no-such-program", "x"], "'no-such-program' is no command"),
        (["run", "python", "train.py"], "does not take the word 'python'"),
    ):
        assert cli.main(words) == 2
        assert shown in said(capsys)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(here, capsys):
    assert run("--rounds 3 --rate 0.5 --steps 50 --dry-run --out out", tiny(here)) == 0
    told = capsys.readouterr().out
    assert "10 trainings of python" in told
    assert "sparsity by round: 50.0%, 75.0%, 87.5%" in told
    assert "stopped after 50 steps" in told
    share = "--rewind 15% --steps 50 --rounds 1 --dry-run --out out"
    assert run(share, here / "tiny.py") == 0
    assert "rewound to step 8; each" in capsys.readouterr().out  # 7.5, halves up
    assert run("--sparsity 0.3,0.6 --controls none --dry-run --out out", here / "tiny.py") == 0
    told = capsys.readouterr().out
    assert "3 trainings of python" in told
    assert "sparsity by round: 30.0%, 60.0%" in told
    assert "time and disk are not known before the first training" in told
    assert "would show a match within 10% at 80% power" in told
    assert not (here / "out").exists()
    assert run("--sparsity 0.3 --dry-run --json --out out", here / "tiny.py") == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    found = json.loads(printed)
    assert found["config"]["search"]["sparsity"] == ["0.3"]
    assert found["config"]["script"] == {"words": ["python", str(here / "tiny.py")]}
    assert "4 trainings of python" in found["notes"][0]


def test_a_dry_run_knows_from_the_trainings_that_are_there_what_is_left(here, capsys):
    script = tiny(here)
    words = "--rate 0.5 --rewind 2it --controls none --out out"
    assert run(f"{words} --rounds 1", script) == 0
    capsys.readouterr()
    assert run(f"{words} --rounds 3 --dry-run", script) == 0
    told = capsys.readouterr().out.splitlines()
    assert {"#   dense: 1 trainings, 1 of them done", "#   ticket: 3 trainings, 1 of them done"} < {
        *told
    }
    assert any(line.startswith("# left: 2 trainings, one after another: about") for line in told)
    # Two trainings of 144 parameters of 4 bytes, each as it began and as it ended.
    whole = f"# disk: about {2 * 2 * 144 * 4 / 1e6:.3g} MB of weights at the end;"
    assert f"{whole} until then also states of what trains, which --keep all keeps" in told


def test_the_folder_of_a_script_says_where_it_was_made_and_has_its_figure(here, capsys):
    script = tiny(here, attach=ATTACH[:-1] + ", sample=lambda: net(data).view(16, 1, 2, 4))")
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out"
    assert run(words, script) == 0
    config = json.loads((here / "out" / "config.json").read_text())
    assert config["config"]["run"] == {"device": "cpu", "threads": torch.get_num_threads()}
    assert config["resolved"]["shape"] == [1, 2, 4]
    assert config["git_commit"] == git_commit()
    assert cli.main(["figure", "out"]) == 0
    with Image.open(here / "out" / "figure.png") as picture:
        assert picture.size[0] > 100
    # The images are looked at; nobody made any here.
    assert run(words.replace("--out out", "--out blind"), tiny(here, "blind.py")) == 0
    assert json.loads((here / "blind" / "config.json").read_text())["resolved"]["shape"] is None
    capsys.readouterr()
    assert cli.main(["figure", "blind"]) == 2
    assert "has no pictures of tickets" in said(capsys)


def test_levels_may_be_given_outright(here):
    words = "--sparsity 0.25,0.75 --controls none --rewind 0it --out out"
    assert run(words, tiny(here)) == 0
    assert {(row["round"], row["sparsity"]) for row in table(here / "out")} == {
        ("0", "0.0"), ("1", "0.25"), ("2", "0.75"),
    }  # fmt: skip


def test_a_training_is_stopped_at_its_steps_and_the_rest_is_not_run(here, capsys):
    script = tiny(here, record="print('ran on')", inner='tombola.record("is", step, n=5)')
    assert (
        run("--rounds 1 --rate 0.5 --rewind 0it --controls none --out out --steps 4", script) == 0
    )
    assert [(row["value"], row["step"]) for row in table(here / "out")] == [("3.0", "4")] * 2
    assert "ran on" not in (here / "out/logs/ticket-seed0-round01.log").read_text()
    assert run("--rounds 1 --rate 0.5 --rewind 0it --out out2 --steps 6", script) == 0
    assert "ran on" in (here / "out2/logs/ticket-seed0-round01.log").read_text()
    assert run("--rounds 1 --rate 0.5 --rewind 0it --out out3 --steps 7", script) == 2
    assert "ended by itself after 6 steps, but --steps asks for 7" in said(capsys)


def test_without_a_number_there_are_tickets_and_no_verdict(here, capsys):
    words = "--rounds 1 --rate 0.5 --rewind 2it --controls none --out out --name mine"
    assert run(words, tiny(here, record="")) == 0
    assert "No verdict" in capsys.readouterr().out
    page = (here / "out/report.html").read_text()
    assert "mine on own data" in page
    assert "<svg" not in page
    assert "call tombola.record(metric, value, better=" in page
    assert run(words.replace("mine", "no/folder"), here / "tiny.py") == 2
    assert "--name got 'no/folder'" in said(capsys)
    assert {(row["metric"], row["value"]) for row in table(here / "out")} == {("steps", "6")}
    assert len(list((here / "out/tickets").iterdir())) == 1
    assert "Nothing was measured, so there is no verdict" in (here / "out/report.html").read_text()


def test_a_chain_that_diverges_ends_and_the_rest_is_not_run(here, capsys):
    script = tiny(
        here,
        seed='int(__import__("sys").argv[1])',
        record=f"if torch.initial_seed() == 1: net[0].weight.data[0, 0] = float('nan')\n{RECORD}",
    )
    words = "--rounds 2 --rate 0.5 --rewind 2it --seeds 2 --controls shuffle --out out"
    assert run(words, script, "{seed}") == 0
    of_one = [(r["arm"], r["round"], r["metric"]) for r in table(here / "out") if r["seed"] == "1"]
    assert of_one == [
        ("dense", "0", "diverged"),
        *((arm, level, "not-run") for arm in ("shuffle", "ticket") for level in "12"),
    ]
    assert json.loads((here / "out/summary.json").read_text())["runs"]["diverged"] == 1
    capsys.readouterr()
    script = tiny(here, "other.py", record="tombola.record('is', float('inf'))")
    assert run("--rounds 1 --rate 0.5 --rewind 2it --controls none --out two", script) == 1
    assert {r["metric"] for r in table(here / "two")} == {"diverged"}
    assert "every training diverged" in said(capsys)


HELD = """
import os, time
if (step == 3 and os.path.exists("hold-dense")) or (
    step == 3 and os.path.exists("hold-ticket") and bool((net[0].weight == 0).any())
):
    print("held", flush=True)
    while os.path.exists("hold-dense") or os.path.exists("hold-ticket"):
        time.sleep(0.02)
    time.sleep(1.1)  # longer than it takes until the search is missed
"""


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def started(script: Path, log: str) -> subprocess.Popen[str]:
    """A search in a process of its own, when the script that it runs is held in mid-round."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tombola", *shlex.split(f"run {KILLED} --"), "python", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    path = Path("out/logs") / log
    until(lambda: process.poll() is not None or (path.exists() and "held" in path.read_text()))
    assert process.poll() is None, process.communicate()
    return process


KILLED = "--rounds 2 --rate 0.5 --rewind 2it --controls none --out out"


@pytest.mark.slow
def test_killed_in_mid_round_and_resumed_the_tickets_are_the_same(here, monkeypatch, capsys):
    inner = "".join(f"\n    {line}" for line in HELD.strip().splitlines())
    script = tiny(here, inner=inner)
    assert run(KILLED.replace("out out", "out whole"), script) == 0
    (here / "hold-dense").touch()
    process = started(script, "dense-seed0-round00.log")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"To resume: tombola run {KILLED} -- python {script}" in stderr
    assert "Traceback" not in stderr
    (part,) = (here / "out/store").glob("*.part")
    assert (part / orders.STATE).exists()  # the script was asked to end, and kept its state
    (here / "hold-dense").unlink()
    (here / "hold-ticket").touch()
    process = started(script, "ticket-seed0-round01.log")
    process.kill()
    process.wait()
    (here / "hold-ticket").unlink()
    said_so = here / "out/logs/ticket-seed0-round01.log"
    until(lambda: "is gone; so this ends too" in said_so.read_text())
    capsys.readouterr()
    assert run(KILLED, script) == 0
    assert json.loads((here / "out/summary.json").read_text())["runs"]["reused"] == 1
    for name in (
        "results.csv",
        "tickets/seed0-round01.safetensors",
        "tickets/seed0-round02.safetensors",
    ):
        assert (here / "out" / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert not list((here / "out").rglob("*.tmp"))
    assert not list((here / "out/store").glob("*.part"))
