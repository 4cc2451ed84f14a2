"""Who hears what ``tombola.record`` says in this process, while ``tombola.draw`` trains?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Hear = Callable[..., None]
_hearing: list[Hear] = []


@contextlib.contextmanager
def listening(hear: Hear) -> Iterator[None]:
    """Within it ``hear`` gets what ``tombola.record`` is given."""
    _hearing.append(hear)
    try:
        yield
    finally:
        _hearing.pop()


def current() -> Hear | None:
    """Who listens; None outside of ``tombola.draw``."""
    return _hearing[-1] if _hearing else None
