"""Searches and scripts of a test in its own process, without starting Python and torch again."""

from __future__ import annotations

import atexit
import os
import random
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from tombola.config.registry import EXECUTORS
from tombola.engine.executors.protocol import Serial
from tombola.loops import attaching, orders, running


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of this test run here; see ``Restored`` for what they change."""
    monkeypatch.setitem(EXECUTORS._entries, "local", Serial)


class Restored:
    """Within the block the global generators may be changed."""

    def __enter__(self) -> None:
        self.states = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def __exit__(self, *details: object) -> None:
        torch.set_rng_state(self.states[0])
        np.random.set_state(self.states[1])
        random.setstate(self.states[2])


def script_here(words: Sequence[str], part: Path, log: Path, lock: int) -> int:
    """What ``running.launch`` does, without starting Python and torch again for every round."""
    path, arguments = words[1], list(words[1:])
    kept = sys.argv, dict(os.environ)
    sys.argv, os.environ[orders.VARIABLE] = arguments, str(part.resolve())
    code = 0
    with log.open("w", encoding="utf-8") as out, redirect_stdout(out), redirect_stderr(out):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            sys.argv = kept[0]
            os.environ.clear()
            os.environ.update(kept[1])
            end_script(code)
    return code


def end_script(code: int) -> None:
    """What the end of the script's process does: close what it attached, which is then gone."""
    attached, attaching._active = attaching._active, None
    if attached is None or attached._work is None:
        return
    work = attached._work
    atexit.unregister(work.close)
    signal.signal(signal.SIGTERM, work._before)
    if code:
        work.clock.close()
        return
    try:
        work.close()
    except Exception:
        traceback.print_exc()


def use_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of ``tombola run`` run in this process; see ``Restored`` for what they change."""
    monkeypatch.setattr(running, "launch", script_here)
