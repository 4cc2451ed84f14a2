"""Where was it made? Versions, processor and source tree: recorded, not part of a run's name."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

from tombola.config.version import VERSION


def versions() -> dict[str, str]:
    """Versions and machine."""
    return {
        "tombola": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
    }


def own_source() -> dict[str, str]:
    """The environment in which another Python finds this Tombola too.

    A source tree that it is run from, rather than installed, goes first on the path.
    """
    place = Path(__file__).resolve().parents[2]
    if place.name in ("site-packages", "dist-packages"):
        return {}
    paths = [str(place), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


@functools.cache  # config.json is written several times, and git may be slow once
def git_commit() -> str | None:
    """The commit of the source tree that Tombola runs from, if it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
