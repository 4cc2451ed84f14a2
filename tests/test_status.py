"""How far is a search? ``tombola status`` says it from the folder alone, whatever became of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import in_process
from test_kill import TASK, start, wait_for
from tombola.cli import command_line as cli
from tombola.cli import commands
from tombola.engine.progress import Progress
from tombola.engine.status_file import StatusFile
from tombola.store.graph import Node
from tombola.store.runs import Store
from tombola.store.status import read_status, status_text

WORDS = [
    "--anyway",
    "--data",
    "digits",
    "--rounds",
    "1",
    "--rate",
    "0.5",
    "--seeds",
    "1",
    "--threads",
    "1",
]


def node(label):
    return Node(kind="train", config={"label": label}, parents={}, label=label)


def folder_of(tmp_path, **holder):
    """A folder in which a process works, this one unless said."""
    since = "2026-11-28 07:00:00"
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since} | holder
    (tmp_path / ".lock").write_text(json.dumps(holder))
    (tmp_path / "config.json").write_text(json.dumps({"command": "tombola find vae"}))
    return tmp_path


def test_what_a_search_tells_is_what_is_said_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tombola.engine.status_file.PAUSE_SECONDS", 0.0)
    out = folder_of(tmp_path)
    told = StatusFile(Progress(), out)
    told.begin(100, 3)
    told.started(node("dense, seed 0"))
    told.advance(40)
    told.finished(node("dense, seed 0"))
    told.started(node("ticket of level 1, seed 0"))
    told.started(node("reinit of level 1, seed 0"))
    told.lose(node("reinit of level 1, seed 0"))
    told.expect(-20)
    told.advance(10)
    found = read_status(out)
    assert (found["state"], found["steps"]) == ("running", {"done": 50, "of": 80})
    assert found["runs"] == {"done": 1, "of": 3}
    assert [each["label"] for each in found["under_way"]] == ["ticket of level 1, seed 0"]
    lines = status_text(out, found).splitlines()
    who = f"(process {os.getpid()} on {socket.gethostname()})"
    assert lines[0] == f"{out}: running since 2026-11-28 07:00:00 {who}"
    assert lines[1].startswith("50 of 80 steps, about 0:0")
    assert lines[2] == "under way for 0:00: ticket of level 1, seed 0"
    assert len(lines) == 3
    told.end()
    assert not (out / "status.json").exists()


def test_steps_that_were_told_are_not_told_of_again_at_once(tmp_path):
    told = StatusFile(Progress(), folder_of(tmp_path))
    told.begin(10, 1)
    told.started(node("dense"))
    first = (tmp_path / "status.json").stat().st_mtime_ns
    told.advance(5)
    assert (tmp_path / "status.json").stat().st_mtime_ns == first


def test_a_status_that_cannot_be_written_ends_no_search(tmp_path):
    (tmp_path / "status.json").mkdir()
    told = StatusFile(Progress(), tmp_path)
    told.begin(10, 1)
    told.started(node("dense"))
    told.end()


def test_who_is_gone_has_stopped_and_who_is_far_is_believed_for_a_while(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    out = folder_of(tmp_path, pid=gone.pid)
    (out / "status.json").write_text("{}")
    assert status_text(out, read_status(out)) == f"{out}: stopped; to go on: tombola find vae"
    folder_of(tmp_path, host="elsewhere")
    assert read_status(out)["state"] == "running"
    os.utime(out / "status.json", (time.time() - 600,) * 2)
    assert read_status(out)["state"] == "stopped"


def test_failures_and_what_is_judged_are_said(tmp_path):
    out = folder_of(tmp_path, pid=2**22 + 1)
    (out / "store").mkdir()
    Store(out / "store").fail("ab", {"label": "ticket of level 2, seed 0", "why": "was killed"})
    (out / "summary.json").write_text(json.dumps({"progress": {"done": 2, "of": 5}}))
    assert status_text(out, read_status(out)).splitlines()[1:] == [
        "in progress: 2 of 5 trainings",
        "failed: ticket of level 2, seed 0 (was killed)",
    ]
    for bad in ("{", "[" * 100_000, "3"):
        (out / ".lock").write_text(bad)
        (out / "status.json").write_text(bad)
        assert read_status(out)["state"] == "stopped"


def test_a_search_that_ended_is_whole_and_needs_no_torch_to_say_so(tmp_path, monkeypatch, capsys):
    in_process.use(monkeypatch)
    out = tmp_path / "out"
    with in_process.Restored():
        assert (
            cli.main(["find", TASK, *WORDS, "--steps", "5", "--rewind", "1it", "--out", str(out)])
            == 0
        )
    capsys.readouterr()
    monkeypatch.setattr("tombola.store.status.alive", lambda pid: False)
    assert cli.main(["status", str(out), "--watch"]) == 0
    assert capsys.readouterr().out == f"{out}: whole\n"
    assert cli.main(["status", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "whole"
    code = (
        "import sys; from tombola.cli import main\n"
        f"main(['status', {str(out)!r}])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_folder_of_nothing_is_refused(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "has no config.json; give the directory that" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_is_watched_until_it_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "WATCH_SECONDS", 0.2)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tombola", "find", TASK, *WORDS, "--steps", "100000"]
    process = start(out, command=command)
    wait_for(lambda: (read_status(out)["steps"] or {}).get("done") if out.exists() else None)
    assert cli.main(["status", str(out)]) == 0
    assert "under way for 0:" in (text := capsys.readouterr().out), text
    assert "dense, seed 0" in text
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert cli.main(["status", str(out), "--watch"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: stopped; to go on: tombola find ")
