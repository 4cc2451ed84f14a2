"""Tombola draws winning lottery tickets from deep generative models.

The public names are imported when first used, so that ``import tombola`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tombola.config.version import VERSION
from tombola.errors import ConfigError, DataError, TicketError, UserError

if TYPE_CHECKING:
    from tombola.api import find
    from tombola.engine.models import load_model
    from tombola.loops.attaching import attach, record
    from tombola.loops.drawing import draw
    from tombola.report.judging import verdict
    from tombola.tasks.base import Task, Turn
    from tombola.tickets.compact import compact
    from tombola.tickets.ticket import Ticket, load, save_ticket

__version__ = VERSION

_PUBLIC = {
    "Task": "tombola.tasks.base",
    "Ticket": "tombola.tickets.ticket",
    "Turn": "tombola.tasks.base",
    "attach": "tombola.loops.attaching",
    "compact": "tombola.tickets.compact",
    "draw": "tombola.loops.drawing",
    "find": "tombola.api",
    "load": "tombola.tickets.ticket",
    "load_model": "tombola.engine.models",
    "record": "tombola.loops.attaching",
    "save_ticket": "tombola.tickets.ticket",
    "verdict": "tombola.report.judging",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Task",
    "Ticket",
    "TicketError",
    "Turn",
    "UserError",
    "__version__",
    "attach",
    "compact",
    "draw",
    "find",
    "load",
    "load_model",
    "record",
    "save_ticket",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tombola' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
