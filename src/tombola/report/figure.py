"""What do the networks make at each sparsity? Rows of arms by columns of sparsities, one picture.

Early-bird searches that differ in compress alone are one picture: a column is a share of channels.

The same latents or test images in every cell, so that a place can be compared along a row and down
a column: the paper's figures 1 and A.6 to A.8, of the first training seed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray
from PIL import Image

from tombola.errors import ConfigError
from tombola.metrics.verdict.sentences import percent
from tombola.report.curves import DENSE, arm_order, label_of, searches_of
from tombola.report.families import Family, families_of, in_tables, levels_at, merged_gallery
from tombola.report.folder import Folder, read_folder, write_file
from tombola.report.pictures import Picture, gallery_of, thinned
from tombola.report.transfer import own_part
from tombola.report.viewers import share_name

COLUMNS = 6
"""Sparsities shown unless others are asked for, evenly over the levels."""
IMAGES = 16
ACROSS = 4
"""Images in a line of a cell."""
DOTS_PER_INCH = 200
_CELL_INCHES = 1.15
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tombola",
    "font.size": 8,
    "text.parse_math": False,
}


def write_figure(
    out: Path, *, images: int | None = None, sparsities: Sequence[float] = ()
) -> list[Path]:
    """Write ``figure.png`` and ``figure.svg`` into a run directory and return their paths.

    With several searches in it one pair each, by the search's name; those that differ in compress
    alone are one. ``images``: how many of each grid a cell shows (none = 16, or as many as there
    are); ``sparsities``: the levels wanted, as fractions in (0, 1), each taken as the
    nearest there is; none = six of them, evenly. ConfigError if there is nothing to show, or less
    than asked.
    """
    folder = own_part(read_folder(Path(out)))
    if all(row.arm == DENSE for row in folder.rows):
        raise ConfigError(
            f"{str(out)!r} holds dense trainings and no search, so there are no levels to show; "
            "give a directory that tombola find wrote"
        )
    families = families_of(searches_of(folder.rows))
    keys = [family.key for family in families]
    several = len({key.precision for key in keys}) > 1
    written = []
    for family in families:
        figure = Grid(folder, family, several, images).draw(sparsities)
        end = f"-{family.folder(several)}" if len(families) > 1 else ""
        title = _title(folder, label_of(family.key, keys))
        figure.suptitle(title, x=0.01, ha="left", parse_math=False)
        for kind in ("png", "svg"):
            path = folder.out / f"figure{end}.{kind}"
            _save(figure, path, kind)
            written.append(path)
    return written


class Grid:
    """The pictures of a search, or of a family, by arm and level; and how many images of each."""

    def __init__(
        self, folder: Folder, family: Family, several: bool, images: int | None = None
    ) -> None:
        found = [gallery_of(folder.out, member, several) for member in family.members]
        gallery = in_tables(merged_gallery(found), family, folder.rows)
        if not gallery.levels:
            raise ConfigError(
                f"{str(folder.out)!r} has no pictures of tickets under samples/; "
                "run the search's command again to write them anew"
            )
        self.size = _size(folder)
        first = gallery.levels[0].pictures[0]
        there = (first.height // self.size[0]) * (first.width // self.size[1])
        images = min(IMAGES, there) if images is None else images
        if not 1 <= images <= there:
            raise ConfigError(f"images got {images}; a grid has {there}: give 1 to {there}")
        self.gallery, self.images, self.family = gallery, images, family
        self.sparsity_at = levels_at(family, folder.rows)

    def draw(self, sparsities: Sequence[float]) -> Figure:
        """Rows of arms; columns: test images if there are any, dense, then the levels."""
        names, arms = self.names(sparsities)
        height = _CELL_INCHES * self.lines / ACROSS * self.size[0] / self.size[1] * len(arms) + 0.55
        height += 0.12 * max(name.count("\n") for name in names)
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(_CELL_INCHES * len(names) + 0.4, height), layout="constrained")
            self.onto(figure, sparsities)
        return figure

    @property
    def lines(self) -> int:
        """Lines of images in a cell."""
        return -(-self.images // ACROSS)

    def names(self, sparsities: Sequence[float]) -> tuple[list[str], list[str]]:
        """What heads the columns, and the arms that are rows."""
        levels = self.choose_levels(sparsities)
        heads = ["test images" if p.arm != DENSE else "dense" for p in self.gallery.fixed]
        arms = {p.arm for level in levels for p in level.pictures}
        return [*heads, *(self.head(level.round) for level in levels)], sorted(arms, key=arm_order)

    def onto(self, figure: FigureBase, sparsities: Sequence[float]) -> None:
        """Put the pictures into a figure, or a part of one."""
        fixed, levels = self.gallery.fixed, self.choose_levels(sparsities)
        names, arms = self.names(sparsities)
        grid = figure.subplots(len(arms), len(names), squeeze=False)
        for row, arm in enumerate(arms):
            cells = [*fixed] + [
                next((p for p in level.pictures if p.arm == arm), None) for level in levels
            ]
            for column, picture in enumerate(cells):
                self.cell(grid[row, column], picture)
                if row == 0:
                    grid[row, column].set_title(names[column], fontsize=8)
            grid[row, 0].set_ylabel(arm)

    def head(self, number: int) -> str:
        """What heads a column: the sparsity, below the share of channels where that tells more."""
        shares = (share_name(self.family, number), percent(self.sparsity_at[number]))
        return "\n".join(filter(None, shares))

    def choose_levels(self, sparsities: Sequence[float]) -> list[Any]:
        """The levels to show, each once, ascending."""
        levels = self.gallery.levels
        if not sparsities:
            return thinned(levels, COLUMNS, ())
        nearest = {
            min(levels, key=lambda level: abs(self.sparsity_at[level.round] - wanted)).round
            for wanted in sparsities
        }
        return [level for level in levels if level.round in nearest]

    def cell(self, axes: Axes, picture: Picture | None) -> None:
        """The first images of a grid, or a dash where an arm has none (it diverged)."""
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if picture is None:
            axes.text(0.5, 0.5, "-", ha="center", va="center", transform=axes.transAxes)
            return
        axes.imshow(self.first_images(picture.path), interpolation="nearest", aspect="equal")

    def first_images(self, path: Path) -> NDArray[np.uint8]:
        """The first images of a grid, four across, as RGB; white where a line is not full."""
        with Image.open(path, formats=("PNG",)) as image:
            sheet = np.asarray(image.convert("RGB"))
        height, width = self.size
        per_line = sheet.shape[1] // width
        cell = np.full((self.lines * height, ACROSS * width, 3), 255, np.uint8)
        for index in range(self.images):
            (row, column), (line, place) = divmod(index, per_line), divmod(index, ACROSS)
            source = sheet[row * height :, column * width :][:height, :width]
            cell[line * height :, place * width :][:height, :width] = source
        return cell


def _size(folder: Folder) -> tuple[int, int]:
    """Height and width of an image, in pixels; ConfigError where config.json does not say."""
    match (folder.config.get("resolved") or {}).get("shape"):
        case [int(), int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise ConfigError(
        f"{folder.out / 'config.json'} does not say how large images are; "
        "run the search's command again to write it anew"
    )


def _title(folder: Folder, label: str) -> str:
    some = folder.rows[0]
    return f"{some.task} on {some.data}" + (f", {label}" if label else "")


def _save(figure: Figure, path: Path, kind: str) -> None:
    """Write the picture whole or not at all; the same figure gives the same bytes."""
    content = io.BytesIO()
    blank: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(_STYLE):
        figure.savefig(content, format=kind, dpi=DOTS_PER_INCH, metadata=blank)
    write_file(path, content.getvalue())
