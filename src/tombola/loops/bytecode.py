"""What does a function do, by its compiled code: which names it reads, which modules it imports?"""

from __future__ import annotations

import dis
import hashlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any


def short_hash(text: str | bytes) -> str:
    """Eight hex digits of a text."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:8]


def codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of all functions within it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from codes_of(part)


def names_read(code: types.CodeType) -> list[tuple[str, tuple[str, ...]]]:
    """Global names in order, each with the attributes that are read of it at once."""
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for part in codes_of(code):
        name, attributes = "", []
        for step in [*dis.get_instructions(part), None]:
            if step is not None and name and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes.append(str(step.argval))
                continue
            if name:
                found[name, tuple(attributes)] = None
            reads = step is not None and step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
            name, attributes = (str(step.argval) if step and reads else ""), []
    return list(found)


def imports_of(code: types.CodeType) -> list[str]:
    """Modules that are imported within a function."""
    steps = (step for part in codes_of(code) for step in dis.get_instructions(part))
    return sorted({str(step.argval) for step in steps if step.opname == "IMPORT_NAME"})


def asked_of_process(code: types.CodeType) -> dict[str, Any]:
    """What a function may ask of the command line and the environment -> what it would get now.

    Variables by the names that are written in it; one that is not set is none.
    """
    found: dict[str, Any] = {}
    for part in codes_of(code):
        if {"argv", "parse_args", "parse_known_args"}.intersection(part.co_names):
            found["argv"] = sys.argv[1:]
        if {"environ", "getenv"}.intersection(part.co_names):
            words = [each for each in part.co_consts if isinstance(each, str)]
            found |= {f"environ.{word}": os.environ[word] for word in words if word in os.environ}
    return found


def code_word(function: types.FunctionType) -> str:
    """What a function does, without its comments and its own description."""
    code = function.__code__
    if function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,):
        code = code.replace(co_consts=(None, *code.co_consts[1:]))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{short_hash(repr(_code_parts(code)))} of Python {version}"


def _code_parts(code: types.CodeType) -> tuple[Any, ...]:
    constants = tuple(
        _code_parts(each)
        if isinstance(each, types.CodeType)
        else (type(each).__name__, sorted(map(repr, each)) if isinstance(each, frozenset) else each)
        for each in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return code.co_code, code.co_exceptiontable, constants, names, counts
