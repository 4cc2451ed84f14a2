"""Do the examples work as they are? The GAN of one's own, on a folder of one's own images."""

from __future__ import annotations

import csv
import difflib
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import in_process
from tombola.cli import command_line as cli

ROOT = Path(__file__).parents[1]
AS_USERS_DO = True
MY_GAN = ROOT / "examples" / "my_gan.py"


@pytest.fixture
def squares(tmp_path):
    """A folder of 60 grey pictures: a white square somewhere, or a black one."""
    random = np.random.default_rng(0)
    for number in range(60):
        picture = np.full((20, 24), 255 * (number % 2), np.uint8)
        top, left = random.integers(0, 12, 2)
        picture[top : top + 8, left : left + 8] = 255 - picture[0, 0]
        path = tmp_path / "images" / ("white", "black")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "images"


def words(data, out, *more):
    size = shlex.split("--steps 20 --rounds 2 --rate 0.5 --seeds 1 --threads 1 --device cpu")
    return ["find", f"{MY_GAN}:MyGAN", "--data", data, "--out", str(out), *size, *more]


def test_the_gan_has_at_most_40_lines():
    assert len(MY_GAN.read_text("utf-8").splitlines()) <= 40


def test_a_script_of_ones_own_takes_four_lines_and_no_change():
    plain, attached = (
        (ROOT / "examples" / f"dcgan_tutorial{end}.py").read_text("utf-8").splitlines()
        for end in ("", "_attached")
    )
    changes = [line for line in difflib.ndiff(plain, attached) if line[0] in "+-"]
    assert [line[0] for line in changes] == ["+"] * 4
    assert all("tombola" in line or line.strip() == "+" for line in changes)
    assert not any("tombola" in line for line in plain)
    text = (ROOT / "docs" / "scripts.md").read_text("utf-8")
    assert "with 4 lines more and none changed" in text
    for line in changes:
        assert line[2:] in text.splitlines(), line


def check(out):
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {row["task"] for row in rows} == {"MyGAN"}
    assert {(row["arm"], row["round"]) for row in rows} == {
        ("dense", "0"),
        *((arm, level) for arm in ("ticket", "reinit", "shuffle") for level in "12"),
    }
    kinds = {row["metric"].partition("-")[0] for row in rows}
    assert {"fcd", "kcd"} <= kinds
    assert all(np.isfinite(float(row["value"])) for row in rows)
    sparsities = {row["round"]: float(row["sparsity"]) for row in rows}
    # The pool at width 64, latent 32 and 32x32 grey images: generator 32x64 + 64x128 + 128x1024,
    # discriminator 1024x128 + 128. Half and a quarter of it are whole numbers.
    assert sparsities == {"0": 0.0, "1": 0.5, "2": 0.75}
    assert (out / "report.html").stat().st_size > 1000
    assert len(list((out / "tickets").glob("*.safetensors"))) == 2


@pytest.mark.slow
def test_the_gan_runs_on_a_folder_of_images(squares, tmp_path, monkeypatch, capsys):
    # Its judge is trained as a run of the search; its full length would take a minute or more.
    in_process.use(monkeypatch)
    out = tmp_path / "out"
    with in_process.Restored():
        code = cli.main(words(f"folder:{squares}", out, "--set", "judge.steps=10"))
    assert code == 0, capsys.readouterr().err
    check(out)
    metrics = {row["metric"] for row in csv.DictReader((out / "results.csv").open())}
    assert any(name.startswith("fcd-folder-images-") for name in metrics)


@pytest.mark.slow
def test_the_gan_runs_as_a_command_with_workers(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tombola", *words("digits", out, "--workers", "2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    check(out)
