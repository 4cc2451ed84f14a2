"""Faults at chosen moments of any Python process that finds this module on its path.

TOMBOLA_FAULT = "<event>:<n>:<what>": at the n-th event of a process, either ``kill`` its whole
process group (SIGKILL) or raise ``full`` (no space left on device) or ``readonly``. Events: rename
(every atomic write ends with one), step (an optimizer step), judge (a network made images).
"""

import errno
import os
import signal
import sys

_fault = os.environ.get("TOMBOLA_FAULT")


def _strike(what):
    if what == "kill":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    code = {"full": errno.ENOSPC, "readonly": errno.EROFS}[what]
    raise OSError(code, os.strerror(code), "somewhere")


if _fault:
    _event, _n, _what = _fault.split(":")
    _left = [int(_n)]

    def _hook(event, args):
        if event == {"rename": "os.rename"}.get(_event, f"toy.{_event}"):
            # Only writes of the search count, not those of the interpreter's own caches.
            if event == "os.rename" and "store" not in str(args[1]):
                return
            _left[0] -= 1
            if _left[0] == 0:
                _strike(_what)

    sys.addaudithook(_hook)
