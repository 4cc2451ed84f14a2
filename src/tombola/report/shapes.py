"""Have the files of a folder the shapes that the page reads? Asked once, before anything is drawn.

A folder may come from anybody. What the page reads of its JSON is written down here as shapes, and
what is read anew gets its line here; keys that are not named are free. A key may be missing or null
unless it is needed. Reading stops at the first value of another shape, which is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tombola.report.curves import key_of
from tombola.store.tables import KeyColumns

Shape = Callable[[Any, str], None]
"""Raises UnfitError, with the place, for a value of another shape."""
MOST_CHARACTERS = 4000
"""Of a text: a sentence has some hundred."""
MOST_CELL = 400
"""Of a name in a table, which may become part of a file's name."""
MOST_VALUES, MOST_DEPTH = 1_000_000, 40
MOST_SEARCHES, MOST_METRICS = 500, 200
"""A page draws each metric twice, and each search into it."""
MOST = 1e100
"""Larger numbers are none that was measured, and their squares would be none at all."""


class UnfitError(Exception):
    """Where a value is not what a search writes, and what is wanted there."""


def _is(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def anything(value: Any, at: str) -> None:
    """Whatever JSON has: it is shown as it is, or not at all."""


def text(value: Any, at: str) -> None:
    """A text."""
    if not isinstance(value, str):
        raise UnfitError(f"{at} is {_shown(value)}, not a text")


def real(value: Any, at: str) -> None:
    """A finite number."""
    if not _is(value, int, float) or not abs(value) < MOST:
        raise UnfitError(f"{at} is {_shown(value)}, not a number")


def number(value: Any, at: str) -> None:
    """A finite number, or null where there is none."""
    if value is not None:
        real(value, at)


def whole(value: Any, at: str) -> None:
    """A whole number from 0."""
    if not _is(value, int) or not 0 <= value < 1 << 63:
        raise UnfitError(f"{at} is {_shown(value)}, not a whole number from 0")


def many(of: Shape, *, exactly: int | None = None) -> Shape:
    """A list of values of one shape."""

    def check(value: Any, at: str) -> None:
        if not isinstance(value, list) or exactly not in (None, len(value)):
            size = "" if exactly is None else f" of {exactly}"
            raise UnfitError(f"{at} is {_shown(value)}, not a list{size}")
        for index, each in enumerate(value):
            of(each, f"{at}[{index}]")

    return check


def table(of: Shape, *, by_step: bool = False) -> Shape:
    """An object whose keys are names, or steps of a training, and whose values have one shape."""

    def check(value: Any, at: str) -> None:
        for key, each in _object(value, at).items():
            if by_step and not (key.isascii() and key.isdecimal() and len(key) < 19):
                raise UnfitError(f"{at} has the key {_shown(key)}, not a step")
            of(each, f"{at}.{key[:40]}")

    return check


def record(needed: Iterable[str] = (), /, **keys: Shape) -> Shape:
    """An object with known keys, and others that are free."""

    def check(value: Any, at: str) -> None:
        found = _object(value, at)
        for key in needed:
            if found.get(key) is None:
                raise UnfitError(f"{at} has no {key}")
        for key, of in keys.items():
            if found.get(key) is not None:
                of(found[key], f"{at}.{key}")

    return check


def either(*shapes: Shape) -> Shape:
    """The first shape that fits; what is wrong is told of the last."""

    def check(value: Any, at: str) -> None:
        for shape in shapes[:-1]:
            try:
                return shape(value, at)
            except UnfitError:
                continue
        return shapes[-1](value, at)

    return check


def null(value: Any, at: str) -> None:
    """Nothing."""
    if value is not None:
        raise UnfitError(f"{at} is {_shown(value)}, not null")


def _object(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UnfitError(f"{at} is {_shown(value)}, not an object")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    return (
        f"a text of {len(value)} characters" if _is(value, str) and len(value) > 40 else repr(value)
    )


CONTROL = record(state=text, p=number, ratio=number, difference=number, times_as_large=number)
LEVEL = record(
    ("round", "sparsity"), round=whole, sparsity=real, state=text, diverged=whole, seeds=whole,
    **dict.fromkeys(("compress", "ratio", "difference", "lower", "upper"), number),
)  # fmt: skip
VERDICT = record(
    state=text, reason=text, arm=text, metric=text, sentence=text, better=text,
    controls=table(either(text, CONTROL)), levels=many(LEVEL), bracket=many(number, exactly=2),
    planning=record(seeds_if_no_loss=number, seeds_at_loss_seen=number),
    **dict.fromkeys(
        ("frontier", "first_worse", "sparsity", "matches_up_to", "margin", "margin_share",
         "dense_mean", "dense_sd", "seeds", "dense_diverged", "sampling_sd"),
        number,
    ),
)  # fmt: skip
COMPARISON = record(
    metric=text, a=text, b=text, differs=text, interval=many(number, exactly=2),
    by_level=many(record(("sparsity",), sparsity=real, ratio=number, difference=number,
                         p_holm=number)),
    **dict.fromkeys(("ratio", "difference", "p", "levels", "seeds"), number),
)  # fmt: skip
NETWORK = record(gate=record(("passed", "reasons"), reasons=many(text)))
"""A network that measures, and the gate that it was held against."""
WATCHED_SEED = record(
    step=whole, steps=whole,
    widths=table(many(whole, exactly=2)), overlap=table(many(real, exactly=2)),
    largest=table(either(null, table(real)), by_step=True), thin_flops=table(real),
)  # fmt: skip
WATCHED = record(
    rule=text, settle=text, delta=number, left=table(text), by_scale=many(text), draws=many(whole),
    matrix=table(many(many(real))), seeds=table(WATCHED_SEED),
)  # fmt: skip
TRANSFERRED = record(
    state=text, sentence=text, beats=table(anything),
    d_mean=number, low=number, high=number, margin=number,
    as_ticket=record(state=text, dense_mean=number, margin=number, better=text),
    levels=many(record(
        sparsity=number, d_mean=number, low=number, high=number, state=text, against_dense=text,
    )),
)  # fmt: skip
ROUTE = record(
    ("target", "network", "source"), target=text, network=text, source=text, primary=text,
    layers=table(anything), metrics=table(TRANSFERRED),
)  # fmt: skip
SUMMARY = record(
    verdicts=table(VERDICT), arms=table(table(VERDICT)), primary=text, notes=many(text),
    collapsed=table(many(text)), convergence=table(real),
    stability=table(table(record(low=number, high=number, ratio=number, seeds=number, state=text))),
    early_bird=table(WATCHED), sampling_sd=table(number), floor=table(number),
    above_floor=table(number), trivial=table(number), settling=table(table(number)),
    comparisons=many(COMPARISON), judge=NETWORK, classifier=NETWORK,
    transfer=record(routes=many(ROUTE)),
)  # fmt: skip
"""What the page reads of summary.json."""
MARGIN = record(("margin",), margin=real)
CONFIG = record(
    config=record(run=table(anything)),
    resolved=record(task=text, margins=table(MARGIN), margins_first=table(MARGIN)),
    transfer=record(routes=many(record(layers=many(anything)))),
)
"""What the page reads of config.json."""


def check_amount(value: Any, most_characters: int = MOST_CHARACTERS) -> None:
    """UnfitError for JSON that is deeper, longer or more than any search writes."""
    todo, seen = [(value, 0)], 0
    while todo:
        each, depth = todo.pop()
        seen += 1
        if depth > MOST_DEPTH or seen > MOST_VALUES:
            raise UnfitError(f"it holds more than {MOST_DEPTH} levels or {MOST_VALUES:,} values")
        if isinstance(each, str) and len(each) > most_characters:
            raise UnfitError(
                f"it has a text of {len(each):,} characters; at most {most_characters:,}"
            )
        inner = [*each, *each.values()] if isinstance(each, dict) else each
        if isinstance(inner, list):
            todo += [(part, depth + 1) for part in inner]


def check_rows(rows: Sequence[KeyColumns]) -> None:
    """UnfitError for a row that no search measures, or more metrics or searches than are shown."""
    for line, row in enumerate(rows, 2):
        for name, value in row.as_dict().items():
            _check_cell(name, value, f"line {line}: {name}")
    for what, most, found in (
        ("searches", MOST_SEARCHES, {key_of(row) for row in rows}),
        ("metrics", MOST_METRICS, {getattr(row, "metric", "") for row in rows}),
    ):
        if len(found) > most:
            raise UnfitError(f"it is of {len(found):,} {what}; a page shows at most {most}")


def _check_cell(name: str, value: str | float | None, at: str) -> None:
    if isinstance(value, str):
        if len(value) > MOST_CELL:
            raise UnfitError(f"{at} has {len(value):,} characters; at most {MOST_CELL}")
    elif value is not None:
        least, most = (-MOST, MOST) if name == "value" else (0, MOST)
        if name in ("sparsity", "sparsity_all", "compress"):
            most = 1
        strange = name == "value" and not math.isfinite(value)  # of a training that diverged
        if not strange and not least <= value <= most:
            raise UnfitError(f"{at} is {_shown(value)}, not from {least:g} to {most:g}")
