"""Killed, nothing lost: SIGKILL at twenty moments, Ctrl-C, a full disk, two processes at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TASK = f"{HERE / 'toy_task.py'}:TinyAE"
COMMAND = [
    sys.executable,
    "-m",
    "tombola",
    "find",
    TASK,
    "--anyway",
    "--data",
    "digits",
    "--steps",
    "30",
    "--rounds",
    "2",
    "--rate",
    "0.5",
    "--seeds",
    "3",
    "--workers",
    "2",
    "--threads",
    "1",
]
MOMENTS = [
    "step:1",
    "rename:1",
    "step:20",
    "rename:2",
    "judge:1",
    "step:45",
    "rename:3",
    "rename:4",
    "step:61",
    "judge:2",
    "rename:5",
    "rename:6",
    "step:75",
    "rename:7",
    "judge:3",
    "rename:9",
    "step:100",
    "rename:12",
    "judge:4",
    "rename:15",
]
"""The n-th event of a process at which its whole group is killed."""


def start(out, fault=None, command=COMMAND, **options):
    environment = dict(os.environ)
    if fault is not None:
        path = [str(HERE / "faults"), environment.get("PYTHONPATH", "")]
        environment.update(TOMBOLA_FAULT=fault, PYTHONPATH=os.pathsep.join(p for p in path if p))
    return subprocess.Popen(
        [*command, "--out", str(out)],
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finish(out, fault=None):
    process = start(out, fault)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def marks(out):
    return {
        p.parent.name: (p.stat().st_mtime_ns, p.stat().st_ino)
        for p in (out / "store").glob("*/run.json")
        if not p.parent.name.endswith(".part")
    }


def left_over(group):
    done = subprocess.run(["ps", "-o", "pid=", "-g", str(group)], capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("moments", "least"),
    [
        pytest.param(MOMENTS[2:14:3], 3, id="four"),
        pytest.param(MOMENTS, 12, id="twenty", marks=pytest.mark.long),
    ],
)
def test_killed_at_many_moments_and_nothing_is_lost(tmp_path, moments, least):
    code, _, stderr = finish(tmp_path / "whole")
    assert code == 0, stderr
    out, finished, kills = tmp_path / "killed", {}, 0
    for moment in moments:
        code, _, stderr = finish(out, f"{moment}:kill")
        assert code in (0, -signal.SIGKILL), stderr
        kills += code == -signal.SIGKILL
        now = marks(out)
        assert {name: now[name] for name in finished} == finished
        finished = now
    assert kills >= least, "too few moments were inside the search"
    code, _, stderr = finish(out)
    assert code == 0, stderr
    assert marks(out).items() >= finished.items()
    for name in ("results.csv",):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for path in sorted((tmp_path / "whole" / "tickets").iterdir()):
        assert (out / "tickets" / path.name).read_bytes() == path.read_bytes()
    code, _, _ = finish(out)
    assert json.loads((out / "summary.json").read_text())["runs"]["trained"] == 0
    assert not list((out / "store").glob("*.part"))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_says_how_to_resume(tmp_path):
    command = [part if part != "30" else "100000" for part in COMMAND]
    process = start(tmp_path / "out", command=command)
    wait_for(lambda: len(list((tmp_path / "out" / "store").glob("*.part"))) >= 2)
    second = start(tmp_path / "out", command=command)
    _, stderr = second.communicate(timeout=120)
    assert second.returncode == 2
    assert re.search(rf"in use by process {process.pid} on \S+ since", stderr)
    assert stderr.count("\n") == 1
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To resume: tombola find" in stderr
    assert "Traceback" not in stderr
    assert left_over(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("rename:4:full", 1, "disk is full"),
        ("rename:5:readonly", 2, "Read-only"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_error_and_the_store_stays_whole(
    tmp_path, fault, code, words
):
    got, _, stderr = finish(tmp_path / "out", fault)
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert (got, len(lines)) == (code, 1), stderr
    assert words in lines[0]
    assert "Traceback" not in stderr
    kept = marks(tmp_path / "out")
    assert finish(tmp_path / "out")[0] == 0
    assert marks(tmp_path / "out").items() >= kept.items()
