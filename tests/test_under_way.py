"""What is known of a search before its last training: lines, tables, page, bar."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.cli.bar import Bar
from tombola.config.sections import build
from tombola.engine import meanwhile, search
from tombola.engine.meanwhile import Meanwhile, part_of
from tombola.engine.progress import Judgement, Progress
from tombola.engine.request import find_request
from tombola.plan.cells import Plan
from tombola.report.page import write_report
from tombola.results.output import Output
from tombola.store.graph import Graph, Node
from tombola.store.runs import Store
from tombola.store.tables import read_results
from tombola.store.unfinished import so_far

TOY = Path(__file__).parent / "toy_task.py"
TASK = f"{TOY}:TinyAE"
OPTIONS = {"steps": 12, "rounds": 2, "rate": 0.5, "seeds": 1, "rewind": "2it",
           "controls": "reinit", "workers": 1, "threads": 1}  # fmt: skip
WORDS = [w for name, value in OPTIONS.items() for w in (f"--{name}", str(value))]
TABLES = ("results.csv", "costs.csv", "summary.json")


class Told(Progress):
    """Keeps what it is told, and is interrupted once so many trainings are judged."""

    def __init__(self, stop_at=None):
        self.stop_at, self.lines, self.notes, self.kinds = stop_at, [], [], []

    def note(self, text):
        self.notes.append(text)

    def started(self, node):
        self.kinds.append(node.kind)

    def judged(self, found):
        self.lines.append(str(found))
        if len(self.lines) == self.stop_at:
            raise KeyboardInterrupt


def find(out, progress=None, task=TASK, **options):
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        return tombola.find(task, out=out, progress=progress, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    told = Told()
    return find(tmp_path_factory.mktemp("whole") / "out", told), told


def test_each_training_has_a_line_with_its_value_and_that_of_dense(whole):
    result, told = whole
    values = {
        (row.arm, row.round): f"{row.value:#.4g}"
        for row in result.rows
        if row.metric == "reconstruction_error"
    }
    dense = values["dense", 0]
    assert told.lines == [
        f"dense, seed 0:             reconstruction error {dense}",
        *(
            f"{arm} of level {level}, seed 0: {' ' * (len('reinit') - len(arm))}"
            f"reconstruction error {values[arm, level]} (dense {dense})"
            for level in (1, 2)
            for arm in ("ticket", "reinit")
        ),
    ]
    assert len(told.kinds) == len(list((result.out / "store").iterdir()))


def test_a_line_is_of_plain_words_and_four_digits():
    label, metric = "ticket of level 3, seed 1", "fcd-digits-0123abcd"
    made = Judgement(label=label, width=27, metric=metric, value=31.2, dense=29.8123)
    text = "Frechet classifier distance 31.20 (dense 29.81)"
    assert str(made) == f"ticket of level 3, seed 1:   {text}"
    big = Judgement(label="dense, seed 0", metric="elbo", value=-1234.4)
    assert str(big) == "dense, seed 0: ELBO -1234"
    gone = Judgement(label="dense, seed 0", diverged_step=1200)
    assert str(gone) == "dense, seed 0: diverged at step 1,200"
    assert str(Judgement(label="a")) == "a: not run, as its chain had diverged"


def test_arms_and_what_diverged_are_told_apart(tmp_path):
    told = Told()
    options = {"method": "imp,one-shot", "rounds": 3, "controls": "none"}
    find(tmp_path / "out", told, TASK.replace("TinyAE", "HalfDiverging"), **options)
    lines = {line.partition(": ")[0]: line.partition(": ")[2].strip() for line in told.lines}
    assert lines.keys() == {
        "dense, seed 0",
        "ticket of level 1, seed 0",  # one training of both arms
        "imp-all-r2, ticket of level 2, seed 0",
        "imp-all-r2, ticket of level 3, seed 0",
        "one-shot-all-r2, ticket of level 2, seed 0",
        "one-shot-all-r2, ticket of level 3, seed 0",
    }
    ends = [lines[f"{arm}-all-r2, ticket of level 3, seed 0"] for arm in ("imp", "one-shot")]
    assert ends == ["diverged at step 2", "diverged at step 2"]


def test_an_interrupted_search_leaves_tables_and_ends_as_if_it_had_not_been(
    whole, tmp_path, capsys
):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        find(out, Told(stop_at=3))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["progress"] == {"done": 3, "of": 5}
    arms = [row.arm for row in read_results(out / "results.csv")]
    assert arms == ["dense"] * 3 + ["reinit"] * 3 + ["ticket"] * 3
    sentence = summary["verdicts"]["reconstruction_error"]["sentence"]
    assert sentence.startswith("In progress, 3 of 5 trainings: The dense network is not trained")
    assert not (out / "tickets").exists()
    assert cli.main(["report", str(out)]) == 0
    page = out / "report.html"
    assert capsys.readouterr().out == f"{page} (in progress: 3 of 5 trainings)\n"
    text = page.read_text()
    assert "<span>in progress: 3 of 5 trainings</span>" in text
    assert re.search(r'class="state open">in progress<', text)
    assert '<p class="sentence">In progress, 3 of 5 trainings: The dense network is not' in text
    assert cli.main(["report", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(page), "progress": {"done": 3, "of": 5}}

    again = find(out)
    assert "progress" not in again.summary
    assert again.summary["runs"] == {"trained": 2, "reused": 3, "diverged": 0}
    first = whole[0]
    assert (out / "results.csv").read_bytes() == (first.out / "results.csv").read_bytes()
    for part in ("verdicts", "arms", "primary", "collapsed", "convergence", "stability"):
        assert again.summary[part] == first.summary[part]
    names = sorted(p.relative_to(first.out) for p in first.out.rglob("*") if "store" not in str(p))
    assert names == sorted(p.relative_to(out) for p in out.rglob("*") if "store" not in str(p))


def test_a_report_before_anything_is_judged_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    (out / "store").mkdir(parents=True)
    (out / "config.json").write_text("{}")
    assert cli.main(["report", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: {str(out)!r}: no training has been judged yet; run the same command to go on\n"
    )


def test_there_are_tables_of_whatever_is_done(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0].out, out)
    request = find_request(build(_tables()), None, out, "x")
    setting, plan = search.prepare(request)
    output = Output(setting, plan, Store(out / "store"), out)
    order, seen = [node.hash for node in plan.graph], []
    for count in range(1, len(order) + 1):
        known = part_of(output, order[:count])
        known.write({"trained": 0, "reused": 0}, {"done": count, "of": 5})
        known.write_costs()
        rows = read_results(out / "results.csv")
        assert len({(row.arm, row.round) for row in rows}) == len(known.plan.cells)
        if len(known.plan.cells) in (1, 3) and len(known.plan.cells) != len(seen):
            write_report(out)
        seen = known.plan.cells
    assert (seen, len(seen)) == (plan.cells, 5)
    assert (out / "results.csv").read_bytes() == (whole[0].out / "results.csv").read_bytes()


def _tables():
    sections = {"steps": "train", "workers": "run", "threads": "run"}
    tables = {"task": {"name": TASK}, "data": {"name": "digits"}}
    for name, value in OPTIONS.items():
        tables.setdefault(sections.get(name, "search"), {})[name] = value
    return {**tables, "search": {**tables["search"], "rate": "0.5"}}


def test_tables_and_page_are_written_seldom(monkeypatch):
    now, took = [1000.0], {"tables": 0.1, "page": 2.0}
    monkeypatch.setattr(meanwhile.time, "monotonic", lambda: now[0])

    def write(what):
        now[0] += took[what]

    under_way = Meanwhile(
        Progress(), [Plan(graph=Graph())], Store(Path()),
        tables=lambda known: write("tables"), page=lambda: write("page"),
    )  # fmt: skip
    under_way._before = under_way._done = set()
    tables, page = under_way._tables, under_way._page
    assert (tables.at_seconds, page.at_seconds) == (1000, 1060)
    under_way._carry_out(tables)
    assert tables.at_seconds == pytest.approx(1000.1 + 10)
    took["tables"] = 1.0  # a fortieth of the time until the next is longer
    under_way._carry_out(tables)
    assert tables.at_seconds == pytest.approx(1001.1 + 40)
    under_way._carry_out(page)
    assert page.at_seconds == pytest.approx(1003.1 + 80)


class Patient(Told):
    """Waits at a judgement for what was due at the one before."""

    def judged(self, found):
        super().judged(found)
        end = time.monotonic() + 60
        while len(self.lines) == 2 and not self.page.exists() and time.monotonic() < end:
            time.sleep(0.01)
        if len(self.lines) == 3:
            raise KeyboardInterrupt


def test_the_page_is_drawn_while_the_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(meanwhile, "TABLES_SECONDS", 0.0)
    monkeypatch.setattr(meanwhile, "PAGE_SECONDS", 0.0)
    monkeypatch.setattr(meanwhile, "SHARE", 1e9)
    told = Patient()
    told.page = tmp_path / "out" / "report.html"
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        find(tmp_path / "out", told)
    assert re.search(r"in progress: [12] of 5 trainings", told.page.read_text())
    assert not [t for t in set(threading.enumerate()) - before if "monitor" not in t.name.lower()]


def test_tables_that_cannot_be_written_end_no_search(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("tombola.engine.search.part_of", fail)
    monkeypatch.setattr(meanwhile, "TABLES_SECONDS", 0.0)
    told = Told()
    assert find(tmp_path / "out", told).summary["runs"]["trained"] == 5
    assert told.notes == [
        "the results so far could not be written (ZeroDivisionError: a fault); the search goes on"
    ]


def test_sentences_begin_with_what_is_done_once():
    summary = {"progress": {"done": 9, "of": 31}}
    text = so_far(summary, "No ticket wins.")
    assert text == "In progress, 9 of 31 trainings: No ticket wins."
    assert so_far(summary, f"Compress 0.5: {text}") == (
        "In progress, 9 of 31 trainings: Compress 0.5: No ticket wins."
    )
    assert so_far({}, "No ticket wins.") == "No ticket wins."
    assert so_far({"progress": {"done": "<b>", "of": None}}, "a") == "a"


class Terminal(io.StringIO):
    """A terminal of so many columns, of which tqdm leaves one free."""

    def __init__(self, columns):
        super().__init__()
        self.ends = os.openpty()
        termios.tcsetwinsize(self.ends[1], (50, columns + 1))

    def isatty(self):
        return True

    def fileno(self):
        return self.ends[1]


def nodes():
    labels = ("dense, seed 2", "ticket of level 3, seed 0")
    return [Node("train", {"seed": index}, label=label) for index, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("columns", "two", "one"),
    [
        (
            140,
            "[2 under way: dense, seed 2; ticket of level 3, seed 0]",
            "[1 under way: ticket of level 3, seed 0]",
        ),
        (90, "[2 under way: dense, seed 2; t...]", "[1 under way: ticket of level ...]"),
    ],
)
def test_a_bar_names_what_is_under_way_as_far_as_there_is_room(monkeypatch, columns, two, one):
    monkeypatch.setattr(sys, "stderr", Terminal(columns))
    bar = Bar()
    bar.begin(100, 3)
    for node in nodes():
        bar.started(node)
    bar.expect(-10)
    last = sys.stderr.getvalue().split("\r")[-1]
    assert last.endswith(f"left, {two}")
    assert len(last) <= columns
    bar.finished(nodes()[0])
    bar.judged(Judgement(label="dense, seed 2", metric="elbo", value=-1.5))
    bar.expect(10)
    lines = re.split("[\r\n]", sys.stderr.getvalue())
    assert "dense, seed 2: ELBO -1.500" in lines
    bar.end()
    assert lines[-1].rstrip().endswith(f"left, {one}")
    for end in sys.stderr.ends:
        os.close(end)


def test_a_file_gets_a_line_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Bar()
    bar.begin(100, 1)
    bar.started(nodes()[0])
    for _ in range(30):
        now[0] += 10
        bar.advance(3)
        bar.expect(1)
    bar.begin(20, 1)  # more are added
    bar.end()
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 7
    assert lines[0].strip() == "0%  0.00/100 steps, 00:00 gone, ? left"
    assert lines[2].startswith(" 32%  36.0/111 steps, 02:00 gone, ")
    assert lines[2].endswith(" left, [1 under way: dense, seed 2]")
    assert lines[6].startswith(" 60%  90.0/150 steps, 05:00 gone, ")


class Full(io.StringIO):
    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, Full()])
def test_a_bar_that_cannot_be_drawn_is_dropped(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Bar()
    bar.begin(10, 1)
    bar.note("one")
    written = stream.getvalue() if stream else ""
    for each in nodes():
        bar.started(each)
        bar.advance(1)
        bar.finished(each)
    bar.note("two")
    bar.end()
    assert not stream or stream.getvalue() == written


LIGHT = """
import sys
from tombola import cli
sys.exit(cli.main(["find", "no-such-task"]))
"""


@pytest.mark.parametrize("end", ["2>&-", "2>/dev/full", "0<&- 2>&-"])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(end):
    command = f"{sys.executable} -c '{LIGHT}' {end}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path):
    code = """
import os, sys
from tombola.config.streams import open_streams
open_streams()
print(os.open("file", os.O_CREAT | os.O_WRONLY), os.get_inheritable(2))
"""
    command = f"{sys.executable} -c '{code}' 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "3 True\n"


@pytest.mark.slow
def test_a_search_with_stderr_closed_ends_as_any_other(tmp_path):
    words = ["train", TASK, "--steps", "3", "--workers", "1", "--threads", "1"]
    command = " ".join([sys.executable, "-m", "tombola", *words, "--out", str(tmp_path / "out")])
    done = subprocess.run(["sh", "-c", f"{command} 2>&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"report: {tmp_path / 'out' / 'report.html'}\n")


@pytest.mark.slow
def test_a_terminal_that_is_gone_ends_no_search(tmp_path):
    """Log out, or let the window be closed: SIGHUP is ignored, and then nothing can be written."""
    ours, theirs = pty.openpty()
    words = ["train", TASK, "--steps", "3", "--workers", "1", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tombola", *words, "--out", str(tmp_path / "out")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(300) == 0
    assert (tmp_path / "out" / "report.html").exists()
