"""What does ``tombola export`` do: a model file's generator or decoder alone, for other tools."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tombola.config.atomic import write_atomic
from tombola.config.registry import file_sha256
from tombola.config.runtime import rng
from tombola.engine.models import model_networks
from tombola.errors import ConfigError, escape
from tombola.tasks.base import Shape, Task
from tombola.tickets.export_facts import Facts, need, target
from tombola.tickets.export_write import quiet, to_onnx, to_torch_export, traced
from tombola.tickets.ticket import load_model_file

TOLERANCE = 1e-4
"""How much an image in [-1, 1] may differ from PyTorch's: an 80th of a grey level. Rounding alone
gives about 1e-6; another weight, layer or statistic gives far more."""
SILENT = 4
"""onnxruntime's severity of what is fatal: the rest comes as an exception, not on stderr."""
Network = Callable[[Tensor], Tensor]
BATCHES = (1, 2, 7)
"""Numbers of images that the check asks for: one that was fixed while tracing shows."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: Path
    to: str
    bytes: int
    largest_difference: float
    """From PyTorch's images in [-1, 1], over the check's latents."""
    tolerance: float = TOLERANCE


def export(
    path: str | Path,
    to: str,
    out: str | Path | None = None,
    task: str | type[Task] | None = None,
) -> Exported:
    """Write the generator or decoder of a model file as ``onnx`` or ``torch-export``.

    It takes latents (N, latent), or codes for an autoencoder, and gives images (N, C, H, W) in
    [-1, 1], both float32, N free. ``out``: default beside the model file. What was made is loaded
    again and held against PyTorch before it is written, whole or not at all. UserError for a file
    that is no sound model, or a network that the format cannot hold within ``TOLERANCE``.
    """
    weights, manifest = load_model_file(path)
    place = target(path, to, out)
    built, networks = model_networks(path, weights, manifest, task)
    channels, height, width = (int(side) for side in manifest["shape"])
    network, role, draw = _alone(path, built, networks, (channels, height, width))
    facts = Facts(
        task=str(manifest.get("task")),
        role=role,
        shape=(channels, height, width),
        latent=built.latent,
        input=tuple(draw(2).shape[1:]),
        prior="normal" if type(built).latents is Task.latents else "task",
        options={name: getattr(built, name) for name in built.options()},
        source_sha256=file_sha256(Path(path)),
        created_with=_versions(manifest),
    )
    with quiet():
        blob, difference = _made(path, network, facts, to, draw)
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"{escape(path, 400)} as {to} differs from PyTorch by {difference:.3g} (images in "
            f"[-1, 1]), more than {TOLERANCE:g}, so nothing was written; take the other --to"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, blob)
    return Exported(place, to, len(blob), difference)


def _made(
    path: str | Path, network: nn.Module, facts: Facts, to: str, draw: Callable[[int], Tensor]
) -> tuple[bytes, float]:
    """(the bytes of the file, the largest difference of what they make from PyTorch's images)."""
    make = to_onnx if to == "onnx" else to_torch_export
    try:
        blob = make(traced(network, draw(2)), facts)
        return blob, _largest_difference(network, _load(to, blob), draw)
    except ConfigError:
        raise
    except Exception as error:  # an operator that the format lacks, a batch that was fixed, ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{escape(path, 400)} cannot be exported to {to} ({escape(reason)}), so nothing was "
            "written; take the other --to"
        ) from error


class _Sampler(nn.Module):
    """Latents -> images, by a task's own ``sample`` and the networks that it uses."""

    def __init__(self, task: Task, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.task, self.networks = task, nn.ModuleDict(dict(networks))

    def forward(self, latents: Tensor) -> Tensor:
        """(N, latent) -> (N, C, H, W) in [-1, 1]."""
        return self.task.sample(dict(self.networks.items()), latents)


def _alone(
    path: str | Path, task: Task, networks: dict[str, nn.Module], shape: Shape
) -> tuple[nn.Module, str, Callable[[int], Tensor]]:
    """(what makes images, its role, n -> n of its inputs): the other networks are left behind."""
    if task.family == "diffusion":
        raise ConfigError(
            f"{escape(path, 400)} is of a diffusion, which calls its network again and again to "
            "make an image: a file of one call cannot; make images with tombola sample, or take "
            "the network from tombola.load_model"
        )
    for network in networks.values():
        network.requires_grad_(False)
    if task.latent:

        def latents(n: int) -> Tensor:
            return task.latents(n, rng(0, "export", n))

        used = _used(networks, lambda: task.sample(networks, latents(2)))
        roles = [task.role(name) for name in used]
        role = "generator" if "generator" in roles else "decoder"
        return _Sampler(task, {name: networks[name] for name in used}), role, latents
    by_role = {task.role(name): network for name, network in networks.items()}
    decoder = by_role.get("decoder", by_role.get("generator"))
    if decoder is None or "encoder" not in by_role:
        raise ConfigError(
            f"{escape(path, 400)} has networks {escape(', '.join(networks))}, none of which is a "
            "decoder with an encoder; say which is in the task's roles"
        )
    with torch.no_grad():
        code = by_role["encoder"](torch.zeros(1, *shape, device="cpu"))
    if not isinstance(code, Tensor):
        raise ConfigError(f"the encoder of {escape(path, 400)} gives no one tensor as its code")
    sizes = code.shape[1:]
    return (
        decoder,
        "decoder",
        lambda n: torch.randn(n, *sizes, generator=rng(0, "export", n), device="cpu"),
    )


def _used(networks: Mapping[str, nn.Module], act: Callable[[], Tensor]) -> list[str]:
    """The names of the networks that run while something is done, in their order."""
    used: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: used.add(name)

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, network in networks.items()
        for module in network.modules()
    ]
    try:
        with torch.no_grad():
            act()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in networks if name in used]


def _load(to: str, blob: bytes) -> Network:
    """The network in bytes just made, as other tools read them: never those of another's file."""
    if to == "torch-export":
        return cast(Network, torch.export.load(io.BytesIO(blob)).module())
    (onnxruntime,) = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {given.name: inputs.numpy()})[0])


def _largest_difference(network: nn.Module, again: Network, draw: Callable[[int], Tensor]) -> float:
    """Over all values of the images of several batches; NaN if one of them is not a number."""
    largest = 0.0
    with torch.no_grad():
        for n in BATCHES:
            inputs = draw(n)
            wanted, images = network(inputs), again(inputs)
            if wanted.shape != images.shape:
                return math.nan
            part = (wanted - images).abs().max().item()
            largest = part if math.isnan(part) else max(largest, part)
            if math.isnan(largest):
                break
    return largest


def _versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Who made the model file, as it says, and the torch of the export."""
    made = manifest.get("created_with")
    stated = {str(k): str(v) for k, v in made.items()} if isinstance(made, Mapping) else {}
    return {**stated, "exported_with_torch": str(torch.__version__)}
