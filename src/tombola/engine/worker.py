"""A process that carries out runs: one JSON line in is one run, JSON lines out tell how it goes.

Started as ``python -P -m tombola.engine.worker``, so that it runs no code of the folder that
somebody happens to work in. It ends when its input ends, so that no worker
outlives the search that started it.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from tombola.errors import UserError
from tombola.registry import look_beside
from tombola.streams import careful


def main() -> int:
    """Read requests until the input ends; returns the exit code."""
    # Ctrl-C goes to the whole group: the parent tells its workers when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        try:
            _execute(request, lambda event, steps: tell(event=event, steps=steps))
        except UserError as error:
            run = getattr(error, "run", "")
            tell(event="error", kind=type(error).__name__, text=str(error), run=run)
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            tell(
                event="error",
                kind="OSError",
                text=f"{name}{error.strerror or error}",
                code=error.errno,
                trace=traceback.format_exc(),
            )
        except BaseException as error:
            tell(
                event="error",
                kind="fault",
                text=f"{type(error).__name__}: {error}",
                trace=traceback.format_exc(),
            )
        else:
            tell(event="done")


def _listen(requests: queue.Queue[str]) -> None:
    """Pass lines on; when the parent is gone, end at once, whatever is under way."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _execute(request: dict[str, Any], tell: Callable[[str, int], None]) -> None:
    import torch

    from tombola.engine.context import open_context
    from tombola.engine.executor import blame_users_file
    from tombola.engine.stages import execute
    from tombola.runs.plan import Node

    # The moments of a dead unit fade into denormal numbers, with which some processors train ten
    # times slower. Here alone: a user's own process keeps its arithmetic.
    torch.set_flush_denormal(True)
    look_beside(request["path"])
    progress, expect = (functools.partial(tell, event) for event in ("progress", "expect"))
    with blame_users_file(request["context"]):
        execute(Node(**request["node"]), open_context(request["context"], progress, expect))


if __name__ == "__main__":
    sys.exit(main())
