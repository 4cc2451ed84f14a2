"""Which Tombola is this? Read by whatever writes it down, so that nothing imports the package."""

from __future__ import annotations

VERSION = "0.1.0"
