"""Do the documents tell the truth? Their commands and snippets are run, their links followed.

Fenced blocks of a document are carried out in order, in one folder that has a copy of examples/:
``bash``: commands that begin with ``tombola`` are run, under ``<!-- long -->`` with --dry-run, and
under ``<!-- exits 2 -->`` must be refused; ``make`` commands must be targets of the Makefile.
``python``: executed, all in one namespace; a block whose first line is ``# name.py`` is written to
that file instead, and a ``toml`` block likewise. ``<!-- prints -->`` above a block: what the
command before it must print, but for the numbers, which are a machine's.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import in_process
import standins
from tombola.cli import command_line as cli
from tombola.config.registry import TASKS
from tombola.config.search import CONTROLS, METHODS
from tombola.metrics.rules import CURVE_ONLY, rule_of
from tombola.metrics.verdict.losses import DEFAULT_CONTROLS

ROOT = Path(__file__).parents[1]
AS_USERS_DO = True
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LINKED = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>long|exits 2|prints) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$",
    re.M | re.S,
)
FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|toml))\n")
OTHER_COMMANDS = {
    "pip install .",
    'pip install ".[onnx]"',
    'pip install ".[hub]"',
    'pip install ".[examples]"',
}
"""Commands that a document may show besides those of tombola and make."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    kind: str
    mark: str | None
    body: str


def blocks(text: str) -> list[Block]:
    found = [Block(m["kind"], m["mark"], m["body"]) for m in FENCE.finditer(text)]
    assert len(found) == len(re.findall(r"^```", text, re.M)) / 2, "a fence is not closed"
    marks = re.findall(r"^<!-- (?:long|exits 2|prints) -->$", text, re.M)
    assert len(marks) == sum(b.mark is not None for b in found), "a mark is not right above a fence"
    return found


