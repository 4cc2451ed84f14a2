"""What can go wrong by the user's hand: one class, four kinds, and how a name is refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Input or surroundings are at fault: says what came in, what is allowed and what to do."""


class ConfigError(UserError):
    """An option, a name or a combination of them is not allowed."""


class DataError(UserError):
    """A data source is missing, broken or too small."""


class TicketError(UserError):
    """A ticket or model file is unsound, or does not fit the networks at hand."""


class DamagedError(UserError):
    """A file of a finished run is not as it was written: ``run`` is as good as not there."""

    def __init__(self, text: str, run: str = "") -> None:
        super().__init__(text)
        self.run = run


class EndedError(Exception):
    """Work was ended from outside: says by what, and how to go on."""


class PreemptedError(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): as by Ctrl-C, and soon."""


class DivergedError(Exception):
    """A loss or a score is not finite: the run ends as diverged, the search goes on."""

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(f"{what} is {value} at step {step}")
        self.step = step


def unknown(noun: str, name: str, known: Iterable[str], hint: str = "") -> ConfigError:
    """The error for a name that does not exist: the nearest match first, then all that exist."""
    names = sorted(known)
    if not names:
        return ConfigError(f"unknown {noun} {name!r}; there is none{f' ({hint})' if hint else ''}")
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    exist = ", ".join(names) + (f" ({hint})" if hint else "")
    if near:
        return ConfigError(f"unknown {noun} {name!r}; did you mean {near[0]}? Known: {exist}")
    return ConfigError(f"unknown {noun} {name!r}; choose from: {exist}")


def escape(text: object, limit: int = 120) -> str:
    """Text from a file, safe to print: control and invisible characters escaped, long text cut."""
    try:
        text = str(text)
    except RecursionError:
        text = "(nested too deeply to show)"
    safe = "".join(
        char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode()
        for char in text[: limit + 1]
    )
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
