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
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tombola.errors import ConfigError, unknown

T = TypeVar("T")
_BEGAN = time.time()
_ran: dict[Path, str] = {}
"""Own module of a user's file -> its SHA-256 when it was last imported with that."""


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


def is_library(file: str | Path) -> bool:
    """Whether a source file belongs to Python, an installed package or Tombola, not to the user."""
    path = Path(file)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    text = str(file)
    if text.startswith("<"):  # typed in, but for what Python keeps frozen
        return text.startswith("<frozen")
    homes = [sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib")]
    return any(path.is_relative_to(home) for home in (*homes, str(Path(__file__).parent.parent)))


def code_files(path: Path) -> dict[str, Path]:
    """The user's own modules that a file imports, by name, and those that they import.

    Read from the source, without running it: modules beside the file, or in a folder on Python's
    path that is no library's. What is imported by a name that is made up on the way is not seen.
    """
    folders = [path.parent, *(Path(entry or ".") for entry in sys.path)]
    roots = [root for root in dict.fromkeys(folders) if not is_library(root)]
    found: dict[str, Path] = {}
    todo = [("", path)]
    while todo:
        module, file = todo.pop()
        for name in sorted(set(_imported(module, file))):
            for root in roots:
                place = _module_file(root, name)
                if place is not None and not is_library(place):
                    if name not in found and place.resolve() != path.resolve():
                        found[name] = place
                        todo.append((name, place))
                    break
    return dict(sorted(found.items()))


def code_sha256(path: Path) -> str:
    """SHA-256 of what a user's file is: of its bytes, and of the own modules that it imports."""
    files = code_files(path)
    if not files:
        return file_sha256(path)
    lines = [file_sha256(path), *(f"{name} {file_sha256(each)}" for name, each in files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _module_file(root: Path, name: str) -> Path | None:
    """The source file of a module below a folder, if there is one."""
    base = root.joinpath(*name.split("."))
    for place in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if place.is_file():
            return place
    return None


def _imported(module: str, file: Path) -> Iterator[str]:
    """Every name that a file's source may import a module by, with the packages above it.

    ``module``: its own name, from which relative imports go; empty for a file that has none.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    parts = module.split(".") if module else []
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)]
        for name in names:
            steps = name.split(".") if name else []
            yield from (".".join(steps[: end + 1]) for end in range(len(steps)))


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
    """Run a user's file once per place and content; its errors become one line that names it.

    Its own modules are imported anew with it, if one was edited since they were.
    """
    # A copy elsewhere may read other files beside it.
    told = f"{path.resolve()}\n{code_sha256(path)}".encode("utf-8", "surrogateescape")
    module_name = f"tombola_user_{hashlib.sha256(told).hexdigest()[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot import the {noun} file {path}; give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    _forget_edited(code_files(path))
    # Python tells compiled files by second and size, which two edits may share.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(
            f"the {noun} file {path} failed when imported: "
            f"{type(error).__name__}: {error}; mend it and run again"
        ) from error
    finally:
        sys.dont_write_bytecode = writes
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


def _forget_edited(files: Mapping[str, Path]) -> None:
    """Let modules be imported anew, all of them if one may be older here than its file."""
    edited = False
    for file in files.values():
        before, now = _ran.get(file.resolve()), file_sha256(file)
        edited |= before != now if before else file.stat().st_mtime >= _BEGAN
        _ran[file.resolve()] = now
    for name in files if edited else ():
        for end in range(len(parts := name.split("."))):
            sys.modules.pop(".".join(parts[: end + 1]), None)


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
EXECUTORS = Registry(
    "executor",
    {
        "local": "tombola.engine.executors.local:LocalPool",
        "serial": "tombola.engine.executors.protocol:Serial",
    },
)
