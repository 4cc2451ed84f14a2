"""What a value of the config may be; ConfigError says what came in and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from tombola.errors import ConfigError, unknown


def one_of(noun: str, value: str, allowed: tuple[str, ...]) -> None:
    """ConfigError unless a value is one of those allowed."""
    if value not in allowed:
        raise unknown(noun, value, allowed)


def some(name: str, values: tuple[str, ...]) -> None:
    """ConfigError for an empty list."""
    if not values:
        raise ConfigError(f"{name} is empty; give at least one value")


def distinct(
    noun: str, values: tuple[str, ...], read: Callable[[str, str], Any] = lambda noun, text: text
) -> None:
    """ConfigError for a list that names a value twice, as ``read`` (noun, text) understands it."""
    if len({read(noun, value) for value in values}) < len(values):
        raise ConfigError(f"{noun} got {','.join(values)}; give each value once")


def ascending(noun: str, values: tuple[str, ...], read: Callable[[str, str], Any]) -> None:
    """ConfigError unless values go up, as ``read`` (noun, text) understands them."""
    found = [read(noun, value) for value in values]
    if found != sorted(set(found)):
        raise ConfigError(
            f"{noun} levels {','.join(values)} do not ascend; give them from low to high, each once"
        )


def integer(name: str, value: int, low: int, high: int | None = None) -> None:
    """ConfigError unless a whole number lies from ``low`` to ``high`` (None = no end)."""
    if value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} got {value}; it takes a whole number {allowed}")


def number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """ConfigError unless a value is a finite number from ``low`` to ``high``; open: not these."""
    fine = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
        and not (open_low and value == low)
        and not (open_high and value == high)
    )
    if not fine:
        top = " up" if high == math.inf else f" to below {high:g}" if open_high else f" to {high:g}"
        bottom = f"above {low:g}" if open_low else f"from {low:g}"
        raise ConfigError(f"{name} got {value!r}; it takes a finite number {bottom}{top}")


def place_of_controls(where: str, draws: int, controls: Collection[str]) -> None:
    """ConfigError unless the controls can be trained ``where`` they are wanted, so often."""
    one_of("search.controls_at", where, ("all", "frontier"))
    if where == "all" and draws:
        raise ConfigError(
            f"search.draws is {draws}, but at every level each control is drawn once; give "
            "--controls-at frontier, or leave --draws out"
        )
    if where == "frontier" and "reinit-chain" in controls:
        raise ConfigError(
            "control reinit-chain is a chain of its own, which no frontier cuts out; give "
            "--controls-at all, or leave that control out"
        )


RIVALS: tuple[tuple[tuple[str, ...], str, str, Any], ...] = (
    (("rounds", "rate"), "search", "sparsity", ()),
    (("steps",), "train", "epochs", 0.0),
    (("epochs",), "train", "steps", 0),
)
"""Keys, the section they are in, and the other key there that says the same in another way."""


def before_rivals(tables: dict[str, dict[str, Any]], asked: Collection[tuple[str, str]]) -> None:
    """Take out of tables, in place, what a file says in another way than keys that were asked for.

    ``asked``: (section, key) of what was given beside the file.
    """
    for keys, section, rival, none in RIVALS:
        if any((section, key) in asked for key in keys) and (section, rival) not in asked:
            tables.setdefault(section, {})[rival] = none


def needs_early_bird(given: Collection[str], methods: Collection[str], mark: str = "") -> None:
    """ConfigError if options of early-bird are among the names given, and it is no method."""
    for name in ("compress", "round_to"):
        if name in given and "early-bird" not in methods:
            raise ConfigError(
                f"{mark}{name.replace('_', '-') if mark else name} is of method early-bird, but "
                f"the methods are {','.join(methods)}; leave it out, or add early-bird"
            )


def one_way(given: Collection[str], mark: str = "") -> None:
    """ConfigError if the names of given options have levels both by rounds and outright.

    ``mark``: what stands before an option where it was given, such as two dashes.
    """
    ways = [name for name in ("rounds", "rate") if name in given]
    if ways and "sparsity" in given:
        raise ConfigError(
            f"both {mark}{ways[0]} and {mark}sparsity are given; say which levels are wanted by "
            f"{mark}rounds and {mark}rate, or by {mark}sparsity"
        )
