"""What do the files of a script say before it is run? Read, not run, and before torch is imported.

Its own modules are part of what a search is named by; a metric that nobody can judge is told at
once, not after a training.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from tombola.config.registry import code_files
from tombola.errors import ConfigError
from tombola.metrics.rules import rule_of

CONFIGS = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".conf")
"""How the names of files end that a script is told its settings by."""


def files_of(words: Sequence[str]) -> dict[str, Path]:
    """Files of a command by their words, and the own modules that its Python files import by name.

    Python files; a module after ``-m``, if it lies in a folder on Python's path that is no
    library's; files of settings that are there. ConfigError for a script that is not.
    """
    found: dict[str, Path] = {}
    for word, before in zip(words, ("", *words), strict=False):
        path = Path(word)
        if before == "-m":
            path = _module(word)
        elif word.endswith(CONFIGS):
            path = Path(word.rpartition("=")[2])  # also --config=FILE
            if path.is_file():
                found[word] = path
            continue
        elif not word.endswith(".py"):
            continue
        elif not path.is_file():
            raise ConfigError(f"cannot read {word!r}: it is no file; give an existing script")
        if path.is_file():
            found[word] = path
            for name, file in code_files(path).items():
                found.setdefault(name, file)
    return found


def _module(name: str) -> Path:
    """The file of a module in the folder that the command is run in; of none where it is not."""
    place = Path(*name.split("."))
    package = place / "__main__.py"
    return package if package.is_file() else place.with_name(f"{place.name}.py")


def check_records(path: Path) -> None:
    """ConfigError for a ``tombola.record`` of a metric without a rule that says no ``better``."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # Python says it better
    names = {"tombola.record"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tombola":
            names |= {a.asname or a.name for a in node.names if a.name == "record"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in names:
            continue
        metric = node.args[0] if node.args else None
        named = {keyword.arg for keyword in node.keywords}
        if isinstance(metric, ast.Constant) and not named & {"better", None}:
            name = str(metric.value)
            if rule_of(name) is None:
                raise ConfigError(
                    f"{path}, line {node.lineno}: metric {name!r} is not one that Tombola knows; "
                    'say better="lower" or better="higher"'
                )
