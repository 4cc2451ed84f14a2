"""What decides what a function does? Its code, what is bound to it, and what it reads.

Taken in: arguments that are bound, cells, a method's object, globals and the functions among them,
down to plain values and contents, and what code asks of the command line and the environment; of
libraries only names, as their versions are recorded and do not name a search. What has no value
that can be told again (an open file, a generator) is opaque: whoever asks must not take it for the
same.
"""

from __future__ import annotations

import builtins
import enum
import functools
import importlib.util
import os
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tombola.config.registry import code_sha256, is_library
from tombola.config.runtime import tensor_hash
from tombola.loops.bytecode import (
    asked_of_process,
    code_word,
    imports_of,
    names_read,
    short_hash,
)

OPAQUE = "?"
"""Stands first in what is told of a thing that cannot be told again."""
MOST, DEPTH = 200_000, 60
"""Values that are looked at, and how deep; beyond it a thing is opaque."""
MOST_KEYS = 100
"""Keys of a dict that are told one by one."""
Told = Mapping[str, Any]
"""Path, such as ``train.self.lr``, -> a number, or a word for a value with a hash."""
_PLAIN = (bool, int, float, type(None))
_METHODS = (types.FunctionType, property, staticmethod, classmethod)
_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_ANYTHING = ("globals", "eval", "exec")
"""Builtins whose reading is not told by the code that calls them."""


def captured(roots: Mapping[str, Any], known: Mapping[int, str]) -> dict[str, Any]:
    """What decides what each root does, by path below its name.

    ``known``: id of an object -> what it is called where it is met; it is not looked into.
    """
    walk = _Walk(known)
    for name, value in roots.items():
        walk.take(name, value)
    return walk.told


def structure(network: nn.Module) -> dict[str, Any]:
    """The classes of a network's modules as ``code``, and all they hold but tensors' values."""
    tensors = [*network.parameters(), *network.buffers()]
    walk = _Walk({id(tensor): f"{tuple(tensor.shape)}" for tensor in tensors})
    for name, module in network.named_modules():
        walk.take(f"class {name}", type(module))
    code, walk.told = walk.told, {}
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules", "training"):
                walk.take(f"{name}.{key}", value)
    return {"code": _fold(code), "attributes": _fold(walk.told)}


def opaque(told: Told) -> list[str]:
    """Paths of what cannot be told again, with its type."""
    return [f"{path} ({value[1:].strip()})" for path, value in told.items() if _is_opaque(value)]


def changed(before: Told, after: Told) -> set[str]:
    """Paths of what is another now, or new; of what is new the first part of the path that is."""
    found = {path for path in before if path in after and before[path] != after[path]}
    parts = {path[:end] for path in before for end in _ends(path)}
    for path in after.keys() - before.keys():
        found.add(next((path[:end] for end in _ends(path) if path[:end] not in parts), path))
    return found


def below(path: str, places: frozenset[str] | set[str]) -> bool:
    """Whether a path is one of some places, or lies below one."""
    return any(path[:end] in places for end in _ends(path))


def _ends(path: str) -> Iterator[int]:
    yield from (at for at, letter in enumerate(path) if letter == ".")
    yield len(path)