def commands(block: Block) -> list[str]:
    lines = block.body.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_command(line: str, mark: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a line as a shell would: the words after ``tombola`` go to the command line -> stdout."""
    words = shlex.split(line)
    if mark == "long" and "--dry-run" not in words:
        words.insert(2, "--dry-run")  # not at the end, where the words of a script may be
    sys.argv = words
    code = cli.main(words[1:])
    out, err = capsys.readouterr()
    assert code == (2 if mark == "exits 2" else 0), f"{line}\n{out}\n{err}"
    if code == 2:
        assert err.strip().splitlines()[-1].startswith("error: "), err
    else:
        assert "Traceback" not in err, err
    return out


def shape(text: str) -> list[str]:
    """The words of a text, with each number as ``#``; rules of tables are no words."""
    return re.sub(r"\d[\d.,]*", "#", re.sub(r"-{2,}", "", text)).split()


def carry_out(block: Block, namespace: dict[str, object], capsys, said: str) -> str:
    """Do what a block says; returns what its last command printed, else ``said``."""
    if block.mark == "prints":
        assert shape(said) == shape(block.body)
    elif named := FILE_NAME.match(block.body):
        Path(named[1]).write_text(block.body, encoding="utf-8")
    elif block.kind == "python":
        exec(compile(block.body, "<snippet>", "exec"), namespace)
    elif block.kind == "bash":
        for line in commands(block):
            if line.startswith("tombola "):
                said = run_command(line, block.mark, capsys)
    return said


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with examples/ and a small MNIST, where searches run in this process."""
    shutil.copytree(ROOT / "examples", tmp_path / "work" / "examples")
    (tmp_path / "work" / "docs").symlink_to(ROOT / "docs")
    standins.make_mnist(tmp_path / "data", train=60, test=20)
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path / "work")
    in_process.use(monkeypatch)
    in_process.use_scripts(monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    with in_process.Restored():
        yield tmp_path / "work"
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_of_a_document_works(document, place, capsys):
    namespace: dict[str, object] = {"__name__": "__main__"}
    said = ""
    for block in blocks((ROOT / document).read_text("utf-8")):
        said = carry_out(block, namespace, capsys, said)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_of_a_known_kind(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for block in blocks((ROOT / document).read_text("utf-8")):
        if block.kind != "bash":
            assert block.mark in (None, "prints"), (
                f"{block.mark} belongs above a bash block: {block.body}"
            )
            continue
        for line in commands(block):
            if line.startswith("make "):
                assert line.split()[1] in targets, f"{line}: the Makefile has no such target"
            else:
                assert line.startswith("tombola ") or line in OTHER_COMMANDS, line


@pytest.mark.parametrize("document", LINKED)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text("utf-8")
    prose = FENCE.sub("", text)
    pictures = re.findall(r'\bsrc(?:set)?="([^"]+)"', prose)
    for target in (*re.findall(r"\]\(([^)]+)\)", prose), *pictures):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        found = ROOT / document if not path else (ROOT / document).parent / path
        assert found.exists(), f"{document} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.M)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{document} links to {target}, which has no such heading"


def test_the_reference_names_what_is_not_built():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    table = text[text.index("## What is built") : text.index("## The code")]
    columns = [row.split("|")[2:4] for row in table.splitlines() if row.startswith("| ")]
    built, lacking = (" ".join(row[i] for row in columns) for i in (0, 1))
    for name in (*METHODS, *CONTROLS):
        assert f"`{name}`" in built, name
    for name in cli.TO_COME:
        assert f"`{name}`" in lacking, name
    for name in cli.TO_COME:
        assert cli.main([name]) == cli.USER


def test_tasks_quotes_sizes_as_they_are(capsys):
    assert cli.main(["list", "tasks", "--json"]) == 0
    rows = {row["name"]: row["parameters"] for row in json.loads(capsys.readouterr().out)}
    text = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    quoted = re.findall(r"^\| `([\w-]+)` \| \w+(?:, \w+)? \| ([\d,]+) \| ([\d,]+) \|", text, re.M)
    found = {
        name: {"quick": int(quick.replace(",", "")), "paper": int(paper.replace(",", ""))}
        for name, quick, paper in quoted
    }
    assert found == rows


def _numbers(text):
    """``Adam 1e-3 (0.5, 0.9)`` -> its rate and betas."""
    rate = float(re.search(r"\b\d+e-\d+", text)[0])
    betas = re.search(r"\(([\d.]+), ([\d.]+)\)", text)
    return rate, tuple(map(float, betas.groups())) if betas else None


def test_tasks_quotes_the_settings_of_both_presets_as_they_are():
    text = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    optimizer = r"((?:Adam|RMSprop)[^|]*)"
    paper = re.findall(
        rf"^\| ([a-z, -]+) \| {optimizer}\|[^|]*\|[^|]*\| (\d+) \|", text, re.MULTILINE
    )
    quick = re.findall(
        rf"^\| ([a-z, -]+) \| (\d+) \| {optimizer}\| (\d+) \| ([\d,]+) \|",
        text,
        re.MULTILINE,
    )
    seen = {"paper": set(), "quick": set()}
    rows = [("paper", names, None, words, batch, None) for names, words, batch in paper]
    rows += [("quick", *row) for row in quick]
    for preset, names, width, words, batch, steps in rows:
        for name in names.split(", "):
            seen[preset].add(name)
            options = dict(TASKS.load(name).presets[preset])
            length = options.pop("steps", None)
            options.pop("epochs", None)
            task = TASKS.load(name)(**options)
            rate, betas = _numbers(words)
            assert task.learning_rate == rate, (preset, name)
            assert betas is None or tuple(task.betas) == betas, (preset, name)
            assert betas is not None or preset == "quick" or name == "wgan"
            assert task.batch_size == int(batch), (preset, name)
            assert task.cosine == ("cosine" in words), (preset, name)
            if steps is not None:
                assert (task.width, length) == (int(width), int(steps.replace(",", "")))
    assert seen == {preset: set(TASKS.names()) for preset in seen}


def test_method_quotes_margins_as_they_are():
    text = (ROOT / "docs" / "method.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (`.+?`) \| [^|]+ \| [^|]+ \| (lower|higher|-) \| ([^|]+) \|$", text, re.M
    )
    assert len(rows) == 14
    for names, better, margin in rows:
        for name in re.findall(r"`(\w+?)(?:-\.\.\.)?`", names):
            rule = rule_of(name)
            if rule is None:
                assert (better, margin) == ("-", "curve only"), name
            else:
                width = f"{100 * rule.margin:g}%" if rule.share else f"{rule.margin:g}"
                assert (better, margin) == (rule.better, width), name
    assert all(f"`{name}`" in text for name in (*CURVE_ONLY, *DEFAULT_CONTROLS))


def test_the_worked_verdict_prints_what_is_shown(capsys):
    text = (ROOT / "docs" / "method.md").read_text("utf-8")
    found = re.search(r"```python\n(import tombola\n\ndense .*?)```\n\n```\n(.*?)```", text, re.S)
    assert found is not None
    exec(found[1], {})
    assert capsys.readouterr().out == found[2]
