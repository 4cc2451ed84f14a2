"""Which turns make one step? Whole rounds in a sequence of turns, told apart as they come.

A turn is one step of one optimizer; a round, the step of design 3.3, is every optimizer's turn
once, one of them perhaps several times (n_critic). Optimizers that begin at different times make no
common round: the first one would last until all are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from tombola.errors import ConfigError


class Rounds:
    """Whole rounds in a sequence of turns; a turn is one step of one optimizer, given by a key.

    A round begins with the key that began the first one. The first round ends where that key comes
    again after all ``expected`` networks had theirs; it tells who is last and how often in a row,
    so that the end of later rounds is known at once.
    """

    def __init__(self, expected: Iterable[str]) -> None:
        self.expected = frozenset(expected)
        self.seen: set[str] = set()
        self.done = 0
        self.open = False
        """Whether a round has begun that is not known to be over."""
        self.turns = 0
        """Turns of the open round."""
        self.late: frozenset[str] = frozenset()
        """Networks with an optimizer that began earlier or later than the others did."""
        self._first: Hashable = None
        self._last: tuple[Hashable, int] | None = None
        self._key: Hashable = None
        self._run = 0
        self._counts: Counter[Hashable] = Counter()
        self._usual: Counter[Hashable] = Counter()
        """Turns by key of the first round."""
        self._names: dict[Hashable, frozenset[str]] = {}

    @property
    def missing(self) -> list[str]:
        """Expected networks that had no turn yet."""
        return sorted(self.expected - self.seen)

    def over_before(self, key: Hashable) -> bool:
        """Whether the open round is over, as the turn that is about to begin shows."""
        if not self.open or key != self._first:
            return False
        return self._key != key if self._last is not None else self.expected <= self.seen

    def add(self, key: Hashable, networks: Iterable[str]) -> bool:
        """Note a turn; True if the round is known to end with it."""
        self._names[key] = frozenset(networks)
        if not self.open:
            if self._last is not None and key not in self._usual:
                self.late = self._names[key]
            self.open, self.turns, self._run = True, 0, 0
            self._counts = Counter()
        if self._first is None:
            self._first = key
        self._run = self._run + 1 if self.turns and key == self._key else 1
        self._key = key
        self.turns += 1
        self._counts[key] += 1
        self.seen |= self._names[key]
        return self._last is not None and self._last == (key, self._run)

    def end(self) -> None:
        """The open round is over."""
        if self._last is None:
            self._last = (self._key, self._run)
            self._usual = self._counts
        elif self.done == 1:
            self._compare()
        self.open = False
        self.done += 1

    def _compare(self) -> None:
        """Who had more turns in the first round than in the second, while another had as many.

        Where all had more, as with lazy regularisation, they began together.
        """
        now, both = self._counts, self._usual.keys() & self._counts.keys()
        if any(self._usual[key] == now[key] for key in both):
            more = (self._names[key] for key in both if self._usual[key] > now[key])
            self.late = frozenset[str]().union(*more)

    def check(self, patience: int) -> None:
        """ConfigError if optimizers begin at different times, so that steps are not the loop's.

        Also if one of a network did not begin after so many turns.
        """
        if self.late:
            raise ConfigError(
                f"an optimizer of {', '.join(sorted(self.late))} began earlier or later than the "
                "others, so that a step of all is not a turn of the loop (a gradient scaler may "
                "have skipped first steps); say whose steps are counted, such as "
                f"clock={sorted(self.late)[0]!r}"
            )
        if self.missing and self.turns > patience:
            raise ConfigError(
                f"after {self.turns} optimizer steps, none was of network "
                f"{', '.join(self.missing)}; leave it out of the networks, or call "
                "requires_grad_(False) on it before; if it joins later, say whose steps are "
                f"counted, such as clock={sorted(self.seen)[0]!r}"
            )

    def whole(self) -> bool:
        """Whether the open round can be one that was not cut off, when the loop has ended."""
        if not self.open:
            return False
        return self.expected <= self.seen if self._last is None else self._key == self._last[0]
