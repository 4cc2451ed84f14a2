"""What does an optimizer know, and how does a later process give it back? Bit for bit, no pickle.

An optimizer keeps what it learns in three places: ``state``, by parameter; its groups, as Prodigy
its step sizes and schedule-free ones their counters; and attributes of its own, among them other
optimizers that it wraps. All are written as tensors and JSON; groups and attributes only where they
differ from what a new optimizer has.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tombola.errors import ConfigError
from tombola.store.tensors import can_store

ELEMENTWISE = frozenset({
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax,
    torch.optim.ASGD, torch.optim.Rprop,
})  # fmt: skip
"""Optimizers whose update of a weight hangs on the gradient of that weight alone."""
_NOT_ITS_OWN = frozenset({"state", "param_groups", "defaults"})
_CONSTANT = (type, torch.dtype, torch.device, nn.Module, np.dtype)
"""Kinds of values that hold nothing learned."""


class _LostError(Exception):
    """A value that cannot be written, in words."""


class Keeping:
    """What one optimizer of a training knows: written down, and taken up again.

    Made when the optimizer is new. ``name``: of its turn. Its learning rates follow ``rate``.
    """

    def __init__(self, name: str, optimizer: Optimizer) -> None:
        self.name, self.optimizer = name, optimizer
        self.leaves: list[Tensor] = [leaf for g in optimizer.param_groups for leaf in g["params"]]
        """Parameters as the state numbers them: group by group."""
        self._numbers = {id(leaf): index for index, leaf in enumerate(self.leaves)}
        if switches(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        self._rates = [group.get("lr") for group in optimizer.param_groups]
        self._factor = 1.0
        self._wrapped = {
            name: Keeping(f"{self.name}/{name}", each)
            for name, each in vars(optimizer).items()
            if isinstance(each, Optimizer)
        }
        try:
            self._new = {key: (value, copied(own)) for key, value, own in self._besides()}
        except _LostError as lost:
            raise self._refused(lost) from None

    def rate(self, factor: float) -> None:
        """Set the learning rates to a share of what they were when it was new."""
        if factor != self._factor:
            self._factor = factor
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                if rate is not None:
                    group["lr"] = rate * factor

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values) by name; ConfigError for what can be neither."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        try:
            for name, value in self._entries():
                scalars[name] = self._encode(name, value, tensors)
                if scalars[name] == {"tensor": name}:  # one alone is found by its own name
                    del scalars[name]
            for key, value, own in self._besides():
                if key not in self._new or not _same((value, own), self._new[key]):
                    scalars[key] = value
                    tensors |= own
            for each in self._wrapped.values():
                more, values = each.state()
                tensors, scalars = tensors | more, scalars | values
        except _LostError as lost:
            raise self._refused(lost) from None
        return tensors, scalars

    def load(
        self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], factor: float
    ) -> None:
        """Take up what :meth:`state` gave; ``factor``: of its learning rates at that step."""
        self.rate(factor)
        state: dict[Any, Any] = self.optimizer.state
        state.clear()
        prefix = f"optimizer.{self.name}."
        for name in dict.fromkeys([*tensors, *scalars]):
            if not name.startswith(prefix) or "#" in name:
                continue
            value = self._decode(scalars.get(name, {"tensor": name}), tensors)
            index, _, key = name.removeprefix(prefix).partition(".")
            if index == "*":
                state[key] = value
            elif key:
                state[self.leaves[int(index)]][key] = self._placed(int(index), key, value)
            else:
                state[self.leaves[int(index)]] = value
        for number, group in enumerate(self.optimizer.param_groups):
            self._load_into(group, f"group.{self.name}.{number}.", tensors, scalars)
        self._load_into(vars(self.optimizer), f"own.{self.name}.", tensors, scalars)
        for each in self._wrapped.values():
            each.load(tensors, scalars, 1.0)

    def _refused(self, lost: _LostError) -> ConfigError:
        return ConfigError(
            f"optimizer {type(self.optimizer).__name__} of turn {self.name!r} keeps {lost}, which "
            "cannot be written, so a training that is cut off could not go on as if it had not "
            "been; choose another optimizer"
        )

    def _load_into(
        self,
        target: dict[str, Any],
        prefix: str,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, Any],
    ) -> None:
        for name, value in scalars.items():
            if name.startswith(prefix):
                target[name.removeprefix(prefix)] = self._decode(value, tensors)

    def _entries(self) -> Iterator[tuple[str, Any]]:
        """Everything in ``state``, by name."""
        state: dict[Any, Any] = self.optimizer.state
        for owner, entry in state.items():
            if not isinstance(owner, Tensor):
                yield f"optimizer.{self.name}.*.{owner}", entry
                continue
            if id(owner) not in self._numbers:
                raise _LostError("state of a tensor that it does not train")
            name = f"optimizer.{self.name}.{self._numbers[id(owner)]}"
            named = isinstance(entry, dict) and all(isinstance(key, str) for key in entry)
            for key, value in entry.items() if named else [("", entry)]:
                yield f"{name}.{key}" if named else name, value

    def _besides(self) -> Iterator[tuple[str, Any, dict[str, Tensor]]]:
        """(name, JSON value, its tensors) of each entry of its groups and attribute of its own."""
        parts: list[tuple[str, Any]] = []
        for number, group in enumerate(self.optimizer.param_groups):
            expected = self._rates[number] if number < len(self._rates) else None
            for key, value in group.items():
                follows = key == "lr" and _is(value, expected, self._factor)
                if key != "params" and not follows and not _is_constant(value):
                    parts.append((f"group.{self.name}.{number}.{key}", value))
        for key, value in vars(self.optimizer).items():
            ours = key in _NOT_ITS_OWN or key.startswith(("_optimizer_", "_zero_grad", "_warned"))
            if not ours and key not in self._wrapped and not _is_constant(value):
                parts.append((f"own.{self.name}.{key}", value))
        for name, value in parts:
            tensors: dict[str, Tensor] = {}
            yield name, self._encode(name, value, tensors), tensors

    def _encode(self, name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
        """A value as JSON; its tensors go by names that begin with its own."""

        def again(each: Any) -> Any:
            return self._encode(name, each, tensors)

        if isinstance(value, int) and value in self._numbers:
            return {"identity": self._numbers[value]}  # of a parameter, as a key of some table
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if np.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor) and id(value) in self._numbers:
            return {"parameter": self._numbers[id(value)]}
        if isinstance(value, torch.Generator):
            value, kind = value.get_state(), "generator"
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            value, kind = torch.from_numpy(np.array(value)), "array"
        else:
            kind = "tensor"
        if type(value) in (Tensor, nn.Parameter) and can_store(value):
            names = (f"{name}#{number}" if number else name for number in itertools.count())
            key = next(each for each in names if each not in tensors)
            tensors[key] = value.detach()
            return {kind: key}
        if isinstance(value, Mapping):
            return {"dict": [[again(key), again(each)] for key, each in value.items()]}
        if type(value) is deque:
            return {"deque": [[again(each) for each in value], value.maxlen]}
        for kind, box in _BOXES.items():
            if type(value) is box:
                found = [again(each) for each in value]
                return found if kind == "list" else {kind: found}
        raise _LostError(f"{name.partition('.')[2]}, a {type(value).__name__}")

    def _decode(self, value: Any, tensors: Mapping[str, Tensor]) -> Any:
        """What :meth:`_encode` made JSON of; tensors beside the first parameter."""
        if isinstance(value, list):
            return [self._decode(each, tensors) for each in value]
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "float":
            return float(inner)
        if kind in ("parameter", "identity"):
            return self.leaves[inner] if kind == "parameter" else id(self.leaves[inner])
        if kind == "dict":
            return {self._decode(k, tensors): self._decode(v, tensors) for k, v in inner}
        if kind == "deque":
            return deque(self._decode(inner[0], tensors), inner[1])
        if kind in _BOXES:
            return _BOXES[kind](self._decode(each, tensors) for each in inner)
        found = tensors[inner]
        if kind == "generator":
            made = torch.Generator()
            made.set_state(found)
            return made
        return found.numpy().copy() if kind == "array" else found.to(self._device(), copy=True)

    def _device(self) -> torch.device:
        return self.leaves[0].device if self.leaves else torch.device("cpu")

    def _placed(self, index: int, key: str, value: Any) -> Any:
        """An entry of a parameter's state where torch's own loading would put it."""
        if not isinstance(value, Tensor):
            return value
        leaf = self.leaves[index]
        if value.shape == leaf.shape and value.dtype == leaf.dtype:
            # In its memory format: fused kernels ask for it.
            return torch.empty_like(leaf, requires_grad=False).copy_(value)
        groups = self.optimizer.param_groups
        group = next(g for g in groups if any(leaf is p for p in g["params"]))
        on_cpu = key == "step" and not (group.get("capturable") or group.get("fused"))
        return value.to("cpu" if on_cpu else leaf.device)


_BOXES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def switches(optimizer: Optimizer) -> bool:
    """Whether an optimizer has other weights for evaluation, which eval() and train() put in."""
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


@contextmanager
def evaluation_weights(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Within the block networks have the weights that optimizers evaluate by; then their own."""
    several = [optimizer for optimizer in optimizers if switches(optimizer)]
    leaves = [p for each in several for group in each.param_groups for p in group["params"]]
    before = [leaf.detach().clone() for leaf in leaves]
    for optimizer in several:
        optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for optimizer in several:
            optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for leaf, value in zip(leaves, before, strict=True):
                leaf.copy_(value)  # what eval() and train() round


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, by the same names."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _is(value: Any, rate: Any, factor: float) -> bool:
    """Whether a learning rate, a number or a tensor, is a share of what it was."""
    return rate is not None and bool(
        (torch.as_tensor(value, device="cpu") == torch.as_tensor(rate * factor, device="cpu")).all()
    )


def _same(a: tuple[Any, Mapping[str, Tensor]], b: tuple[Any, Mapping[str, Tensor]]) -> bool:
    alike = a[0] == b[0] and a[1].keys() == b[1].keys()
    return alike and all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def _is_constant(value: Any) -> bool:
    """Whether an attribute holds nothing that is learned: functions, types, networks, hooks."""
    return callable(value) or isinstance(value, _CONSTANT)
