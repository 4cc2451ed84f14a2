from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import report_standin as standin
from tombola.errors import ConfigError, DataError
from tombola.report.costs import costs_of
from tombola.report.curves import (
    Drawn,
    bracket_of,
    curves_csv,
    curves_of,
    dense_of,
    folder_of,
    label_of,
)
from tombola.report.folder import Folder, ended
from tombola.report.page import write_report
from tombola.report.pictures import embedded, gallery_of, thinned
from tombola.report.plots import Plot, draw, x_of
from tombola.report.tables import (
    collapsed_of,
    events_of,
    levels_of,
    metric_label,
    number,
    spread_of,
    verdict_table,
)
from tombola.store.tables import CostRow, Row, write_costs, write_results

KEY = Drawn("imp", "all", 10, "fp32", None)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SMALL: dict[str, Any] = {"rounds": 3, "rate": 0.4, "seeds": 3, "diverged": False}
TINY: dict[str, Any] = {**SMALL, "rounds": 2, "metrics": 1}


def row(arm: str, level: int, seed: int, value: float, **other: Any) -> Row:
    kept = 0.5**level
    return Row(**{
        "task": "t", "data": "d", "method": "imp", "arm": arm, "networks": "all",
        "rewind_steps": 10, "precision": "fp32", "seed": seed, "round": level,
        "sparsity": 1 - kept, "sparsity_all": 0.9 * (1 - kept), "metric": "fid",
        "value": value, "n": 100, "step": 50,
    } | other)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = standin.write_run(tmp_path_factory.mktemp("report") / "out", **SMALL)
    write_report(out)
    return out


@pytest.fixture
def page(run: Path) -> str:
    return (run / "report.html").read_text()


