"""Does the figure show the right pictures in the right places?"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

import report_standin as standin
from tombola.errors import ConfigError
from tombola.report import figure
from tombola.report.curves import searches_of
from tombola.report.families import families_of
from tombola.report.figure import write_figure
from tombola.report.folder import read_folder
from tombola.report.page import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return standin.write_run(tmp_path_factory.mktemp("run") / "out", seeds=3)


def grid(out, images=16):
    folder = read_folder(out)
    return figure.Grid(folder, families_of(searches_of(folder.rows))[0], False, images)


def shown(drawn):
    """Texts of the column heads and of the rows, and the number of pictures in each row."""
    rows = {}
    for axes in drawn.axes:
        spec = axes.get_subplotspec()
        rows.setdefault(spec.rowspan.start, []).append(axes)
    heads = [axes.get_title() for axes in rows[0]]
    names = [rows[row][0].get_ylabel() for row in sorted(rows)]
    return heads, names, [sum(bool(axes.images) for axes in rows[row]) for row in sorted(rows)]


def test_rows_are_arms_and_columns_are_sparsities(run):
    heads, names, pictures = shown(grid(run).draw([0.2, 0.9, 0.88]))
    assert heads == ["test images", "dense", "20.0%", "89.3%"]  # the last two are one level
    assert names == ["ticket", "reinit", "shuffle"]
    assert pictures == [4, 4, 4]


def test_six_levels_are_shown_unless_others_are_asked_for(run):
    heads, _, _ = shown(grid(run).draw([]))
    assert len(heads) == 2 + 6
    assert (heads[2], heads[-1]) == ("20.0%", "98.8%")


def test_a_cell_has_the_first_images_four_across(run):
    path = run / "samples" / "ticket-round03.png"
    sheet = np.asarray(Image.open(path).convert("RGB"))
    cell = grid(run, images=10).first_images(path)
    assert cell.shape == (3 * 28, 4 * 28, 3)
    for index in range(12):
        (row, column), (line, place) = divmod(index, 8), divmod(index, 4)
        part = cell[line * 28 : (line + 1) * 28, place * 28 : (place + 1) * 28]
        source = sheet[row * 28 : (row + 1) * 28, column * 28 : (column + 1) * 28]
        assert (part == (source if index < 10 else 255)).all()


def test_an_arm_that_has_no_picture_gets_a_dash(run, tmp_path):
    out = standin.write_run(tmp_path / "out", seeds=1, rounds=3)
    (out / "samples" / "shuffle-round02.png").unlink()
    drawn = grid(out).draw([])
    assert shown(drawn)[2] == [5, 5, 4]
    assert [text.get_text() for axes in drawn.axes for text in axes.texts] == ["-"]


def test_both_files_are_written_the_same_each_time(run):
    paths = write_figure(run, sparsities=[0.5])
    assert [path.name for path in paths] == ["figure.png", "figure.svg"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figure(run, sparsities=[0.5])] == before
    width, height = Image.open(paths[0]).size
    assert width > 600
    assert height > 600
    root = ET.fromstring(before[1])
    texts = {"".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")}
    assert {"linear-ae on mnist", "ticket", "dense", "48.8%"} <= texts
    assert sum(node.tag.endswith("image") for node in root.iter()) == 9
    assert [path.name for path in run.glob(".*")] == []


def test_several_searches_have_a_figure_each(tmp_path):
    out = standin.write_run(
        tmp_path / "out", seeds=1, rounds=2, networks=("all", "decoder"), colour=True
    )
    names = [path.name for path in write_figure(out, images=8)]
    assert names == [
        "figure-imp-all-r10.png",
        "figure-imp-all-r10.svg",
        "figure-imp-decoder-r10.png",
        "figure-imp-decoder-r10.svg",
    ]


def test_columns_are_shares_of_channels_where_searches_differ_in_those_alone(tmp_path):
    (tmp_path / "out").mkdir()
    out = standin.write_channels(tmp_path / "out", compress=(0.8, 0.3), seeds=1, imp_rounds=1)
    heads, names, pictures = shown(grid(out).draw([]))
    assert heads == ["dense", "compress 0.3\n43.5%", "compress 0.8\n92.4%"]
    assert names == ["compact", "random-channels", "thin-flops", "thin-parameters"]
    assert pictures == [3] * 4
    assert shown(grid(out).draw([0.9]))[0] == ["dense", "compress 0.8\n92.4%"]
    names = [path.name for path in write_figure(out)]
    assert names[::2] == ["figure-early-bird-all.png", "figure-imp-all-r10.png"]


@pytest.mark.parametrize("images", [0, 33])
def test_more_images_than_there_are_is_refused(run, images):
    with pytest.raises(ConfigError, match=f"images got {images}; a grid has 32: give 1 to 32"):
        write_figure(run, images=images)


def test_what_cannot_be_drawn_is_said(tmp_path):
    out = standin.write_run(tmp_path / "out", seeds=1, rounds=1)
    config = json.loads((out / "config.json").read_text())
    del config["resolved"]["shape"]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not say how large images are"):
        write_figure(out)
    for path in (out / "samples").glob("*.png"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no pictures of tickets"):
        write_figure(out)
    with pytest.raises(ConfigError, match="is no directory"):
        write_figure(tmp_path / "nowhere")


def test_a_level_that_no_row_is_of_is_left_out(tmp_path):
    """As an earlier search with more levels leaves its pictures in the folder."""
    out = standin.write_run(tmp_path / "out", seeds=1, rounds=3)
    old = out / "samples" / "ticket-round09.png"
    old.write_bytes((out / "samples" / "ticket-round03.png").read_bytes())
    heads, _, _ = shown(grid(out).draw([]))
    assert heads == ["test images", "dense", "20.0%", "36.0%", "48.8%"]
    assert shown(grid(out).draw([0.99]))[0][2:] == ["48.8%"]
    assert "round 9" not in write_report(out).read_text()


def test_a_folder_without_a_search_has_no_figure(tmp_path):
    out = standin.write_run(tmp_path / "out", seeds=1, rounds=2)
    lines = (out / "results.csv").read_text().splitlines()
    dense = [line for line in lines[1:] if ",dense," in line]
    (out / "results.csv").write_text("\n".join([lines[0], *dense, ""]))
    with pytest.raises(ConfigError, match=r"holds dense trainings and no search.*tombola find"):
        write_figure(out)


def test_images_may_be_wider_than_high_and_fewer_than_a_cell_has_room_for(tmp_path):
    out = standin.write_run(tmp_path / "out", seeds=1, rounds=1)
    config = json.loads((out / "config.json").read_text())
    config["resolved"]["shape"] = [1, 4, 6]
    (out / "config.json").write_text(json.dumps(config))
    sheet = np.arange(4 * 48, dtype=np.uint8).reshape(4, 48)
    for path in (out / "samples").glob("*-round01.png"):
        Image.fromarray(sheet).save(path)
    made = grid(out, images=None)
    cell = made.first_images(out / "samples" / "ticket-round01.png")
    assert (made.images, cell.shape) == (8, (8, 24, 3))
    assert (cell[:4, :, 0] == sheet[:, :24]).all()
    assert (cell[4:, :, 0] == sheet[:, 24:]).all()
