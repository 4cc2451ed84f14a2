"""What does a judge see in images: feature vectors and class probabilities, in batches.

``inception`` is the published TorchScript file; every other judge is a small classifier trained on
the data set at hand. Images of any size and channel count are adapted to the judge's input.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tombola.errors import DataError
from tombola.metrics.judge_files import (
    INCEPTION,
    INCEPTION_SHA256,
    find_inception,
    metric_names,
    read_judge_file,
    shipped_judge,
    weights_sha256,
    write_judge_file,
)
from tombola.models.classifier import IMAGE_SIZE, NETWORKS, Classifier

BATCH_SIZE = 500
"""Images in one pass; fixed, so that equal images give equal bytes."""
INCEPTION_FEATURES = 2048
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Judge:
    """A frozen network that turns images into features and class probabilities."""

    name: str
    """``inception`` or ``<data>-<first 8 hex digits of sha256>``."""
    sha256: str
    """Of Inception's file, of a classifier's weights, or of a user's file, with :NAME behind it."""
    dimensions: int
    metadata: Mapping[str, Any]
    """A classifier's data, classes, width, accuracy and gate; empty for Inception."""
    see: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]
    """uint8 images (N, C, H, W) -> features, and probabilities if the flag is set."""

    @property
    def metrics(self) -> dict[str, str]:
        """Metric names by kind: ``frechet``, ``kernel``, ``error`` (of the latter), ``score``."""
        return metric_names(self.name)

    def features(
        self, images: Tensor, *, probabilities: bool = True
    ) -> tuple[Floats, Floats | None]:
        """uint8 images (N, C, H, W) -> float32 features (N, d) and probabilities (N, classes).

        Without ``probabilities`` the second is None, which saves Inception a second pass; so it is
        of a judge that has none.
        DataError unless the images are uint8 with 1 or 3 channels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"got {images.dtype} images of shape {tuple(images.shape)}; "
                "give uint8 ones of shape (N, 1 or 3, H, W)"
            )
        if not len(images):
            raise DataError("got no images; a judge needs at least 1")
        with torch.no_grad():
            seen = [self.see(batch, probabilities) for batch in torch.split(images, BATCH_SIZE)]
        features = torch.cat([pair[0] for pair in seen]).float().cpu().numpy()
        if not probabilities:
            return features, None
        each = [p for _, p in seen if p is not None]
        return features, torch.cat(each).float().cpu().numpy() if each else None


def adapt(images: Tensor, channels: int, size: int = IMAGE_SIZE) -> Tensor:
    """uint8 images (N, 1 or 3, H, W) -> uint8 (N, channels, size, size).

    28x28 is padded with black to 32x32, other sizes are scaled (antialiased bilinear, rounded);
    colour is averaged, grey repeated. The same rule as for the data sources.
    """
    height, width = images.shape[2:]
    if (images.shape[1], height, width) == (channels, size, size):
        return images
    # float64: the rounding then gives the same bytes on every processor
    values = images.double()
    if images.shape[1] > channels:
        values = values.mean(1, keepdim=True)
    if (height, width) == (28, 28) and size == 32:
        values = F.pad(values, (2, 2, 2, 2))
    elif (height, width) != (size, size):
        values = F.interpolate(values, (size, size), mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1)


def open_judge(data: str, *, path: Path | None = None, device: str = "cpu") -> Judge:
    """The judge of a data source: Inception where present, else ``path``, else the shipped one.

    DataError where none of them exists: then a classifier must be trained first.
    """
    inception = find_inception()
    if inception is not None:
        return open_inception(inception, device=device)
    chosen = path or shipped_judge(data)
    if chosen is None:
        raise DataError(f"no judge ships for {data!r}; train one and give its file")
    return load_judge(chosen, device=device)


def open_inception(
    path: Path, *, sha256: str = INCEPTION_SHA256, device: str | torch.device = "cpu"
) -> Judge:
    """Inception from its TorchScript file, whose bytes are verified before they are opened.

    The module takes uint8 images (N, 3, H, W) of any size and returns 1,008 probabilities, or
    with ``return_features=True`` features (N, 2048). DataError for a wrong hash or no file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the Inception file {path}: {error.strerror}; "
            "set TOMBOLA_INCEPTION to an existing file or unset it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} has SHA-256 {found}, not {sha256}; it was not opened: fetch it again"
        )
    with warnings.catch_warnings():
        # torch.jit.load is deprecated, but the file exists in no other form
        warnings.simplefilter("ignore")
        load: Callable[..., nn.Module] = torch.jit.load
        network = load(io.BytesIO(content), map_location=device).eval()

    def see(images: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        colour = images.expand(-1, 3, -1, -1).to(device)
        features = network(colour, return_features=True)
        if not probabilities:
            return features, None
        # without the output's bias, as in the published inception score
        return features, network(colour, no_output_bias=True)

    return Judge(INCEPTION, sha256, INCEPTION_FEATURES, {}, see)


def classifier_judge(
    model: Classifier, metadata: Mapping[str, Any], *, device: str | torch.device = "cpu"
) -> Judge:
    """A judge from a trained classifier; ``metadata["data"]`` is its data source's short name."""
    network = model.to(device).eval().requires_grad_(False)
    sha256 = weights_sha256(_arrays(network))

    def see(images: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        adapted = adapt(images, network.channels).to(device)
        features = network.features(adapted.float() / 127.5 - 1)
        del probabilities  # they cost nothing here
        return features, network.head(features).softmax(1)

    name = f"{metadata['data']}-{sha256[:8]}"
    return Judge(name, sha256, network.dimensions, dict(metadata), see)


def save_judge(path: Path, model: Classifier, metadata: Mapping[str, Any]) -> str:
    """Write a trained classifier as a judge file and return the SHA-256 of its weights.

    ``metadata`` must name ``data``; channels, classes and width are added from the model.
    """
    weights = _arrays(model)
    shape = {"channels": model.channels, "classes": model.classes, "width": model.width}
    if model.network != "small":
        metadata = {**metadata, "network": model.network}
    sha256 = weights_sha256(weights)
    write_judge_file(path, weights, {**metadata, **shape, "sha256": sha256})
    return sha256


def load_judge(path: Path, *, device: str | torch.device = "cpu") -> Judge:
    """The judge in a file that ``save_judge`` wrote; DataError if it is missing or unsound."""
    weights, metadata = read_judge_file(path)
    shape: list[Any] = [metadata.get(key) for key in ("channels", "classes", "width")]
    limits = (3, 100_000, 256)
    kind = NETWORKS.get(str(metadata.get("network", "small")))
    named = isinstance(metadata.get("data"), str)
    if (
        kind is None
        or not named
        or not all(
            isinstance(value, int) and 1 <= value <= limit
            for value, limit in zip(shape, limits, strict=True)
        )
    ):
        raise DataError(f"{path} is no sound judge file: its metadata {shape}; train it again")
    if weights_sha256(weights) != metadata.get("sha256"):
        raise DataError(f"{path} is no sound judge file: its checksum differs; train it again")
    with torch.device("meta"):
        model = kind(*shape)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise DataError(f"{path} is no sound judge file: {reason}; train it again") from error
    return classifier_judge(model, metadata, device=device)


def _arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: t.detach().cpu().numpy() for name, t in model.state_dict().items()}
