"""The process that carries out runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tombola

TOY = Path(__file__).parent / "toy_task.py"


def test_denormal_numbers_count_as_zero_in_every_thread_of_a_worker(tmp_path):
    words = [
        "--anyway",
        "--steps",
        "3",
        "--rounds",
        "1",
        "--seeds",
        "1",
        "--rewind",
        "1it",
        "--workers",
        "1",
    ]
    options = [*words, "--threads", "2", "--controls", "none", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "tombola", "find", f"{TOY}:NoDenormals", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tombola.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
