"""Is the README's picture drawn from the kept search that it names, light and dark?"""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import report_standin as standin
from tombola.errors import ConfigError
from tombola.report.headline import write_headline

KEPT = Path(__file__).parents[1] / "docs" / "results" / "linear-ae-mnist"
SVG = "{http://www.w3.org/2000/svg}"


def drawn(path):
    """(Texts, embedded images) of a drawing; where they stand is Matplotlib's."""
    root = ET.parse(path).getroot()
    texts = ["".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")]
    images = [dict(node.attrib) for node in root.iter(f"{SVG}image")]
    return texts, [value for each in images for key, value in each.items() if "href" in key]


def test_the_pictures_of_the_readme_are_drawn_from_the_kept_search(tmp_path):
    out = shutil.copytree(KEPT, tmp_path / "out", ignore=shutil.ignore_patterns("readme-*"))
    paths = write_headline(out)
    assert [path.name for path in paths] == ["readme-light.svg", "readme-dark.svg"]
    for path in paths:
        texts, images = drawn(path)
        assert (texts, images) == drawn(KEPT / path.name)
        assert {"dense", "ticket", "reinit", "shuffle", "margin", "59.0%", "98.8%"} <= {*texts}
        assert len(images) == 2 * 6  # ticket and shuffle: test images, dense, four sparsities
    light, dark = (path.read_text() for path in paths)
    assert "--paper: #fdfdfb" in light
    assert "--paper: #14181b" in dark
    assert re.sub("<style>.*?</style>", "", light) == re.sub("<style>.*?</style>", "", dark)


def test_levels_and_images_may_be_asked_for(tmp_path):
    out = standin.write_run(tmp_path / "out", seeds=3)
    texts, images = drawn(write_headline(out, sparsities=[0.2, 0.9], images=4)[0])
    assert len(images) == 3 * 4
    assert "89.3%" in texts


def test_what_cannot_be_drawn_is_said(tmp_path):
    out = standin.write_run(tmp_path / "out", seeds=3, rounds=2)
    shutil.rmtree(out / "samples")
    with pytest.raises(ConfigError, match="no pictures of tickets"):
        write_headline(out)
    lines = (out / "results.csv").read_text().splitlines()
    (out / "results.csv").write_text(f"{lines[0]}\n")
    with pytest.raises(ConfigError, match="no search with a metric that decides"):
        write_headline(out)
