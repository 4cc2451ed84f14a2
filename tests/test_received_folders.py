"""Folders from strangers: the page of each is written, or refused in one line, and nothing else."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import report_standin as standin
from tombola.cli import command_line as cli
from tombola.errors import ConfigError, DataError, UserError
from tombola.report import folder as folders
from tombola.report import plots, savings, settling, shapes
from tombola.report.curves import Drawn, file_name, folder_of
from tombola.report.figure import write_figure
from tombola.report.folder import read_folder
from tombola.report.page import write_report

CONTROL = {"state": "worse", "p_holm": 0.01}
ROUTE = {
    "target": "vae", "network": "decoder", "source": "dcgan.generator", "primary": "fid",
    "layers": {"matched": 3},
    "metrics": {"fid": {
        "state": "equal", "sentence": "S.", "margin": 0.1, "d_mean": 0.01, "low": -0.1, "high": 0.1,
        "beats": {"reinit": [1, 2]}, "as_ticket": {"state": "wins", "dense_mean": 2.0},
        "levels": [{"sparsity": 0.5, "d_mean": 0.1, "low": 0.0, "high": 0.2, "state": "equal",
                    "against_dense": "matches", "controls": {"reinit": CONTROL}}],
    }},
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 10**30, 0.5, -2.5, float("nan"), float("inf"), 1e308, "", "x", "$a_{",
    "wins", "worse", "matches", "undecided", [], [1], [[1, 2]], ["a", None], {}, {"a": 1},
    {"a": {"b": []}}, "y" * 5000, "../../up", "\x1b[2J",
)  # fmt: skip
CELLS = (
    "", "x", "nan", "inf", "-inf", "-1", "0", "1", "2", "1e308", "1e400", "9" * 30, "9" * 5000,
    "0.5", "-0.5", "z" * 5000, "../../../up", "a/b", "$", "class-", "class-x", "class-7", "dense",
    "ticket", "compact", "diverged", "not-run", "\u00b2", "\n", '"', "\x00",
)  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A search in rounds with a transfer beside it, and one of channels."""
    root = tmp_path_factory.mktemp("received")
    options: dict[str, Any] = {"rounds": 2, "rate": 0.4, "seeds": 3, "diverged": False}
    rounds = standin.write_run(root / "rounds", metrics=1, **options)
    summary = json.loads((rounds / "summary.json").read_text())
    summary |= {"transfer": {"routes": [ROUTE], "search": True}, "notes": ["A note."],
                "stability": {"imp/all/r10/fp32": {"reinit": {"ratio": 1.0, "seeds": 3}}},
                "floor": {"reconstruction_error": 0.01}}  # fmt: skip
    (rounds / "summary.json").write_text(json.dumps(summary))
    config = json.loads((rounds / "config.json").read_text())
    config |= {"transfer": {"routes": [{"layers": [{"target": "a", "source": "b"}]}]}}
    config["resolved"]["task"] = "linear-ae"
    (rounds / "config.json").write_text(json.dumps(config))
    (root / "channels").mkdir()
    return [rounds, standin.write_channels(root / "channels", compress=(0.5, 0.8))]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drawing is made once, not twice, and without its layout, which takes the longest."""

    def once(draw: Callable[..., str]) -> Callable[..., str]:
        return lambda *given, narrow: draw(*given, narrow=True) if narrow else "<svg></svg>"

    for module in (plots, savings, settling):
        monkeypatch.setattr(module, "svg_of", lambda figure, name, title: "<svg></svg>")
    for place in (plots, settling, savings.Savings):
        monkeypatch.setattr(place, "draw", once(place.draw))


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a JSON value, but its own."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*at, key))


def mutated_json(text: str, draw: random.Random) -> str:
    """A value of another type or size, or none, somewhere; each depth is as likely as another."""
    value = json.loads(text)
    by_depth: dict[int, list[tuple[Any, ...]]] = {}
    for place in places_in(value):
        by_depth.setdefault(len(place), []).append(place)
    *way, last = draw.choice(by_depth[draw.choice(sorted(by_depth))])
    inner = value
    for key in way:
        inner = inner[key]
    kind = draw.randrange(8)
    if kind == 0:
        del inner[last]
    elif kind == 1 and isinstance(inner, dict):
        inner[draw.choice(["", "x/c0.5", "9" * 30, "k" * 5000])] = inner.pop(last)
    elif kind == 2:
        inner[last] = [copy.deepcopy(inner[last])] * 2
    else:
        inner[last] = draw.choice(ODD)
    return json.dumps(value)


def mutated_table(text: str, draw: random.Random) -> str:
    """Another cell, column or line somewhere, or the same in every line."""
    rows = list(csv.reader(io.StringIO(text)))
    line, column = draw.randrange(1, len(rows)), draw.randrange(len(rows[0]))
    kind, cell = draw.randrange(8), draw.choice(CELLS)
    if kind == 0:
        del rows[line][column]
    elif kind == 1:
        del rows[draw.randrange(2) :]
    for place in range(1, len(rows)) if kind > 4 else [line] if kind > 1 else []:
        rows[place][column] = cell
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def mutated(folder: Path, seed: int) -> str:
    """Damage one file of a folder; returns its name."""
    draw = random.Random(seed)
    name = draw.choice(
        ["summary.json"] * 4 + ["config.json", "results.csv", "results.csv", "costs.csv"]
    )
    path = folder / name
    text = path.read_text()
    path.write_text((mutated_json if name.endswith("json") else mutated_table)(text, draw))
    return name


def outcome(folder: Path, seed: int) -> str:
    """Whether the page of a damaged folder was written, or how it was refused."""
    name = mutated(folder, seed)
    try:
        write_report(folder)
    except UserError as error:
        line = str(error)
        assert name in line, (seed, line)
        assert "\n" not in line
        assert len(line) < 600
        return line
    except Exception as error:
        raise AssertionError(f"seed {seed}, {name}: {error!r}") from error
    return ""


@pytest.mark.parametrize("block", range(4))
def test_damaged_folders_are_refused_in_one_line_or_shown(
    originals: list[Path], block: int, tmp_path: Path, undrawn: None
) -> None:
    seen = []
    for seed in range(40 * block, 40 * block + 40):
        folder = tmp_path / "given"
        shutil.copytree(originals[seed % 2], folder)
        seen.append(outcome(folder, seed))
        shutil.rmtree(folder)
    assert 5 <= sum(bool(line) for line in seen) <= 35


def test_a_verdict_whose_parts_do_not_fit_together_keeps_its_sentence(
    originals: list[Path], tmp_path: Path, undrawn: None
) -> None:
    folder = shutil.copytree(originals[1], tmp_path / "given")
    write_report(folder)  # by an older rule: judged anew
    summary = json.loads((folder / "summary.json").read_text())
    for verdicts in (*summary["arms"].values(), summary["verdicts"]):
        verdicts["fid"] |= {"state": "wins", "sparsity": None, "sentence": "Told so."}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "Told so." in write_report(folder).read_text()


def put(folder: Path, name: str, *keys: str, value: Any) -> Path:
    """Set one value of a JSON file."""
    whole = json.loads((folder / name).read_text())
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / name).write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize(
    ("name", "keys", "value", "said"),
    [
        ("summary.json", ("verdicts",), [], "summary.json.verdicts is a list, not an object"),
        ("summary.json", ("arms",), {"a": 7}, "summary.json.arms.a is 7, not an object"),
        ("summary.json", ("notes",), ["a", 1], r"summary.json.notes\[1\] is 1, not a text"),
        ("summary.json", ("floor",), {"fid": True}, "floor.fid is True, not a number"),
        ("summary.json", ("floor",), {"fid": float("nan")}, "floor.fid is nan, not a number"),
        ("summary.json", ("convergence",), {"a": None}, "convergence.a is None, not a number"),
        ("summary.json", ("primary",), "y" * 4001, "a text of 4,001 characters; at most 4,000"),
        ("summary.json", ("more",), [{}] * 5000, "more than 40 levels or 5,000 values"),
        (
            "summary.json",
            ("transfer", "routes"),
            [{"target": "a", "network": "b"}],
            r"routes\[0\] has no source",
        ),
        (
            "summary.json",
            ("early_bird",),
            {"x": {"seeds": {"0": {"widths": {"g.1": [4]}}}}},
            r"seeds.0.widths.g.1 is a list, not a list of 2",
        ),
        (
            "summary.json",
            ("early_bird",),
            {"x": {"seeds": {"0": {"largest": {"1.5": {}}}}}},
            "largest has the key '1.5', not a step",
        ),
        ("config.json", ("config",), ["run"], "config.json.config is a list, not an object"),
        ("config.json", ("resolved", "task"), 3, "config.json.resolved.task is 3, not a text"),
    ],
)
def test_values_of_another_shape_are_named(
    originals: list[Path],
    tmp_path: Path,
    name: str,
    keys: tuple[str, ...],
    value: Any,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shapes, "MOST_VALUES", 5000)
    folder = put(shutil.copytree(originals[0], tmp_path / "given"), name, *keys, value=value)
    with pytest.raises(DataError, match=rf"{name} is not as a search writes it: .*{said}; run the"):
        read_folder(folder)


def test_keys_that_the_page_does_not_read_are_free(originals: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "given")
    put(folder, "summary.json", "from_tomorrow", value=[{"a": [1, None]}])
    put(folder, "summary.json", "notes", value=None)
    put(folder, "summary.json", "verdicts", "reconstruction_error", "new", value={"b": "c"})
    assert read_folder(folder).summary["from_tomorrow"] == [{"a": [1, None]}]


def test_what_a_search_writes_fits(originals: list[Path]) -> None:
    for folder in originals:
        assert read_folder(folder).rows


@pytest.mark.parametrize(
    ("name", "column", "cell", "said"),
    [
        ("results.csv", "sparsity", "nan", "line 2: sparsity is nan, not from 0 to 1"),
        ("results.csv", "sparsity_all", "1.5", "line 2: sparsity_all is 1.5, not from 0 to 1"),
        ("results.csv", "compress", "-1", "line 2: compress is -1, not from 0 to 1"),
        ("results.csv", "round", "-3", "line 2: round is -3, not from 0"),
        ("results.csv", "value", "1e308", r"line 2: value is 1e\+308, not from"),
        (
            "results.csv",
            "precision",
            "p" * 401,
            "line 2: precision has 401 characters; at most 400",
        ),
        ("costs.csv", "train_flops", "inf", "line 2: train_flops is inf, not from 0"),
        ("costs.csv", "train_seconds", "-1.0", "line 2: train_seconds is -1.0, not from 0"),
    ],
)
def test_cells_that_no_search_measures_are_named(
    originals: list[Path], tmp_path: Path, name: str, column: str, cell: str, said: str
) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "given")
    header, first, *rest = (folder / name).read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index(column)] = cell
    (folder / name).write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    with pytest.raises(DataError, match=f"{name} is not as a search writes it: {said}"):
        read_folder(folder)


def test_a_value_that_is_not_finite_is_of_a_training_that_diverged(
    originals: list[Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "given")
    table = folder / "results.csv"
    lines = table.read_text().splitlines()
    place = lines[0].split(",").index("value")
    cells = lines[1].split(",")
    cells[place] = "nan"
    table.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    assert len(read_folder(folder).rows) == len(lines) - 1


# --- what a folder may not do --------------------------------------------------------------------


def test_large_files_are_not_read(
    originals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "given")
    for name in ("summary.json", "results.csv", "costs.csv"):
        size = (folder / name).stat().st_size
        os.truncate(folder / name, (1 << 26) + 1)  # a hole: no bytes on the disk
        with pytest.raises(DataError, match=f"{name} is not .*: it has 67,108,865 bytes; at most"):
            read_folder(folder)
        os.truncate(folder / name, size)
    monkeypatch.setattr(folders, "MOST_WRITTEN_BYTES", 1000)
    with pytest.raises(DataError, match=r"report.html would have .* bytes, more than 1,000"):
        folders.write_file(folder / "report.html", b"x" * 1001)


def test_brackets_without_end_are_no_fault_of_ours(originals: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "given")
    (folder / "summary.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"cannot read .*summary.json: "):
        read_folder(folder)


def test_cells_name_no_place_elsewhere() -> None:
    key = Drawn("imp", "../../../up", None, "p" * 400, None)
    assert folder_of(key) == "imp-..-..-..-up-r0"
    assert folder_of(key, several_precisions=True) == f"imp-..-..-..-up-r0-{'p' * 21}"
    assert file_name("a\0b\\c") == "a-b-c"
    assert file_name("imp-all-r10") == "imp-all-r10"


def test_pictures_are_taken_from_the_folder_alone(
    originals: list[Path], tmp_path: Path, undrawn: None
) -> None:
    private = shutil.copytree(originals[0] / "samples", tmp_path / "private")
    folder = shutil.copytree(originals[0], tmp_path / "given")
    assert "data:image/" in write_report(folder).read_text()
    shutil.rmtree(folder / "samples")
    (folder / "samples").symlink_to(private)
    assert "data:image/" not in write_report(folder).read_text()
    (folder / "samples").unlink()
    (folder / "samples").mkdir()
    os.mkfifo(folder / "samples" / "ticket-round01.png")  # to open it would wait for ever
    assert "data:image/" not in write_report(folder).read_text()


def test_dollars_in_names_are_no_mathematics(originals: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "given")
    table = folder / "results.csv"
    table.write_text(table.read_text().replace(",mnist,", ",$_{$,"))
    assert [path.name for path in write_figure(folder)] == ["figure.png", "figure.svg"]
    assert "linear-ae on $_{$" in (folder / "figure.svg").read_text()


def test_the_command_refuses_a_damaged_folder(
    originals: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(
        shutil.copytree(originals[0], tmp_path / "given"), "summary.json", "arms", value=[1]
    )
    for command in ("report", "figure"):
        assert cli.main([command, str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "summary.json.arms is a list, not an object" in error
        assert error.count("\n") == 1
    assert not (folder / "report.html").exists()
