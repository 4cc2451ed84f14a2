"""Which sample grids go into the page, and how do they fit? Images as data URIs within a budget."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError, features

from tombola.report.curves import DENSE, Drawn, arm_order, folder_of

BUDGET_BYTES = 1_350_000
"""All images together, as base64: the page stays below 2 MB."""
_NAME = re.compile(r"(?P<arm>.+)-round(?P<round>\d{2,4})\.png")
_QUALITIES = (88, 72, 55, 40)
_MOST_PIXELS = 4_000_000


@dataclass(frozen=True)
class Picture:
    """One grid: where it lies and what it shows."""

    path: Path
    arm: str
    round: int
    width: int
    height: int


@dataclass(frozen=True)
class Level:
    """The grids of one round side by side."""

    round: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """The grids of one search: what stays in view, and what the slider changes."""

    fixed: tuple[Picture, ...]
    """Test images (autoencoders) and the dense network's."""
    levels: tuple[Level, ...]
    unreadable: tuple[str, ...] = field(default=())


def gallery_of(out: Path, search: Drawn, several_precisions: bool = False) -> Gallery:
    """The grids under ``out/samples`` that are of a search; unreadable ones by name."""
    root = out / "samples"
    own = root / folder_of(search, several_precisions)
    own = own if own.is_dir() else root
    found: dict[tuple[str, int], Picture] = {}
    unreadable = []
    for folder in dict.fromkeys((root, own)):
        if folder.is_symlink():  # to pictures elsewhere
            continue
        for path in sorted(folder.glob("*.png")):
            named = _NAME.fullmatch(path.name)
            arm = named["arm"] if named else path.stem
            level = int(named["round"]) if named else 0
            if path.is_symlink() or not path.is_file() or (folder == root != own and level):
                continue
            picture = _open(path, arm, level)
            if picture is None:
                unreadable.append(path.name)
            elif named or arm == "originals":
                found[arm, level] = picture
    fixed = [found[key] for key in (("originals", 0), (DENSE, 0)) if key in found]
    rounds = sorted({level for _, level in found} - {0})
    levels = tuple(
        Level(number, tuple(found[arm, level] for arm, level in sorted(found, key=_order)
                            if level == number))
        for number in rounds
    )  # fmt: skip
    return Gallery(tuple(fixed), levels, tuple(unreadable))


def _order(key: tuple[str, int]) -> tuple[int, str]:
    return arm_order(key[0])


def _open(path: Path, arm: str, level: int) -> Picture | None:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                return None
            image.verify()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return Picture(path, arm, level, width, height)


def thinned(levels: Sequence[Level], keep: int, always: Iterable[int]) -> list[Level]:
    """At most ``keep`` levels, evenly over the list, with the first, the last and some rounds."""
    if len(levels) <= keep:
        return list(levels)
    must = {levels[0].round, levels[-1].round, *always}
    step = (len(levels) - 1) / max(1, keep - 1)
    even = {levels[round(index * step)].round for index in range(keep)}
    chosen = [level for level in levels if level.round in must | even]
    while len(chosen) > max(keep, len(must)):
        inner = [i for i in range(1, len(chosen) - 1) if chosen[i].round not in must]
        gaps = {i: chosen[i + 1].round - chosen[i - 1].round for i in inner}
        del chosen[min(gaps, key=lambda i: gaps[i])]  # the one that is missed least
    return chosen


def embedded(
    galleries: Sequence[Gallery], always: Iterable[int], budget_bytes: int = BUDGET_BYTES
) -> tuple[list[Gallery], dict[Path, str], bool]:
    """Galleries as they fit, their images as data URIs, and whether they are as exact as the files.

    First the files as they are; then WebP of falling quality; then fewer levels. ``always``: rounds
    that are kept.
    """
    must = set(always)
    made: dict[tuple[Path, int | None], str] = {}
    exact = _encoded(galleries, None, made)
    if _size(exact) <= budget_bytes:
        return list(galleries), exact, True
    for keep in (10_000, 12, 8, 5, 3):
        fewer = [
            Gallery(g.fixed, tuple(thinned(g.levels, keep, must)), g.unreadable) for g in galleries
        ]
        for quality in _QUALITIES:
            uris = _encoded(fewer, quality, made)
            if _size(uris) <= budget_bytes:
                return fewer, uris, False
    return [Gallery((), (), g.unreadable) for g in galleries], {}, False


def _size(uris: dict[Path, str]) -> int:
    return sum(map(len, uris.values()))


def _encoded(
    galleries: Sequence[Gallery], quality: int | None, made: dict[tuple[Path, int | None], str]
) -> dict[Path, str]:
    """Path -> data URI of every picture; ``made`` keeps them so that none is encoded twice."""
    pictures = [picture for g in galleries for level in g.levels for picture in level.pictures]
    paths = {picture.path for g in galleries for picture in (*g.fixed, *pictures)}
    for path in paths:
        if (path, quality) not in made:
            made[path, quality] = _uri(path, quality)
    return {path: made[path, quality] for path in paths}


def _uri(path: Path, quality: int | None) -> str:
    if quality is None:
        return data_uri("image/png", path.read_bytes())
    kind = "webp" if features.check("webp") else "jpeg"
    packed = io.BytesIO()
    with Image.open(path, formats=("PNG",)) as image:
        image.convert("RGB").save(packed, kind, quality=quality)
    return data_uri(f"image/{kind}", packed.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as a data URI in base64."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
