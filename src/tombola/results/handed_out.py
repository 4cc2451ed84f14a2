"""How are the files called that a folder hands out, and which of an earlier call are left over?"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from tombola.config.search import CONTROLS, METHODS
from tombola.config.sections import PRECISIONS
from tombola.metrics.verdict.losses import OWN_ARMS
from tombola.plan.cells import Cell
from tombola.store.transfer_tables import TRANSFERRED


def _any(names: Collection[str]) -> str:
    return "|".join(map(re.escape, names))


_KIND = f"(?:{_any(('dense', *OWN_ARMS, *CONTROLS, *TRANSFERRED))})"
_NAMES = {
    "tickets": re.compile(r"seed\d+-round\d{2,}\.safetensors"),
    "models": re.compile(rf"{_KIND}-seed\d+-round\d{{2,}}(?:-draw\d+)?\.safetensors"),
    "samples": re.compile(rf"{_KIND}-round\d{{2,}}\.png"),
}
"""Folder -> the names of the files in it that are written here, and no others."""
_ARM = re.compile(
    rf"(?:{_any(('dense', *METHODS))})-.+-(?:r(?:\d+|None)|c[\d.]+(?:e-\d+)?)"
    rf"(?:-(?:{_any(PRECISIONS)}))?"
)
"""The folder of an arm, as ``Arm.folder`` names it."""


def name_of(kind: str, cell: Cell) -> str:
    """The name of a cell's file of a kind: tickets, models or samples."""
    if kind == "samples":
        return f"{cell.kind}-round{cell.round:02d}.png"
    again = f"-draw{cell.draw}" if (cell.draw or 1) > 1 else ""
    name = f"seed{cell.seed}-round{cell.round:02d}{again}.safetensors"
    return name if kind == "tickets" else f"{cell.kind}-{name}"


def size_of(*paths: Path) -> int | None:
    """Bytes of the first of some files that is there."""
    return next((path.stat().st_size for path in paths if path.exists()), None)


def clear(out: Path, planned: Collection[Path]) -> None:
    """Remove what an earlier call handed out where now no file belongs, and then empty folders.

    A search that was extended has other arms, whose files are in folders, or another best round.
    What is called as no file of ours is stays, wherever it lies, as does a file in one of
    ``planned``, those that the plan has, though this call may not have written it.
    """
    for kind, name in _NAMES.items():
        base = out / kind
        places = [base, *(p for p in base.glob("*") if _ARM.fullmatch(p.name))]
        for place in reversed(places):  # the folders of arms before the one they are in
            if not place.is_dir() or place.is_symlink():
                continue
            for path in sorted(place.iterdir()):
                if path not in planned and name.fullmatch(path.name) and path.is_file():
                    path.unlink()
            with contextlib.suppress(OSError):  # it has other files
                place.rmdir()