class Outline(HTMLParser):
    """Tags in order with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_curves_are_means_with_t_intervals_and_the_last_step_counts() -> None:
    rows = [row("dense", 0, seed, value) for seed, value in enumerate((1.0, 2.0, 3.0))]
    rows += [row("ticket", 1, seed, value) for seed, value in enumerate((4.0, 4.0, 7.0))]
    rows += [row("ticket", 1, 0, 99.0, step=40)]
    (dense, ticket) = curves_of(rows)["fid"]
    assert (dense.arm, ticket.arm) == ("dense", "ticket")
    assert ticket.points[0].values == (4.0, 4.0, 7.0)
    assert ticket.points[0].mean == 5.0
    # t(0.975, 2) = 4.302653, sd = 1, n = 3: 2 -+ 2.484138
    assert dense.points[0].bounds == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert dense_of([dense, ticket], KEY) == dense.points[0]


def test_divergence_is_counted_and_never_averaged() -> None:
    rows = [row("ticket", 1, 0, 5.0), row("ticket", 1, 1, 1, metric="diverged", n=None, step=7),
            row("ticket", 2, 0, 6.0), row("ticket", 2, 1, 1, metric="not-run", n=None, step=None),
            row("ticket", 2, 2, float("nan"))]  # fmt: skip
    points = curves_of(rows)["fid"][0].points
    assert [(p.values, p.diverged, p.not_run) for p in points] == [((5.0,), 1, 0), ((6.0,), 1, 1)]
    table = events_of(rows)
    assert table is not None
    assert table.rows == (("ticket", "1", "1", "50.0%", "7", "1"),)
    assert events_of(rows[:1]) is None


def test_a_dense_training_that_diverged_is_told_once_with_all_that_was_lost_by_it() -> None:
    rows = []
    for method in ("imp", "one-shot"):
        rows += [row("dense", 0, 1, 1, metric="diverged", n=None, step=7, method=method)]
        rows += [row(arm, level, 1, 1, metric="not-run", n=None, step=None, method=method)
                 for arm in ("ticket", "reinit") for level in (1, 2, 3)]  # fmt: skip
        rows += [row("ticket", 1, 0, 5.0, method=method)]
    table = events_of(rows)
    assert table is not None
    assert [line[0] for line in table.rows] == ["dense"]
    assert table.rows[0][-1] == "12"


def test_searches_are_told_apart_by_what_differs_only() -> None:
    other = KEY._replace(networks="decoder+encoder", rewind_steps=0)
    assert label_of(KEY, [KEY]) == ""
    assert label_of(other, [KEY, other]) == "pruned: decoder + encoder, rewound to 0"
    assert folder_of(other) == "imp-decoder+encoder-r0"
    assert folder_of(KEY, several_precisions=True) == "imp-all-r10-fp32"
    assert bracket_of({}) == (None, None)
    assert bracket_of({"bracket": [0.5, None]}) == (0.5, None)


def test_the_axis_is_even_in_rounds() -> None:
    places = [x_of(1 - 0.8**level) for level in range(21)]
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 20)
    assert x_of(0.0) == 0.0
    assert x_of(0.99) == pytest.approx(2.0)
    assert x_of(1.0) == 6.0


def test_plot_is_themed_text_svg_with_ids_of_its_own() -> None:
    rows = [row("dense", 0, s, 1.0 + s) for s in range(3)]
    rows += [
        row(arm, 1, s, 1.5 + s, metric="fid") for arm in ("ticket", "a$b<i>") for s in range(3)
    ]
    plot = Plot(metric="fid", label="FID <b>", verdicts={KEY: {
        "bracket": [0.5, None], "margin": 0.2, "dense_mean": 2.0, "better": "lower"}},
        by_all=False)  # fmt: skip
    wide, narrow = (draw(curves_of(rows)["fid"], plot, narrow=slim) for slim in (False, True))
    assert wide.startswith("<svg")
    assert wide.endswith("</svg>")
    assert "a$b&lt;i&gt;" in wide
    assert "<b>" not in wide
    assert "#0102" not in wide.replace("#010205", "")
    assert "var(--series-0)" in wide
    assert "currentColor" in wide
    assert ">margin<" in wide
    assert ">50.0%<" in wide
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (wide, narrow)]
    assert not ids[0] & ids[1]
    linked = set(re.findall(r'href="#([^"]+)"', wide)) | set(re.findall(r"url\(#([^)]+)\)", wide))
    assert linked <= ids[0]
    assert draw(curves_of(rows)["fid"], plot, narrow=False) == wide


def test_plot_data_as_csv() -> None:
    rows = [row("ticket", 1, 0, 4.0), row("ticket", 1, 1, 6.0)]
    header, line = curves_csv(curves_of(rows)["fid"]).splitlines()
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert (cells["arm"], cells["sparsity"], cells["sparsity_all"]) == ("ticket", "0.5", "0.45")
    assert (cells["mean"], cells["seeds"], cells["values"]) == ("5.0", "2", "4.0 6.0")
    assert float(cells["low95"]) == pytest.approx(5 - 12.706205, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345678, "0.01235"), (0.0000973, "0.0000973"), (1e-9, "1e-09"), (123456.0, "123,456"),
     (5, "5"), (None, "-"), (float("nan"), "-"), ("3", "-")],
)  # fmt: skip
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_metric_labels_keep_the_judge() -> None:
    assert metric_label("fcd-mnist-1a2b3c4d") == "Frechet classifier distance (mnist-1a2b3c4d)"
    assert metric_label("fid") == "FID"
    assert metric_label("my_own") == "my own"


def test_verdict_table_ends_in_the_sentence(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    lines = verdict_table(summary).splitlines()
    assert lines[0].split()[:4] == ["metric", "verdict", "matches", "up"]
    assert lines[2].startswith("reconstruction error *")
    assert lines[-1] == summary["verdicts"]["reconstruction_error"]["sentence"]
    assert lines[-2] == ""
    told = "* decides; the other lines are told beside it and decide nothing."
    assert (told in lines) == (len(summary["verdicts"]) > 1)
    assert told in verdict_table({"primary": "a", "verdicts": {"a": {}, "b": {}}}).splitlines()
    assert told not in verdict_table({"primary": "a", "verdicts": {"a": {}}})
    assert all(len(line) <= 100 for line in lines[:-1])
    assert verdict_table({}).endswith("No verdict: no metric of these runs has a direction.")
    hostile = {"primary": "x", "verdicts": {"x": {"state": "a\x1b[31mb", "sentence": "c\x07d"}}}
    assert "\x1b" not in verdict_table(hostile)
    assert verdict_table(hostile).endswith("cd")


def test_verdict_table_of_several_searches_has_one_line_each() -> None:
    found = {"state": "worse", "bracket": [None, 0.2], "seeds": 3, "sentence": "S."}
    summary = {"primary": "fid", "verdicts": {"fid": found},
               "arms": {"imp/all": {"fid": found}, "imp/decoder": {"fid": found}}}  # fmt: skip
    lines = verdict_table(summary).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["imp/all", "imp/decoder"]
    assert lines[-1] == "S."
    lines = verdict_table({**summary, "floor": {"fid": 1.25, "kid": 3.0}}).splitlines()
    assert lines[-3] == "Floor of fid: training images instead of samples get 1.25."


def test_the_floor_is_drawn_for_the_frechet_distance_alone(tmp_path: Path) -> None:
    pages = []
    for floor in ({}, {"reconstruction_error": 2.5}, {"fid": 2.5}, {"fid": 0.25}):
        rows = [row("dense", 0, s, 2.0 + s, metric="fid") for s in range(3)]
        rows += [row("dense", 0, s, 2.0 + s, metric="reconstruction_error") for s in range(3)]
        write_results(tmp_path / "results.csv", rows)
        write_costs(tmp_path / "costs.csv", [])
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "summary.json").write_text(json.dumps({"primary": "fid", "floor": floor}))
        pages.append(write_report(tmp_path).read_text())
    said = "training images get {}: the floor, dotted where it lies within the frame."
    assert [said.format("2.5") in page for page in pages] == [False, False, True, False]
    assert said.format("0.25") in pages[3]
    # In the legend of the drawing for wide screens, and of that for narrow ones; a floor far below
    # the curves would squeeze them, and is told in words alone.
    assert [page.count(">floor<") for page in pages] == [0, 0, 2, 0]


def test_levels_table() -> None:
    rows = [row("dense", 0, s, 2.0) for s in range(3)]
    rows += [row("ticket", 1, s, v) for s, v in enumerate((1.0, 2.0, 3.0))]
    rows += [row("reinit", 1, 0, 9.0), row("reinit", 1, 1, 1, metric="diverged")]
    verdict = {"levels": [{"round": 1, "wins": True, "state": "matches"}]}
    table = levels_of(curves_of(rows)["fid"], KEY, verdict)
    assert table.columns == ("sparsity", "of all parameters", "ticket", "reinit",
                             "ticket against dense")  # fmt: skip
    assert table.rows[0][:3] == ("dense", "0%", "2\u00a0\u00b1\u00a00")
    assert table.rows[1] == ("50.0%", "45.0%", "2\u00a0\u00b1\u00a02.5", "9 (1 diverged)", "wins")


def test_costs_count_a_shared_dense_run_once_and_split_search_from_training() -> None:
    def cost(arm: str, level: int, seed: int, method: str) -> CostRow:
        key = row(arm, level, seed, 0, method=method).as_dict()
        key = {name: key[name] for name in list(key)[:12]}
        return CostRow(**key, train_flops=4e12, train_seconds=10.0 + seed,
                       search_flops=8e12 * level, search_seconds=20.0 * level,
                       nonzero_parameters=1000, ticket_bytes=2500)  # fmt: skip

    searches = [KEY, KEY._replace(method="one-shot")]
    costs = [cost(arm, level, seed, search.method)
             for search in searches for seed in (0, 1)
             for arm, level in (("dense", 0), ("ticket", 1), ("ticket", 2))]  # fmt: skip
    table = costs_of(costs, searches, 2)
    assert table is not None
    assert table.columns[1] == "training, TFLOP"
    assert [cells[0] for cells in table.rows] == ["dense", "ticket, imp", "ticket, one-shot"]
    assert table.rows[0][1:7] == ("4", "0", "4", "10.5", "0", "10.5")
    assert table.rows[1][1:] == ("4", "16", "20", "10.5", "40", "50.5", "1,000", "2.5\u00a0kB")
    assert costs_of([], searches, 2) is None


def test_spread_keeps_training_and_sampling_seeds_apart() -> None:
    rows = [row("dense", 0, s, v) for s, v in enumerate((1.0, 2.0, 3.0))]
    summary = {"sampling_sd": {"fid": 0.25}, "floor": {"fid": 0.125}}
    table = spread_of(curves_of(rows), summary)
    assert table is not None
    trained = "1\u00a0(3\u00a0seeds)"
    assert table.rows == (("FID", "2", trained, "0.25", "0.125", "-", "100"),)
    assert table.note.endswith("the dense mean less it.")
    summary |= {"above_floor": {"fid": 1.875}}
    summary["judged"] = {"reals": 360, "fakes": 1800, "floor": 1200}
    table = spread_of(curves_of(rows), summary)
    assert table is not None
    assert table.rows == (("FID", "2", trained, "0.25", "0.125", "1.875", "100"),)
    assert table.note.endswith(
        "Judged by 360 real images. The floor is of all 1,200 training images, fewer than the "
        "1,800 samples, and so the higher for it."
    )


def test_collapsed_layers_are_named() -> None:
    table = collapsed_of({"imp-all-r10/round02": ["g.0.weight", "g.2.weight"]}, {2: 0.75})
    assert table is not None
    assert table.rows == (("imp-all-r10", "75.0%", "g.0.weight, g.2.weight"),)
    assert collapsed_of({}, {}) is None
    assert collapsed_of(None, {}) is None


def test_levels_are_thinned_evenly_and_keep_the_wanted() -> None:
    levels = [type("L", (), {"round": number})() for number in range(1, 21)]
    assert [v.round for v in thinned(levels, 5, [8])] == [1, 8, 11, 15, 20]
    assert len(thinned(levels, 30, [])) == 20


def test_pictures_fit_the_budget(tmp_path: Path) -> None:
    standin.write_run(tmp_path / "out", colour=True, **SMALL)
    gallery = gallery_of(tmp_path / "out", KEY)
    assert [p.arm for p in gallery.fixed] == ["originals", "dense"]
    assert [[p.arm for p in v.pictures] for v in gallery.levels] == [
        ["ticket", "reinit", "shuffle"]
    ] * 3
    shown, uris, exact = embedded([gallery], [2])
    assert (shown, exact) == ([gallery], True)
    first = base64.b64decode(uris[gallery.fixed[0].path].partition(",")[2])
    assert first == gallery.fixed[0].path.read_bytes()
    shown, uris, exact = embedded([gallery], [2], budget_bytes=130_000)
    assert not exact
    assert sum(map(len, uris.values())) <= 130_000
    assert 2 in [level.round for level in shown[0].levels]
    assert embedded([gallery], [2], budget_bytes=10)[1] == {}


def test_a_broken_picture_is_named_and_left_out(tmp_path: Path) -> None:
    out = standin.write_run(tmp_path / "out", **TINY)
    (out / "samples" / "ticket-round02.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (out / "samples" / "reinit-round02.png").write_text("<script>")
    text = write_report(out).read_text()
    assert "cannot be read: reinit-round02.png, ticket-round02.png" in text


def test_page_says_the_verdict_first_and_holds_everything(run: Path, page: str) -> None:
    sentence = json.loads((run / "summary.json").read_text())["verdicts"]["reconstruction_error"]
    outline = Outline(page)
    words = " ".join(" ".join(outline.words).split())
    assert words.index(sentence["sentence"]) < words.index("Quality against sparsity")
    for needed in ("save no FLOPs", "tombola find linear-ae --data mnist --preset paper --rounds 3",
                   "decoder.0.weight, decoder.2.weight", "No run diverged.", "ab12" * 16,
                   "5f0c" * 10, "2.13.0", "SD over sampling seeds", "Data as CSV"):  # fmt: skip
        assert needed in words, needed
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("h1") == 1
    assert tags.count("svg") == 6  # three metrics, wide and narrow
    images = [attrs for tag, attrs in outline.tags if tag == "img"]
    assert len(images) == 2 + 3 * 3
    assert all(image["alt"] and image["width"] for image in images)
    assert all(tags.count("caption") == tags.count(name) for name in ("table", "thead"))
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert len(page) < 2_000_000


def test_page_reaches_for_nothing_outside(page: str) -> None:
    for _, attrs in Outline(page).tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), attrs
    styles = re.sub(r"data:[^\"')]*", "", page)
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles)


def test_strings_from_files_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    rows = [replace(r, task=evil, data=evil) for r in standin.rows_of(**TINY)]
    out = standin.write_run(tmp_path / "out", **TINY)
    write_results(out / "results.csv", rows)
    summary = json.loads((out / "summary.json").read_text())
    summary["verdicts"]["reconstruction_error"]["sentence"] = evil
    summary["collapsed"] = {f"{evil}/round02": [evil]}
    (out / "summary.json").write_text(json.dumps(summary))
    config = json.loads((out / "config.json").read_text())
    config["command"] = config["versions"]["torch"] = evil
    (out / "config.json").write_text(json.dumps(config))
    page = write_report(out).read_text()
    assert page.count("<script>") == 1
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_several_searches_have_verdicts_plots_and_grids_of_their_own(tmp_path: Path) -> None:
    out = standin.write_run(tmp_path / "out", methods=("imp", "one-shot"),
                            networks=("all", "decoder"), **TINY)  # fmt: skip
    page = write_report(out).read_text()
    words = " ".join(Outline(page).words)
    assert "sparsity, of all parameters" in words
    assert "Verdict by search" in words
    assert page.count('<div class="viewer"') == 4
    assert all(words.count(f"{name}, pruned: decoder") > 3 for name in ("imp", "one-shot"))


def test_a_run_without_tickets_costs_or_samples_has_a_page(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", [row("dense", 0, 0, 3.0)])
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    words = " ".join(Outline(write_report(tmp_path).read_text()).words)
    assert "No verdict: no metric of these runs has a direction." in words
    assert "One training seed: there are no intervals." in words
    assert "No costs were recorded." in words
    write_results(tmp_path / "results.csv", [])
    assert "Nothing was measured." in write_report(tmp_path).read_text()
    write_results(tmp_path / "results.csv", [row("dense", 0, 0, 5, metric="steps")])
    page = write_report(tmp_path).read_text()
    assert "Nothing was measured." in page
    assert "Two kinds of spread" not in page
    lost = [row("ticket", 1, 0, float("nan")), row("dense", 0, 0, 1, metric="diverged", step=3)]
    write_results(tmp_path / "results.csv", lost)
    assert "Runs that diverged" in write_report(tmp_path).read_text()


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere' is no directory; give the directory that"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no config\.json, results\.csv, summary\.json; "):
        write_report(tmp_path)
    standin.write_run(tmp_path / "out", **TINY)
    (tmp_path / "out" / "summary.json").write_text("{broken")
    with pytest.raises(ConfigError, match=r"cannot read .*summary\.json.*write it anew"):
        write_report(tmp_path / "out")
    (tmp_path / "out" / "summary.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list, not an object"):
        write_report(tmp_path / "out")
    (tmp_path / "out" / "summary.json").write_text("{}")
    (tmp_path / "out" / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        write_report(tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = standin.write_run(tmp_path / "out", **TINY)
    (out / "report.html").write_text("the old page")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_report(out)
    assert caught.value.filename == str(out / "report.html")
    assert (out / "report.html").read_text() == "the old page"
    assert not list(out.glob(".*part"))


def test_the_same_files_give_the_same_page(run: Path, page: str) -> None:
    assert write_report(run).read_text() == page


def test_report_needs_no_torch(run: Path) -> None:
    code = "import sys; from tombola.report.page import write_report; import pathlib; " \
           "write_report(pathlib.Path(sys.argv[1])); print('torch' in sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout.strip() == "False"


def chromium(folder: Path, page: Path, *options: str) -> tuple[str, str]:
    """Open a page headless; returns its stdout (the DOM, if asked) and what its console said."""
    assert CHROMIUM is not None
    flags = ("--headless --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
             "--disable-background-networking --disable-component-update --disable-sync "
             "--no-sandbox --enable-logging=stderr --v=0")  # fmt: skip
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120,
                          check=True)  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


PROBE = """
const images = [...document.images], current = document.querySelectorAll(".level.current");
const slider = document.querySelector("input[type=range]");
const output = document.querySelector("output");
const before = output.textContent;
slider.value = 1;
slider.dispatchEvent(new Event("input"));
const shown = [...document.querySelectorAll(".level")].filter(level => level.offsetHeight > 0);
const plots = [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width);
document.body.dataset.probe = JSON.stringify({
  plots: plots.length, drawn: plots[0].querySelectorAll("path").length > 20,
  images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
  current: current.length, before, after: output.textContent, shown: shown.length,
  overflow: document.documentElement.scrollWidth - innerWidth,
});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (.ci/run installs it)")
@pytest.mark.parametrize("size", ["1100,1500", "500,900"])
def test_page_in_a_browser(run: Path, page: str, tmp_path: Path, size: str) -> None:
    picture = tmp_path / "page.png"
    _, console = chromium(tmp_path, run / "report.html", f"--window-size={size}",
                          f"--screenshot={picture}")  # fmt: skip
    assert console == ""
    with Image.open(picture) as image:
        assert image.size == tuple(map(int, size.split(",")))
        colours = image.convert("RGB").getcolors(1_000_000)
    assert colours is not None
    assert len(colours) > 50
    probed = tmp_path / "probed.html"
    allowed = re.sub(r"script-src '[^;]*", "script-src 'unsafe-inline'", page)
    probed.write_text(allowed.replace("</body>", f"<script>{PROBE}</script></body>"))
    dom, console = chromium(tmp_path, probed, f"--window-size={size}", "--dump-dom")
    assert console == ""
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found is not None
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen == {"plots": 3, "drawn": True, "images": 11, "broken": 0, "current": 1,
                    "before": seen["before"], "after": "64.0% sparsity", "shown": 1,
                    "overflow": 0}  # fmt: skip
    assert seen["before"] != seen["after"]


def test_what_a_diverged_training_cost_is_no_cost_of_its_arm() -> None:
    def cost(seed: int, seconds: float) -> CostRow:
        key = row("ticket", 1, seed, 0).as_dict()
        return CostRow(**{name: key[name] for name in list(key)[:12]}, train_seconds=seconds)

    rows = [row("ticket", 1, 0, 5.0), row("ticket", 1, 1, 1, metric="diverged", n=None, step=7)]
    folder = Folder(Path("x"), {}, {}, rows, [cost(0, 100.0), cost(1, 1.0)])
    assert [c.train_seconds for c in ended(folder).costs] == [100.0]
