"""What exists, each with a line on what it is: tasks, data, methods, metrics.

Descriptions are read from the source, of which nothing is imported: no torch.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tombola.config.registry import DATA, TASKS, Registry
from tombola.config.search import METHODS
from tombola.metrics.judge_files import metric_names
from tombola.metrics.rules import CURVE_ONLY

_METRICS = (
    "reconstruction_error",
    "elbo",
    "reconstruction",
    "accuracy",
    "precision",
    "recall",
    "density",
    "coverage",
    "class-<nn>",
    *CURVE_ONLY,
    *metric_names("inception").values(),
    *metric_names("<data>-<hash8>").values(),
)
_FOLDER = "folder:PATH"
_HEADS = {
    "tasks": "tasks, of which each takes every data; or path/to/file.py:Class",
    "data": "data (--data)",
    "methods": "methods (--method)",
    "metrics": "metrics, in the tables of a search",
}
_NAMES: dict[str, Callable[[], list[str]]] = {
    "tasks": TASKS.names,
    "data": lambda: [*DATA.names(), _FOLDER],
    "methods": lambda: list(METHODS),
    "metrics": lambda: sorted({*_METRICS}),
}


def all_names() -> Iterator[tuple[str, list[str]]]:
    """(kind, names) of all that exists."""
    return ((what, names()) for what, names in _NAMES.items())


def everything() -> str:
    """All that exists, kind by kind."""
    parts = []
    for what, head in _HEADS.items():
        body = lines(what) if what in ("tasks", "data") else ", ".join(_NAMES[what]())
        parts.append("\n".join([f"{head}:", *(f"  {line}" for line in body.splitlines())]))
    return "\n".join(parts)


def lines(what: str) -> str:
    """A line each of one kind: its name, and what it is where the source says so."""
    names = _NAMES[what]()
    told = {name: _description(what, name) for name in names}
    width = max(map(len, names)) + 2
    return "\n".join(f"{name:<{width}}{text}".rstrip() for name, text in told.items())


def _description(what: str, name: str) -> str:
    if what == "tasks":
        found = _source(TASKS, name)
        steps = _quick_steps(*found)
        return _summary(found[1]) + (f" Quick: {steps:,} steps." if steps else "")
    if what == "data":
        return "Any tree of images." if name == _FOLDER else _summary(_source(DATA, name)[1])
    return ""


def _source(registry: Registry, name: str) -> tuple[dict[str, Any], Any]:
    """(definitions of the module by name, the one of an entry)."""
    module, _, attribute = registry.place(name).partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_bytes())
    definitions = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    return definitions, definitions[attribute]


def _summary(node: Any) -> str:
    return (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")


def _quick_steps(definitions: dict[str, Any], node: ast.ClassDef) -> int | None:
    """Steps of the preset quick, of the class itself or of what it is derived from."""
    for each in ast.walk(node):
        if isinstance(each, ast.Dict):
            for key, value in zip(each.keys, each.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "quick":
                    return _steps(value)
    bases = (definitions.get(ast.unparse(base)) for base in node.bases)
    return next((_quick_steps(definitions, base) for base in bases if base is not None), None)


def _steps(table: ast.expr) -> int | None:
    if isinstance(table, ast.Dict):
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "steps":
                return int(ast.literal_eval(value))
    return None