def _is_opaque(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(OPAQUE)


def _fold(told: Told) -> str:
    """Many values as one; opaque if one of them is."""
    odd = next((value for value in told.values() if _is_opaque(value)), None)
    return odd or short_hash(repr(sorted(told.items())))


class _Walk:
    """A walk through objects, each looked into once."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self.told: dict[str, Any] = {}
        self._known = known
        self._seen: dict[int, str] = {}
        self._places: set[str] = set()
        self._kept: list[Any] = []
        """What was looked into: an id is of one object only while that lives."""
        self._depth = self._count = 0

    def take(self, path: str, value: Any) -> None:
        """Take in a value, and all that it is made of."""
        self._count += 1
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            self.told[path] = value if type(value) in (int, type(None)) else repr(value)
        elif id(value) in self._known:
            self.told[path] = self._known[id(value)]
        elif (word := self._word(value)) is not None:
            self.told[path] = word
        elif id(value) in self._seen:
            self.told[path] = f"as {self._seen[id(value)]}"
        elif self._depth > DEPTH or self._count > MOST:
            self.told[path] = f"{OPAQUE} too much to look through"
        else:
            if not isinstance(value, tuple | frozenset):  # of which equal ones may be one
                self._seen[id(value)] = path
            self._kept.append(value)
            self._depth += 1
            try:
                self._look(path, value)
            except (RecursionError, MemoryError):
                raise
            except Exception:  # as above
                self.told[path] = f"{OPAQUE} {type(value).__name__}"
            finally:
                self._depth -= 1

    def _word(self, value: Any) -> str | None:
        try:
            return _word(value)
        except Exception:  # objects may do anything when they are asked what they are
            return f"{OPAQUE} {type(value).__name__}"

    def _look(self, path: str, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, types.MethodType):
            self.take(path, value.__func__)
            self.take(f"{path}.self", value.__self__)
        elif isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            self.told[path] = f"function {value.__qualname__}"
            if isinstance(value.__self__, _CONTAINERS):
                self.take(f"{path}.self", value.__self__)
        elif isinstance(value, functools.partial):
            self.take(path, value.func)
            for place, each in enumerate(value.args):
                self.take(f"{path}.{place}", each)
            self._items(path, value.keywords)
        elif isinstance(value, type):
            self._class(path, value)
        elif isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            self.told[path] = f"slot {value.__name__}"
        elif isinstance(value, _METHODS):
            parts = [getattr(value, name, None) for name in ("fget", "fset", "fdel", "__func__")]
            for place, part in enumerate(part for part in parts if part is not None):
                self.take(f"{path}.{place}", part)
        elif type(value) in _CONTAINERS:
            self._container(path, value)
        elif isinstance(value, nn.Module):
            self._folded(path, "module", lambda walk: walk._object("of", value))
        elif isinstance(value, types.ModuleType):
            self._module(path, value)
        else:
            self._object(path, value)

    def _items(self, path: str, items: Mapping[str, Any]) -> None:
        for key, each in items.items():
            self.take(f"{path}.{key}", each)

    def _folded(self, path: str, word: str, take: Any) -> None:
        """Tell of many values as of one."""
        outer, self.told = self.told, {}
        try:
            take(self)
            inner = self.told
        finally:
            self.told = outer
        folded = _fold(inner)
        self.told[path] = folded if _is_opaque(folded) else f"{word} {folded}"

    def _container(self, path: str, value: Any) -> None:
        named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        if named and len(value) <= MOST_KEYS:
            self._items(path, value)
            return
        word = f"{type(value).__name__} of {len(value)}"
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)
        if isinstance(value, dict):
            value = [part for pair in value.items() for part in pair]
        if len(value) <= 6 and all(isinstance(each, bool | int | float) for each in value):
            self.told[path] = repr(value)
            return

        def each_of(walk: _Walk) -> None:
            for place, each in enumerate(value):
                walk.take(str(place), each)

        self._folded(path, word, each_of)

    def _function(self, path: str, function: types.FunctionType) -> None:
        own = not is_library(function.__code__.co_filename)
        if own:
            self.told[f"{path}.code"] = code_word(function)
            self._reads(path, function)
            for place, each in enumerate(function.__defaults__ or ()):
                self.take(f"{path}.default{place}", each)
            self._items(path, function.__kwdefaults__ or {})
        else:
            self.told[path] = f"function {function.__module__}.{function.__qualname__}"
        # What a library wraps, as torch.no_grad does, is in its cells.
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                self.take(f"{path}.{name}", cell.cell_contents)
            except ValueError:
                self.told[f"{path}.{name}"] = "not there yet"

    def _reads(self, path: str, function: types.FunctionType) -> None:
        """The globals that a function reads, or a function within it does."""
        for name, attributes in names_read(function.__code__):
            if name in _ANYTHING and name not in function.__globals__:
                self.told[f"{path}.{name}()"] = f"{OPAQUE} reads what it likes"
            elif name in function.__globals__:
                place, value = _read(f"{path}.{name}", function.__globals__[name], attributes)
                if place not in self._places:  # whose attributes are read is read once
                    self._places.add(place)
                    self.take(place, value)
            elif not hasattr(builtins, name):
                self.told[f"{path}.{name}"] = "not there yet"
        for name in imports_of(function.__code__):
            self.told[f"{path}.import {name}"] = _module_word(name)
        for name, value in asked_of_process(function.__code__).items():
            self.take(f"{path}.{name}", value)

    def _module(self, path: str, module: types.ModuleType) -> None:
        """A module that is handed on whole: its code, and the plain values that it has now."""
        self.told[path] = _module_word(module.__name__)
        if not _of_library(module):
            for name, value in sorted(vars(module).items()):
                if isinstance(value, (*_PLAIN, str)) and not name.startswith("__"):
                    self.take(f"{path}.{name}", value)

    def _class(self, path: str, kind: type) -> None:
        module = sys.modules.get(kind.__module__)
        if kind.__module__ != "__main__" and module is not None and _of_library(module):
            self.told[path] = f"class {kind.__module__}.{kind.__qualname__}"
            return
        self.told[path] = f"class {kind.__qualname__}"
        for name, value in sorted(vars(kind).items()):
            if not name.startswith(("__", "_abc_")) or isinstance(value, _METHODS):
                self.take(f"{path}.{name}", value)
        for place, base in enumerate(kind.__bases__):
            if base is not object:
                self.take(f"{path}.base{place}", base)

    def _object(self, path: str, value: Any) -> None:
        """Any other object: its class, and what a copy of it is made from."""
        made = value.__reduce_ex__(4)
        if isinstance(made, str):
            self.told[path] = f"{type(value).__name__} {made}"
            if hasattr(value, "__wrapped__"):  # functools.cache
                self.take(f"{path}.wrapped", value.__wrapped__)
            return
        _, arguments, state, items, pairs = (*made, None, None, None)[:5]
        self.take(f"{path}.class", type(value))
        for place, each in enumerate(each for each in arguments if each is not type(value)):
            self.take(f"{path}.{place}", each)
        # Slots come as a second dict.
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict) and all(isinstance(key, str) for key in part):
                self._items(path, part)
            elif part is not None:
                self.take(f"{path}.state", part)
        for name, more in (("items", items), ("pairs", pairs)):
            if more is not None:
                self.take(f"{path}.{name}", list(more))


def _read(path: str, value: Any, attributes: tuple[str, ...]) -> tuple[str, Any]:
    """A global and its path; of a module of the user's, what is read of it."""
    while isinstance(value, types.ModuleType) and attributes and not _of_library(value):
        path, value = f"{path}.{attributes[0]}", getattr(value, attributes[0], None)
        attributes = attributes[1:]
    return path, value


def _word(value: Any) -> str | None:
    """A value in a word; None for what is made of others."""
    name = type(value).__name__
    if isinstance(value, str | bytes):
        return f"{name} {short_hash(value)}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, PurePath):
        return f"path {short_hash(str(value))}"
    if isinstance(value, torch.dtype | torch.device | torch.Size | complex):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{name} {tensor_hash(value)}"
    if isinstance(value, torch.Generator):
        return f"{name} {tensor_hash(value.get_state())}"
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        array = np.ascontiguousarray(value)
        return f"{name} {array.dtype} {array.shape} {short_hash(array.tobytes())}"
    return "environ" if value is os.environ else None


def _module_word(name: str) -> str:
    """A module by its name; one of the user's also by the hash of its code."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        file = spec.origin if spec else None
    if not file or is_library(file) or not Path(file).is_file() or not file.endswith(".py"):
        return f"module {name}"
    return f"module {name} {code_sha256(Path(file))[:8]}"


def _of_library(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or is_library(file)
