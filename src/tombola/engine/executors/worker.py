"""A process that carries out runs: one JSON line in is one run, JSON lines out tell how it goes.

Started as ``python -P -m tombola.engine.executors.worker``, so that it runs no code of the folder
that somebody happens to work in. It ends when its input ends, so that no worker outlives the search
that started it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from tombola.config.registry import look_beside
from tombola.config.streams import careful
from tombola.engine.executors.losses import ENDED, describe_loss
from tombola.errors import EndedError, UserError


class Ending:
    """Whether this process was asked to end (SIGTERM): a training saves what it has and ends.

    What is no training goes on to its end, which is near; idle, the process ends at once.
    """

    def __init__(self) -> None:
        self.asked, self.idle = False, True
        signal.signal(signal.SIGTERM, self._ask)

    def __call__(self) -> bool:
        """Whether to end."""
        return self.asked

    def rest(self) -> None:
        """A run is over."""
        self.idle = True
        if self.asked:
            os._exit(ENDED)

    def _ask(self, *_: object) -> None:
        self.asked = True
        if self.idle:
            os._exit(ENDED)


def main() -> int:
    """Read requests until the input ends; returns the exit code."""
    # Ctrl-C goes to the whole group: the parent tells its workers when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending = Ending()
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    channel.write("\n")  # whatever was printed while Python started is a line of its own
    # What a user's task prints must not get between our lines, nor end a run where it cannot be.
    os.dup2(2, 1)
    sys.stdout, sys.stderr = careful(sys.stdout), careful(sys.stderr)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()

    def tell(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    while True:
        request = json.loads(requests.get())
        ending.idle = False
        try:
            _execute(request, tell, ending)
        except EndedError:
            os._exit(ENDED)
        except BaseException as error:
            tell(**_describe(error))
        else:
            tell(event="done")
        ending.rest()


def _describe(error: BaseException) -> dict[str, Any]:
    """The message on what ended a run."""
    lost = describe_loss(error)
    if lost:
        return {"event": "lost", "text": lost}
    if isinstance(error, UserError):
        run = getattr(error, "run", "")
        return {"event": "error", "kind": type(error).__name__, "text": str(error), "run": run}
    trace = traceback.format_exc()
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return {
            "event": "error",
            "kind": "OSError",
            "text": f"{name}{error.strerror or error}",
            "code": error.errno,
            "trace": trace,
        }
    text = f"{type(error).__name__}: {error}"
    return {"event": "error", "kind": "fault", "text": text, "trace": trace}


def _listen(requests: queue.Queue[str]) -> None:
    """Pass lines on; when the parent is gone, end at once, whatever is under way."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _execute(request: dict[str, Any], tell: Callable[..., None], ending: Ending) -> None:
    import torch

    from tombola.engine.context import open_context
    from tombola.engine.executors.protocol import blame_users_file
    from tombola.engine.stages import execute
    from tombola.store.graph import Node

    # The moments of a dead unit fade into denormal numbers, with which some processors train ten
    # times slower. Here alone: a user's own process keeps its arithmetic.
    torch.set_flush_denormal(True)
    look_beside(request["path"])
    tell(event="begun")
    context = open_context(
        request["context"],
        progress=lambda steps: tell(event="progress", steps=steps),
        expect=lambda steps: tell(event="expect", steps=steps),
        ending=ending,
    )
    with blame_users_file(request["context"]):
        execute(Node(**request["node"]), context)


if __name__ == "__main__":
    sys.exit(main())
