"""What does an import do? Nothing but define; and what must answer at once needs no torch."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import tombola
from tombola.config import registry

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(tombola.__path__, "tombola.")
    if module.name != "tombola.__main__"
)
SOURCE = str(Path(tombola.__file__).parent.parent)


def python(code: str) -> str:
    """What a fresh interpreter prints on stdout and stderr together when it runs a program."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_importing_anything_is_silent_and_adds_no_handler() -> None:
    code = f"""
import importlib, logging
for name in {MODULES!r}:
    importlib.import_module(name)
loggers = [logging.getLogger()] + [
    logger
    for name, logger in logging.Logger.manager.loggerDict.items()
    if name.split(".")[0] == "tombola" and isinstance(logger, logging.Logger)
]
for logger in loggers:
    assert not logger.handlers, (logger, logger.handlers)
"""
    assert python(code) == ""


HEAVY = ("torch", "scipy", "matplotlib", "pyarrow", "PIL")
CHEAP_IMPORTS = (
    "tombola",
    "tombola.cli.command_line",
    "tombola.cli.commands",
    "tombola.data.checks",
    "tombola.tickets.export_facts",
    "tombola.loops.asking",
    "tombola.metrics.rules",
    "tombola.store.tables",
    "tombola.store.runs",
    "tombola.tickets.card",
    "tombola.cli.reproduce.command",
    "tombola.tickets.difference",
    "tombola.tickets.inspection",
    "tombola.cli.travel",
)
CHEAP_COMMANDS = {
    "--help": 0,
    "find --help": 0,
    "list tasks": 0,
    "list data": 0,
    "list methods --json": 0,
    "list metrics": 0,
    "reproduce": 0,
    "reproduce fig3 --table": 0,
    "find no-such-task": 2,
    "find vae --data no-such-data": 2,
    "find vae --rate 2": 2,
    "find no-such-file.py:Task": 2,
    "train vae --ticket no-such-file": 2,
    "inspect no-such-file": 2,
    "inspect --diff no-such-file no-other": 2,
    "inspect hub:no-such-place": 2,
    "publish no-such-file hub:user/name": 2,
    "run --rounds 2": 2,
    "run --rewind 2ep -- python -V": 2,
    "verify no-such-file": 2,
    "export no-such-file --to onnx": 2,
    "sample no-such-file.pt2 --out x": 2,
}
"""What must answer at once, and its exit code."""


def test_what_must_answer_at_once_imports_nothing_heavy() -> None:
    code = f"""
import contextlib, importlib, io, json, sys
seen = {{}}
def look(after):
    for name in set({HEAVY!r}) & sys.modules.keys() - seen.keys():
        seen[name] = after
for name in {CHEAP_IMPORTS!r}:
    importlib.import_module(name)
    look(name)
codes = {{}}
for words in {list(CHEAP_COMMANDS)!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            codes[words] = sys.modules["tombola.cli.command_line"].main(words.split())
        except SystemExit as stop:
            codes[words] = stop.code
    look(words)
print(json.dumps([seen, codes]))
"""
    seen, codes = json.loads(python(code))
    assert seen == {}
    assert codes == CHEAP_COMMANDS


def test_the_report_is_written_without_torch() -> None:
    assert python("import sys, tombola.report.page; print('torch' in sys.modules)") == "False\n"


REGISTRIES = {
    name: table for name, table in vars(registry).items() if isinstance(table, registry.Registry)
}


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in REGISTRIES.values() for name in table.names()],
    ids=lambda value: value if isinstance(value, str) else value.noun.replace(" ", "-"),
)
def test_every_registered_name_stands_for_something(table: registry.Registry, name: str) -> None:
    built = table.load(name)
    assert callable(built)
    assert built.__module__.startswith("tombola.")
    assert built.__doc__


def test_every_registered_task_is_a_task_with_its_presets() -> None:
    from tombola.config.sections import SHARED
    from tombola.tasks.base import Task

    for name in registry.TASKS.names():
        kind = registry.TASKS.load(name)
        assert issubclass(kind, Task), name
        assert {"quick", "paper"} <= kind.presets.keys(), name
        assert ("shared" in kind.presets) == (name in SHARED), name
