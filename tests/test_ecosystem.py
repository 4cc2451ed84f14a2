"""Do the examples with other people's libraries work, and are as few lines added as docs say?"""

from __future__ import annotations

import ast
import csv
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tombola

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "ecosystem.md"
MARK = re.compile(r"#\s+tombola(?:\s+# fmt: skip)?$")
ATTACHED = {
    "plain_dcgan.py": (None, ["--images", "96", "--epochs", "2", "--width", "4"]),
    "pythae_vae.py": ("pythae.models", ["--images", "96", "--epochs", "2"]),
}
"""Script that attaches -> the library that it needs, and its words for a toy size."""
DRAWN = {
    "lightning_gan.py": ("lightning", ["--images", "128", "--epochs", "3", "--width", "8"]),
    "diffusers_ddpm.py": (
        "diffusers",
        ["--images", "64", "--epochs", "3", "--width", "8", "--sampling-steps", "2"],
    ),
}
"""Script that draws -> the same."""
MOST_ADDED = 6
"""Lines that a program needs at most to draw tickets around its training function."""
WANTED = {
    # script -> (networks that are pruned, metric, prunable weights by hand)
    "plain_dcgan.py": (
        "generator discriminator",
        "mean_image",
        16 * (32 * 16 + 16 * 8 + 8 * 4 + 4) + 16 * (4 + 4 * 8 + 8 * 16 + 16),
    ),
    "pythae_vae.py": (
        "encoder decoder",
        "reconstruction_error",
        256 * 512 + 2 * 512 * 8 + 8 * 512 + 512 * 256,
    ),
    "lightning_gan.py": ("generator discriminator", "row_error", 16 * 8 + 2 * 8 * 256 + 8),
    "diffusers_ddpm.py": ("denoiser", "row_error", None),
}


def need(library: str | None) -> None:
    """Skip where a library is not there; a broken one says RuntimeError at import."""
    if library is not None:
        try:
            importlib.import_module(library)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{library} cannot be imported: {error}")


def run(*words: str) -> str:
    """Run Python with words; its output, if all is well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(name: str, out: Path, controls: set[str], rewind: int) -> None:
    """What a search of one round around a script leaves behind."""
    networks, metric, prunable = WANTED[name]
    rows = list(csv.DictReader((out / "results.csv").open()))
    arms = {"dense", "ticket", *controls}
    assert {(row["arm"], row["round"]) for row in rows} == {
        (a, str(int(a != "dense"))) for a in arms
    }
    values = {row["arm"]: float(row["value"]) for row in rows if row["metric"] == metric}
    assert values.keys() == arms
    assert len(set(values.values())) == len(arms)
    ticket = tombola.load(next((out / "tickets").rglob("seed0-round01.safetensors")))
    assert {key.partition(".")[0] for key in ticket.masks} == set(networks.split())
    pool = sum(mask.numel() for mask in ticket.masks.values())
    assert prunable in (None, pool)
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == (pool * 8 + 5) // 10
    assert ticket.manifest["rewind_step"] == rewind
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACHED)
def test_a_script_that_attaches(name, tmp_path):
    library, words = ATTACHED[name]
    need(library)
    script, out = str(ROOT / "examples" / name), str(tmp_path / "out")
    search = ["--rounds", "1", "--rewind", "2it", "--controls", "none", "--out", out]
    run("-m", "tombola", "run", *search, "--", "python", script, *words)
    check(name, tmp_path / "out", set(), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_a_script_that_draws(name, tmp_path):
    library, words = DRAWN[name]
    need(library)
    out = str(tmp_path / "out")
    said = run(str(ROOT / "examples" / name), *words, "--rounds", "1", "--out", out)
    assert "Not enough runs for a verdict on row error" in said
    check(name, tmp_path / "out", {"reinit", "shuffle"}, 5)


@pytest.mark.parametrize("name", WANTED)
def test_the_lines_that_were_added_are_counted(name):
    lines = (ROOT / "examples" / name).read_text("utf-8").splitlines()
    marked = [line for line in lines if MARK.search(line)]
    told = re.search(rf"^\| \[{name}\][^|]*\|[^|]*\|[^|]*\| (\d+) \|", DOCUMENT.read_text(), re.M)
    assert told is not None, f"docs/ecosystem.md has no row of {name}"
    assert int(told[1]) == len(marked)
    if name in DRAWN:
        assert len(marked) <= MOST_ADDED
    # Without them it is a whole program that knows nothing of tombola.
    rest = "\n".join(line for line in lines if not MARK.search(line))
    names = {node.id for node in ast.walk(ast.parse(rest)) if isinstance(node, ast.Name)}
    assert "tombola" not in names
