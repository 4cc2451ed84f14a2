"""How values are written and read: JSON and its hash, TOML, kinds, rewind steps, decimals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError

MOST_TOML_BYTES = 1 << 20
"""A config file is a few kB: a larger one is another file."""
MOST_WHOLE = 1 << 63
"""Whole numbers below this fit into 64 bits."""
LEAST, MOST_DIGITS = Decimal("1E-12"), 30
"""Shares of weights nearer to none or all, or more exact, differ in no weight of any network."""


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def parse_value(text: str) -> Any:
    """The value of a ``--set``: a TOML value where it is one, else the text itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, too many digits, too many brackets
        return text
    return table["value"] if len(table) == 1 else text


def read_toml(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a config file; ConfigError naming the line where it is no TOML."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_TOML_BYTES + 1)
        if len(content) > MOST_TOML_BYTES:
            raise ConfigError(
                f"the config file {path} has more than {MOST_TOML_BYTES:,} bytes; "
                "give a TOML file as --dry-run prints it"
            )
        tables = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the config file {path}: {error.strerror}; "
            "give a TOML file as --dry-run prints it"
        ) from error
    except (ValueError, RecursionError) as error:
        why = "brackets in brackets" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"the config file {path} is not TOML: {why}; --dry-run prints one to start from"
        ) from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"the config file {path} has {name!r} outside of a section; "
                "write it under [task], [search] or another section, as --dry-run prints them"
            )
    return tables


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of scalars and lists as TOML text that :func:`read_toml` reads back."""
    blocks = []
    for name, table in tables.items():
        pairs = (f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items())
        lines = [f"[{name}]", *pairs]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(text: str) -> str:
    # JSON's escapes are TOML's, but for characters beyond the first plane and for delete.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return _toml_text(str(value))


_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
}
"""Annotation of a field -> its type, and what it is called in an error."""


def coerce(name: str, value: Any, kind: str) -> Any:
    """A TOML or command-line value as the kind that a field is annotated with.

    ConfigError names what was expected.
    """
    if kind.startswith("tuple"):
        # A text of networks is one set of them; several sets come as a list.
        whole = isinstance(value, str) and name == "prune.networks"
        items = value.split(",") if isinstance(value, str) and not whole else value
        if not isinstance(items, list | tuple):
            items = [items]
        named = tuple(str(item).strip() for item in items if str(item).strip())
        if isinstance(value, str) and not named:
            raise ConfigError(f"{name} is empty; give at least one value, or leave it out")
        if named == ("none",):
            return ()
        if "none" in named:
            raise ConfigError(f"{name} got {value!r}; none stands alone, without other values")
        return named
    wanted, words = _KINDS[kind]
    if wanted is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if wanted is float and type(value) is int and abs(value) < MOST_WHOLE:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name} got {value!r}; it takes {words}")
    return value


def check_finite(name: str, value: Any) -> None:
    """ConfigError for a number, also within lists and tables, that no training can take."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_finite(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_finite(name, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} got {value}; it takes a finite number")
    elif isinstance(value, int) and abs(value) >= MOST_WHOLE:
        raise ConfigError(f"{name} got a number of {value.bit_length()} bits; it takes at most 63")


def parse_rewind(text: str) -> tuple[float, str]:
    """``500it`` -> (500, "it"), ``2ep`` -> (2, "ep"), ``5%`` -> (5, "%"); else ConfigError."""
    unit = "%" if text.endswith("%") else text[-2:]
    try:
        value = float(text.removesuffix(unit))
    except ValueError:
        value = math.nan
    if (
        unit not in ("it", "ep", "%")
        or not math.isfinite(value)
        or value < 0
        or (unit == "it" and value != int(value))
    ):
        raise ConfigError(
            f"rewind step {text!r} is not understood; give steps as 500it, epochs as "
            "2ep, a share of the training as 5%, or 0it for the initial weights"
        )
    return value, unit


def parse_margin(name: str, value: Any) -> float:
    """``2%`` or 0.02 -> 0.02; ConfigError for what is no positive number."""
    number = math.nan
    if isinstance(value, str):
        text = value.strip()
        with contextlib.suppress(ValueError):
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if not 0 < number < math.inf:
        raise ConfigError(f"margin {name} = {value!r}; give a positive number, such as 0.05 or 5%")
    return number


def percent_of(value: float, steps: int) -> int:
    """So many percent of a number of steps, to the nearest step, halves up: exact in decimals."""
    return math.floor(Fraction(repr(value)) * steps / 100 + Fraction(1, 2))


def split_networks(text: str) -> tuple[str, ...]:
    """``generator,discriminator`` or ``generator+discriminator`` -> names."""
    return tuple(part.strip() for part in text.replace("+", ",").split(",") if part.strip())


def decimal_fraction(name: str, text: str) -> Decimal:
    """A decimal between 0 and 1, no nearer to them than LEAST; ConfigError for anything else."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not 0 < value < 1:
        raise ConfigError(
            f"{name} got {text[:80]!r}; it takes a decimal between 0 and 1, both excluded"
        )
    if not LEAST <= value <= 1 - LEAST or len(value.as_tuple().digits) > MOST_DIGITS:
        raise ConfigError(
            f"{name} got {text[:80]!r}; it takes a decimal of at most {MOST_DIGITS} digits, no "
            f"nearer to 0 and 1 than {LEAST}"
        )
    return value
