"""How long is a mask learnt, before the ticket is trained? The sections of gates and gradual.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tombola.config.limits import number

LEARNED = ("gates", "gradual")
"""Methods whose masks are learnt in a training of their own; each has a section of its name."""
LONGEST = 1000.0
"""A longer search than this is a slip of the hand."""


@dataclass(frozen=True, kw_only=True)
class GatesSection:
    """``gates.*``: weights and a gate for each of them, learnt together."""

    length: float = 2.0
    """Steps of a search, as a multiple of the N - k that a ticket is trained for."""

    def __post_init__(self) -> None:
        number("gates.length", self.length, low=0.0, high=LONGEST, open_low=True)


@dataclass(frozen=True, kw_only=True)
class GradualSection:
    """``gradual.*``: a training that prunes by magnitude on its way."""

    length: float = 2.0
    """Steps of a search, as a multiple of the N - k that a ticket is trained for."""

    def __post_init__(self) -> None:
        number("gradual.length", self.length, low=0.0, high=LONGEST, open_low=True)
