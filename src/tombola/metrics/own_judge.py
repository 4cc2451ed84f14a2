"""A feature network of the user's own as judge: opened, tried before anything trains, and held to.

``path/to/file.py:NAME`` is a function that takes images, an ``nn.Module``, or a class or function
that takes nothing and returns one of these. It is given images (N, C, H, W) as float32 in [-1, 1],
C and size as the task makes them, and returns features (N, D), or features and logits (N, K).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tombola.config.registry import FEATURES, code_sha256, split_file_spec
from tombola.config.runtime import state_hash
from tombola.config.values import content_hash
from tombola.errors import ConfigError, UserError
from tombola.metrics.features import Judge

TRIED = 8
"""Images on which a network is tried before anything else is done."""


def own_judge(
    spec: str, dimensions: int, *, sha256: str = "", device: str | torch.device = "cpu"
) -> Judge:
    """The judge behind ``path/to/file.py:NAME``, whose features are of so many dimensions.

    Its name, and so that of its metrics, has its hash: fcd-<NAME>-<first 8 digits>. ConfigError for
    a file that cannot be run, for another hash than ``sha256`` if that is given, and later for
    features that are not as they must be.
    """
    network = _network(spec, device)
    name, found = split_file_spec(spec)[1], _sha256(spec, network)
    if sha256 not in ("", found):
        raise _bad(
            spec,
            "is not the one that was tried before the search: its file was edited since, or its "
            "weights are drawn without a seed",
        )
    sha256 = found

    def see(images: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        features, logits = _called(spec, network, images, device)
        if features.shape[1] != dimensions:
            raise _bad(
                spec, f"gave features of {features.shape[1]} dimensions, before {dimensions}"
            )
        return features, None if logits is None or not probabilities else logits.softmax(1)

    return Judge(f"{name}-{sha256[:8]}", f"{sha256}:{name}", dimensions, {}, see)


@torch.no_grad()
def try_own_judge(spec: str, images: Tensor) -> dict[str, Any]:
    """What a node's config says of a judge, once it has passed on a few uint8 images (N, C, H, W).

    ConfigError for what is no (N, D) of finite numbers, for logits that are none, and for features
    of an image that change from call to call or with what is beside it.
    """
    network, images = _network(spec, "cpu"), images[:TRIED]
    features, _ = _called(spec, network, images, "cpu")
    again, _ = _called(spec, network, images, "cpu")
    alone, _ = _called(spec, network, images[:1], "cpu")
    if not torch.equal(features, again):
        raise _bad(spec, "gave other features for the same images; leave chance out of it")
    if not torch.allclose(features[:1], alone, rtol=1e-3, atol=1e-3 * float(features.abs().max())):
        raise _bad(
            spec, "gave an image other features when it stood alone; no statistics of the batch"
        )
    name, sha256 = split_file_spec(spec)[1], _sha256(spec, network)
    return {"source": "file", "name": name, "sha256": sha256, "dimensions": features.shape[1]}


def _sha256(spec: str, network: Callable[[Tensor], Any]) -> str:
    """What tells a judge from any other: its file's hash; of a module with tensors, theirs too."""
    sha256 = code_sha256(split_file_spec(spec)[0])
    if not isinstance(network, nn.Module):
        return sha256
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return content_hash([sha256, state_hash(tensors)]) if tensors else sha256


def _network(spec: str, device: str | torch.device) -> Callable[[Tensor], Any]:
    """What a spec names, made if it is a maker; a module in eval mode, frozen, on the device."""
    made = FEATURES.load(spec)
    if not isinstance(made, nn.Module) and callable(made) and _takes_nothing(made):
        try:
            made = made()
        except UserError:
            raise
        except Exception as error:
            raise _failed(spec, error) from error
    if isinstance(made, nn.Module):
        made = made.to(device).eval().requires_grad_(False)
    if not callable(made):
        raise _bad(spec, f"is a {type(made).__name__}, which cannot be called")
    return made  # type: ignore[no-any-return]


def _takes_nothing(made: Callable[..., Any]) -> bool:
    """Whether a callable makes something, rather than taking images."""
    try:
        inspect.signature(made).bind()
    except TypeError:
        return False
    except ValueError:  # a callable of C, without a signature
        return False
    return True


def _called(
    spec: str, network: Callable[[Tensor], Any], images: Tensor, device: str | torch.device
) -> tuple[Tensor, Tensor | None]:
    """Features, and logits if there are any, of uint8 images; ConfigError for what is neither."""
    count = len(images)
    try:
        result = network(images.to(device).float() / 127.5 - 1)
    except UserError:
        raise
    except Exception as error:
        raise _failed(spec, error) from error
    pair = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    features, logits = pair
    for what, value in (("features", features), ("logits", logits)):
        if what == "logits" and value is None:
            continue
        if not isinstance(value, Tensor):
            raise _bad(spec, f"gave a {type(value).__name__} as {what}; return a tensor")
        if value.ndim != 2 or len(value) != count or not value.shape[1]:
            raise _bad(
                spec,
                f"gave {what} of shape {tuple(value.shape)} for {count} images; "
                f"return ({count}, how many)",
            )
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise _bad(spec, f"gave {what} that are not finite floating-point numbers")
    return features, logits


def _failed(spec: str, error: Exception) -> ConfigError:
    first = (str(error).strip() or "no message").splitlines()[0]
    return _bad(spec, f"failed: {type(error).__name__}: {first}")


def _bad(spec: str, what: str) -> ConfigError:
    return ConfigError(
        f"the feature network {spec} {what}; it is given images (N, C, H, W) in [-1, 1] and "
        "returns features (N, D), or features and logits: mend it and run again"
    )
