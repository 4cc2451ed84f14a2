"""What becomes of words that are no answer, where their stream is closed, full or gone?

They are dropped: no search ends because nobody can read how it goes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def open_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    The next file that is opened would have their number, and get what is meant for them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def careful(stream: Any) -> Any:
    """A text stream that drops what it cannot write, and all after it; of None it drops all."""
    return stream if isinstance(stream, _Careful) else _Careful(stream)


class _Nothing(io.TextIOBase):
    """A stream that takes everything and keeps nothing."""

    def write(self, text: str) -> int:
        """Take a text."""
        return len(text)


class _Careful:
    """A stream of which a write may fail once; all else of it is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = _Nothing() if stream is None else stream

    def write(self, text: str) -> int:
        """Write, or drop."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Any:
        failed = self._stream
        try:
            yield
        except (OSError, ValueError):  # the latter: closed by somebody
            self._stream = _Nothing()
            if failed is sys.__stderr__:  # what it holds back would fail again when Python ends
                _lead_nowhere(failed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _lead_nowhere(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
