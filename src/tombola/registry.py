"""Which name stands for which builder: tasks, data sources, criteria and metrics.

Built-in entries are written as ``module:attribute`` and imported when first used, so that names can
be listed and checked without torch. Code outside the package registers the same way, or is named
as ``path/to/file.py:NAME`` and needs no registration.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tombola.errors import ConfigError, unknown

T = TypeVar("T")


class Registry:
    """A table of names; values are objects, or ``module:attribute`` texts imported on first use."""

    def __init__(self, noun: str, builtin: dict[str, str]) -> None:
        self.noun = noun
        self._entries: dict[str, Any] = dict(builtin)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def place(self, name: str) -> str:
        """Where an entry is written: ``module:attribute``."""
        entry = self._entries[name]
        return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an object under a new name; ConfigError if the name is taken."""

        def add(value: T) -> T:
            if name in self._entries:
                raise ConfigError(
                    f"{self.noun} {name!r} is registered already; choose another name"
                )
            self._entries[name] = value
            return value

        return add

    def check(self, spec: str) -> None:
        """Raise ConfigError unless the spec names an entry, or NAME in an existing, parsable file.

        Imports nothing: a user's file is parsed, not run.
        """
        if not is_file_spec(spec):
            if spec not in self._entries:
                if inside := self._inside(spec):
                    meant = " or ".join(f"{spec}:{name}" for name in inside)
                    raise ConfigError(f"{self.noun} {spec!r} is a file; did you mean {meant}?")
                raise unknown(
                    self.noun,
                    spec,
                    self._entries,
                    f"or path/to/file.py:NAME for {spec!r}"
                    if spec.endswith(".py")
                    else "or path/to/file.py:NAME",
                )
            return
        path, name = split_file_spec(spec)
        try:
            tree = ast.parse(path.read_bytes(), filename=str(path))
        except OSError as error:
            raise ConfigError(
                f"cannot read the {self.noun} file {path}: {error.strerror}; "
                "give an existing path/to/file.py:NAME"
            ) from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            why = getattr(error, "msg", error) or "brackets in brackets"
            raise ConfigError(
                f"{path}, line {line}: {why}; mend the {self.noun} file and run again"
            ) from error
        if name not in _top_level_names(tree):
            hint = f"define a {self.noun} in the file"
            names = _top_level_names(tree)
            raise unknown(f"name in {path}", name, names, "" if names else hint)

    def _inside(self, spec: str) -> list[str]:
        """What a file has that may be meant by its bare path: classes derived from one that is."""
        try:
            tree = ast.parse(Path(spec).read_bytes()) if spec.endswith(".py") else None
        except (OSError, SyntaxError, ValueError):
            return []
        known = {self.place(name).rpartition(":")[2] for name in self._entries}
        known.add(self.noun.capitalize())
        found = []
        for node in tree.body if tree else ():
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if bases & known:
                    known.add(node.name)
                    found.append(node.name)
        return found

    def load(self, spec: str) -> Any:
        """The object behind a name or behind ``path/to/file.py:NAME`` (which runs that file)."""
        self.check(spec)
        if is_file_spec(spec):
            path, name = split_file_spec(spec)
            return getattr(_import_file(path, self.noun), name)
        value = self._entries[spec]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._entries[spec] = getattr(importlib.import_module(module), attribute)
        return value


def is_file_spec(spec: str) -> bool:
    """Whether a spec is of the form ``path/to/file.py:NAME``."""
    path, colon, name = spec.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def split_file_spec(spec: str) -> tuple[Path, str]:
    """``path/to/file.py:NAME`` -> (path, NAME)."""
    path, _, name = spec.rpartition(":")
    return Path(path), name


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def _import_file(path: Path, noun: str) -> ModuleType:
    """Run a user's file once per content; its errors become one line that names the file."""
    module_name = f"tombola_user_{file_sha256(path)[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot import the {noun} file {path}; give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(
            f"the {noun} file {path} failed when imported: "
            f"{type(error).__name__}: {error}; mend it and run again"
        ) from error
    return module


_ASKED_FROM: list[str] = []
"""Where the process that asked for a user's file finds modules, if that is another one."""


def look_beside(paths: Iterable[str]) -> None:
    """Let users' files import what they can in a process whose ``sys.path`` this is."""
    _ASKED_FROM[:] = [os.path.abspath(path) for path in paths]


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Within it modules in the folder of a user's file are found first, as a script's; later last.

    Only while the file itself is imported can they stand before a library that has their name.
    """
    folders = dict.fromkeys([str(path.absolute().parent), *_ASKED_FROM])
    added = [folder for folder in folders if folder not in sys.path]
    sys.path[:0] = added
    try:
        yield
    finally:
        sys.path[:] = [each for each in sys.path if each not in added] + added


TASKS = Registry(
    "task",
    {
        "linear-ae": "tombola.tasks.autoencoding:LinearAE",
        "conv-ae": "tombola.tasks.autoencoding:ConvAE",
        "vae": "tombola.tasks.autoencoding:VAE",
        "beta-vae": "tombola.tasks.autoencoding:BetaVAE",
        "resnet-vae": "tombola.tasks.autoencoding:ResNetVAE",
        "dcgan": "tombola.tasks.adversarial:DCGAN",
        "sngan": "tombola.tasks.adversarial:SNGAN",
        "wgan": "tombola.tasks.adversarial:WGAN",
        "wgan-gp": "tombola.tasks.adversarial:WGANGP",
        "resnet-dcgan": "tombola.tasks.adversarial:ResNetDCGAN",
        "ddpm": "tombola.tasks.diffusion:DDPM",
    },
)
DATA = Registry(
    "data source",
    {
        "digits": "tombola.data.sources:digits",
        "mnist": "tombola.data.sources:mnist",
        "cifar10": "tombola.data.sources:cifar10",
        "celeba": "tombola.data.sources:celeba",
    },
)
CRITERIA = Registry(
    "criterion",
    {
        "magnitude": "tombola.sparsity.criteria:magnitude",
        "random": "tombola.sparsity.criteria:random_scores",
    },
)
FEATURES = Registry("feature network", {})
