"""Workers may die: they are started again, and a run that always ends them is given up."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from test_kill import left_over, start, wait_for
from tombola.cli import command_line as cli
from tombola.engine.executors import local as local_pool
from tombola.engine.executors.agenda import Agenda
from tombola.engine.executors.losses import LESS_MEMORY, Losses, what_was_lost
from tombola.engine.executors.protocol import End, Work, carry_out
from tombola.errors import ConfigError, EndedError
from tombola.store.graph import Graph, Node
from tombola.store.runs import CHECKPOINT, FAILED, Store

TASK = """
import os, signal
from pathlib import Path

import torch
import helpers

HERE = Path(__file__).parent


def strike(decoder):
    "What befalls the workers of sparse tickets, and of no others."
    what = HERE / "what"
    if what.exists() and 0 < float((decoder.weight != 0).float().mean()) < 0.4:
        with (HERE / "strikes").open("a") as stream:
            stream.write("x")
        if what.read_text() == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        torch.empty(2**46)


class AE(helpers.TinyAE):
    def loss(self, turn, networks, images):
        strike(networks["decoder"][0])
        return super().loss(turn, networks, images)
"""
WORDS = (
    "--data digits --steps 30 --rounds 2 --rate 0.5 --seeds 1 --rewind 2it --controls reinit "
    "--threads 1 --set judge.samples=20 --set judge.validation_samples=0"
)


def made(folder, workers=1, *words):
    """A command that searches in a task of its own, whose file is the same for every test."""
    shutil.copy(Path(__file__).parent / "helpers.py", folder)
    (folder / "task.py").write_text(TASK)
    command = [sys.executable, "-m", "tombola", "find", f"{folder / 'task.py'}:AE", *WORDS.split()]
    return [*command, "--workers", str(workers), *words]


def results(out):
    """What a search comes to, and its tickets."""
    files = [out / "results.csv", *(out / "tickets").rglob("*.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def whole(out):
    return [path for path in (out / "store").glob("*/run.json") if path.parent.suffix != ".part"]


def workers_of(parent):
    """The workers of a search."""
    place = Path(f"/proc/{parent}/task/{parent}/children")
    try:
        return [int(word) for word in place.read_text().split()]
    except FileNotFoundError:
        return []


def ended(process, seconds=300):
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, stderr = ended(start(folder / "out", command=made(folder)))
    assert code == 0, stderr
    return folder, results(folder / "out")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells of children")
@pytest.mark.parametrize("most", [3, pytest.param(10, marks=pytest.mark.long)])
def test_the_only_worker_killed_many_times_and_the_search_ends_with_the_same_bytes(
    undisturbed, most
):
    folder, wanted = undisturbed
    out = folder / f"killed-{most}"
    process = start(out, command=made(folder))
    for kills in range(most):
        wait_for(lambda n=kills: len(whole(out)) > n or process.poll() is not None)
        wait_for(lambda: workers_of(process.pid) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        (worker,) = workers_of(process.pid)
        os.kill(worker, signal.SIGKILL)
    code, _, stderr = ended(process)
    assert code == 0, stderr
    assert results(out) == wanted
    assert not list((out / "store").glob("*.part"))
    assert left_over(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "workers", "words"),
    [
        ("kill", 1, r"worker \d+ was killed \(SIGKILL\), as systems do that are short of memory"),
        pytest.param(
            "memory",
            2,
            r"worker \d+ ran out of memory \(.*can't allocate memory.*\)",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_run_that_ends_its_worker_three_times_fails_alone(undisturbed, what, workers, words):
    folder, wanted = undisturbed
    command, out = made(folder, workers), folder / what
    (folder / "what").write_text(what)
    code, _, stderr = ended(start(out, command=command))
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert (code, len(lines)) == (1, 1), stderr
    assert re.search(
        rf"2 runs failed in 3 tries: (ticket|reinit) of level 2, seed 0 \({words}", lines[0]
    )
    assert all(f"{arm} of level 2" in lines[0] for arm in ("ticket", "reinit"))
    assert "2 more build on what failed" in lines[0]  # their judgements
    assert LESS_MEMORY in lines[0]
    assert "fault of Tombola" not in stderr
    assert "Traceback" not in stderr
    assert (folder / "strikes").read_text() == 6 * "x"
    assert stderr.count("it is begun again (try 2 of 3)") == 2
    failed = [json.loads(path.read_text()) for path in (out / "store").glob(f"*.part/{FAILED}")]
    assert sorted(each["label"].partition(",")[0] for each in failed) == [
        "reinit of level 2",
        "ticket of level 2",
    ]
    rows = (out / "results.csv").read_text()
    assert rows.count("reconstruction_error") == 3  # dense and level 1 are judged
    assert "in progress" in (out / "report.html").read_text()
    for name in ("what", "strikes"):
        (folder / name).unlink()
    code, _, stderr = ended(start(out, command=command))
    assert code == 0, stderr
    assert results(out) == wanted
    assert not list((out / "store").glob("*.part"))


@pytest.mark.slow
def test_a_search_that_is_asked_to_end_saves_what_it_has_and_goes_on_to_the_same_bytes(tmp_path):
    command = made(tmp_path, 1, "--steps", "5000", "--rewind", "4000it", "--rounds", "1")
    code, _, stderr = ended(start(tmp_path / "whole", command=command))
    assert code == 0, stderr
    out = tmp_path / "out"
    process = start(out, command=command)
    wait_for(lambda: list((out / "store").glob(f"*.part/{CHECKPOINT}")))
    process.terminate()
    code, _, stderr = ended(process, 10)
    assert code == 143
    assert "interrupted; nothing is lost. To resume: tombola find" in stderr
    assert left_over(process.pid) == []
    (part,) = (out / "store").glob("*.part")
    assert "train" not in {json.loads(path.read_text())["kind"] for path in whole(out)}
    assert (part / CHECKPOINT).exists()
    code, _, stderr = ended(start(out, command=command))
    assert code == 0, stderr
    assert results(out) == results(tmp_path / "whole")


# --- what counts ---


def node(label="dense, seed 0", kind="train", **parents):
    return Node(kind=kind, config={"label": label}, parents=parents, label=label)


def pool_of(store, notes=None):
    return local_pool.LocalPool(
        Work(
            graph=None,
            store=store,
            context={},
            workers=1,
            threads=1,
            lock=0,
            note=(notes if notes is not None else []).append,
        )
    )


class Sleeping(local_pool.LocalPool):
    """Its workers only sleep, or fail, and have begun as they are told."""

    command, begun = ["sleep", "60"], True

    def _start(self):
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, text=True)
        index, self._started = self._started, self._started + 1
        worker = self._workers[index] = local_pool._Worker(process)
        if self.begun:
            self._messages.put((index, {"event": "begun"}))
        self.started(index, process)
        return worker

    def started(self, index, process):
        """What befalls it then."""


@pytest.mark.parametrize(
    ("number", "words", "not_words"),
    [
        (signal.SIGKILL, "was killed (SIGKILL), as systems do that are short of memory", "report"),
        (signal.SIGTERM, "was ended from outside (SIGTERM)", "memory"),
        (signal.SIGSEGV, "crashed in native code (SIGSEGV)", "memory"),
        (signal.SIGALRM, "was ended by signal 14", "memory"),
    ],
)
def test_a_worker_that_was_killed_is_told_by_its_signal(
    number, words, not_words, tmp_path, monkeypatch, capsys
):
    run, notes, pids = node(), [], []

    class Struck(Sleeping):
        def started(self, index, process):
            pids.append(process.pid)
            process.send_signal(number)
            self._messages.put((index, None))

    store = Store(tmp_path)
    store.begin(run.hash)
    work = pool_of(store, notes)._work
    work.graph = Graph()
    work.graph.add(run)
    with pytest.raises(EndedError) as caught:
        carry_out(work, Struck(work))
    told = [f"worker {pid} {words} during: dense, seed 0; " for pid in pids]
    ends = ["it is begun again (try 2 of 3)", "it is begun again (try 3 of 3)"]
    assert notes == [a + b for a, b in zip(told, [*ends, "given up after 3 tries"], strict=True)]
    assert str(caught.value).startswith(f"a run failed in 3 tries: dense, seed 0 (worker {pids[2]}")
    assert not_words not in str(caught.value)

    def end(_):
        raise caught.value

    monkeypatch.setattr(cli, "_run", end)
    assert cli.main(["find"]) == 1
    assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_a_checkpoint_that_is_newer_begins_the_count_anew(tmp_path):
    store, run = Store(tmp_path), node()
    losses = Losses(store)
    part = store.begin(run.hash)
    for tries in (2, 3):
        assert losses.again(run, "killed") == tries
    for number in range(10):
        new = part / f"{number}"
        new.write_text(f"{number}")
        new.replace(part / CHECKPOINT)
        assert losses.again(run, "killed") == 2
    assert [losses.again(run, "killed") for _ in range(2)] == [3, 0]
    assert (part / FAILED).exists()
    store.begin(run.hash)
    assert not (part / FAILED).exists()


def test_a_worker_that_ends_before_its_run_counts_against_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(local_pool, "MOST_STILLBORN", 5)
    run, notes, begun = node(), [], {4}

    class Stillborn(Sleeping):
        begun = False

        def started(self, index, process):
            if index in begun:  # so workers can be started
                self._messages.put((index, {"event": "begun"}))
            process.kill()
            self._messages.put((index, None))

    pool = Stillborn(pool_of(Store(tmp_path), notes)._work)
    pool.submit(run)
    assert pool.wait().node == run
    assert notes == [note for note in notes if "before it began: dense, seed 0; another" in note]
    assert len(notes) == 4
    pool.submit(run)
    with pytest.raises(EndedError, match="before it began a run; the same command goes on"):
        pool.wait()
    assert len(notes) == 8
    Stillborn.command, pool._stillborn = ["false"], 0
    Stillborn.started = lambda self, index, process: self._messages.put((index, None))
    pool.submit(run)
    with pytest.raises(EndedError, match=r"ended \(code 1\) before it began a run"):
        pool.wait()


def test_a_message_of_a_worker_that_was_given_up_is_not_heard(tmp_path):
    pool = Sleeping(pool_of(Store(tmp_path))._work)
    pool.submit(node())
    process = pool._workers[0].process
    pool._messages.put((0, {"event": "lost", "text": "lost its device"}))
    pool._messages.put((0, None))
    assert pool.wait() == End(node(), "lost its device")
    assert process.returncode == -signal.SIGKILL
    pool.submit(node("next"))
    pool._messages.put((1, {"event": "done"}))
    assert pool.wait() == End(node("next"))
    pool.cancel(grace=False)


def test_steps_that_were_lost_with_a_worker_are_taken_back(tmp_path):
    run, told = node(), []
    pool = Sleeping(pool_of(Store(tmp_path))._work)
    pool._work.progress = lambda steps: told.append(("progress", steps))
    pool._work.expect = lambda steps: told.append(("expect", steps))
    pool.submit(run)
    for event, steps in (("progress", 3), ("expect", -2), ("progress", 4)):
        pool._messages.put((0, {"event": event, "steps": steps}))
    pool._workers[0].process.kill()
    pool._messages.put((0, None))
    assert pool.wait().node == run
    assert told[3:] == [("progress", -7), ("expect", 2)]


def from_cause(error):
    """A ConfigError as of a user's criterion that failed by another error."""
    try:
        try:
            raise error
        except Exception as cause:
            raise ConfigError("criterion failed") from cause
    except ConfigError as found:
        return found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (from_cause(MemoryError()), "memory"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("shape '[3]' is invalid for input of size 2"), ""),
        (ConfigError("a task that runs out of memory"), ""),
        (OSError(errno.ENOSPC, "No space left on device"), ""),
    ],
)
def test_want_of_memory_and_a_lost_device_are_told_from_faults(error, kind):
    assert what_was_lost(error) == kind


