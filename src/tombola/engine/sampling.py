"""What does ``tombola sample`` do: images of a model file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.config.registry import DATA
from tombola.config.runtime import rng
from tombola.config.sections import DataSection
from tombola.data.batches import normalise, to_uint8
from tombola.data.grid import save_grid
from tombola.data.sources import load_images
from tombola.engine.judging import BATCH
from tombola.engine.models import model_networks
from tombola.errors import ConfigError, escape
from tombola.tickets.ticket import load_model_file

Make = Callable[[Tensor], Tensor]


def sample(
    path: Path,
    n: int,
    out: Path,
    *,
    seed: int = 0,
    task: str | None = None,
    data: str = "",
    data_dir: Path | None = None,
) -> list[Path]:
    """Write ``n`` images of a model file as PNG files and one grid; returns the paths.

    Equal seeds draw equal latents. Autoencoders have no prior: they reconstruct ``n`` images of
    ``data``'s judge split, the first by its hash.
    """
    given, make = _of_model(path, n, seed, task, (data, data_dir))
    with torch.no_grad():
        pictures = torch.cat([to_uint8(make(part)) for part in torch.split(given, BATCH)])
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, picture in enumerate(pictures):
        paths.append(out / f"{index:05d}.png")
        save_grid(paths[-1], picture[None], columns=1)
    save_grid(out / "grid.png", pictures[:64])
    return [*paths, out / "grid.png"]


def _of_model(
    path: Path, n: int, seed: int, task: str | None, source: tuple[str, Path | None]
) -> tuple[Tensor, Make]:
    """(latents, or images to reconstruct; what makes images of them) of a model file."""
    weights, manifest = load_model_file(path)
    built, networks = model_networks(path, weights, manifest, task)
    if built.latent:
        return built.latents(n, rng(seed, "sample")), lambda part: built.sample(networks, part)
    images = _judge_images(path, manifest, n, *source)
    return images, lambda part: built.reconstruct(networks, normalise(part))


def _judge_images(
    path: Path, manifest: Mapping[str, Any], n: int, data: str, data_dir: Path | None
) -> Tensor:
    """The first ``n`` judge images that a model is to reconstruct, uint8 (N, C, H, W)."""
    name = manifest.get("data")
    if not data and name not in DATA.names():
        # Only the caller's words may lead to files: the model's own name for its data does not.
        raise ConfigError(
            f"{path} reconstructs images, and its own ({escape(name)}) have no registered name; "
            "say with --data which to take"
        )
    channels, height, width = (int(v) for v in manifest["shape"])
    shape, white = (channels, height, width), _white_of(manifest)
    images = load_images(data or str(name), shape, data_dir=data_dir, white=white)
    most = len(images.splits["judge"])
    if n > most:
        raise ConfigError(
            f"--n got {n}, but {images.name} has {most} judge images to reconstruct; "
            f"ask for at most {most}"
        )
    return images.first("judge", n)[0]


def _white_of(manifest: Mapping[str, Any]) -> int:
    """The value of white in the images that a model was trained on; 0 = the largest of their type.

    ConfigError for what no config could say.
    """
    match manifest.get("config"):
        case {"data": {"white": int(white)}}:
            return DataSection(white=white).white
    return 0
