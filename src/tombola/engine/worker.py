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
from pathlib import Path
from typing import Any

from tombola.errors import UserError
from tombola.registry import is_file_spec, look_beside, split_file_spec
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
            place = request["context"]
            specs = {place["task"], *(place.get("tasks") or {}).values()}
            told = (_in_users_file(error, spec) for spec in sorted(specs))
            blame = next(filter(None, told), None)
            tell(
                event="error",
                kind="ConfigError" if blame else "fault",
                text=blame or f"{type(error).__name__}: {error}",
                trace=traceback.format_exc(),
            )
        else:
            tell(event="done")


def _listen(requests: queue.Queue[str]) -> None:
    """Pass lines on; when the parent is gone, end at once, whatever is under way."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _in_users_file(error: BaseException, task: str) -> str | None:
    """One line that names the place in the user's task where an error came from, if it did."""
    if not is_file_spec(task):
        return None
    path = split_file_spec(task)[0].absolute()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).absolute() == path:
            return (
                f"{path.name}, line {frame.lineno}: {type(error).__name__}: {error}; "
                "mend the task and run the same command again"
            )
    return None


def _execute(request: dict[str, Any], tell: Callable[[str, int], None]) -> None:
    import torch

    from tombola.engine.stages import Context, execute
    from tombola.runs.plan import Node
    from tombola.runs.store import Store

    # The moments of a dead unit fade into denormal numbers, with which some processors train ten
    # times slower. Here alone: a user's own process keeps its arithmetic.
    torch.set_flush_denormal(True)
    context = dict(request["context"])
    context["store"] = Store(Path(context["store"]))
    context["keep_steps"] = tuple(context["keep_steps"])
    look_beside(request["path"])
    progress, expect = (functools.partial(tell, event) for event in ("progress", "expect"))
    execute(Node(**request["node"]), Context(**context, progress=progress, expect=expect))


if __name__ == "__main__":
    sys.exit(main())