def test_torch_itself_runs_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert what_was_lost(caught.value) == "memory"


# --- what is next ---


def test_short_runs_go_first_and_none_before_its_parents():
    a, b = node("a"), node("b")
    point = node("point", "rewind", dense=a.hash)
    mask = node("mask", "mask", rewind=point.hash, source=a.hash)
    look = node("look", "evaluate", train=b.hash)
    agenda = Agenda([a, b, point, mask, look], set())
    assert [agenda.take(), agenda.take(), agenda.take()] == [a, b, None]
    agenda.finish(b)
    agenda.finish(a)
    assert [agenda.take(), agenda.take(), agenda.take()] == [point, look, None]
    agenda.give_back(look)
    late = node("late", mask=mask.hash)
    agenda.add([late, a, mask])  # those that are known are not added again
    agenda.finish(point)
    assert [agenda.take(), agenda.take(), agenda.take()] == [mask, look, None]
    assert agenda.waiting == 1
    agenda.finish(mask)
    assert (agenda.take(), agenda.waiting) == (late, 0)


def test_a_hand_out_costs_no_look_at_all_that_wait(tmp_path):
    parents = [node(f"{n}") for n in range(2000)]
    children = [node(f"look {n}", "evaluate", train=parents[n].hash) for n in range(2000)]

    class Counted(dict):
        asked = 0

        def values(self):
            Counted.asked += 1
            return super().values()

    for each in children:
        object.__setattr__(each, "parents", Counted(each.parents))
    agenda = Agenda([*parents, *children], set())
    found = []
    while (each := agenda.take()) is not None:
        agenda.finish(each)
        found.append(each)
    assert len(found) == 4000
    assert Counted.asked <= 3 * len(children)
