"""Device, precision, threads, randomness by (seed, purpose, step), and hashes of tensors."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tombola.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp16")


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed from (seed, purpose, step) by SHA-256, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one draw; draws happen on the CPU so that devices agree on them."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, purpose, step))
    return generator


def seed_everything(seed: int, purpose: str, step: int = 0) -> None:
    """Seed torch, NumPy and Python at once, for code that draws from the global generators."""
    value = derive_seed(seed, purpose, step)
    torch.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


@contextlib.contextmanager
def generators_as_found() -> Iterator[None]:
    """The global generators of torch, NumPy and Python go on after it as if nothing had drawn."""
    before = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how numbers are computed."""

    device: torch.device
    precision: str = "fp32"
    threads: int = 1

    @staticmethod
    def open(device: str = "auto", precision: str = "fp32", threads: int = 1) -> Runtime:
        """Check the device, set the thread count of this process and return the runtime.

        ConfigError for a device that is not there or a precision that it does not have.
        """
        chosen = resolve_device(device)
        check_precision(precision, chosen)
        torch.set_num_threads(threads)
        return Runtime(device=chosen, precision=precision, threads=threads)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which losses and samples are computed: a no-op in fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)


def check_precision(precision: str, device: torch.device) -> None:
    """ConfigError for a precision that there is not, or not on a device."""
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU")


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` -> an existing device; ConfigError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:0")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise ConfigError(
                f"device {name!r} is not there ({count} CUDA devices found); "
                "use --device cpu or auto"
            )
    return device


def tensor_hash(tensor: Tensor) -> str:
    """Eight hex digits of a tensor's type, shape and content."""
    flat = tensor.detach().to("cpu").reshape(-1).contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:8]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits of tensors by name."""
    return hashlib.sha256(
        repr(sorted((name, tensor_hash(value)) for name, value in state.items())).encode()
    ).hexdigest()[:16]
