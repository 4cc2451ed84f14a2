"""What is told of a training of one's own: numbers with a direction, and images."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tombola.config.atomic import write_atomic
from tombola.errors import ConfigError
from tombola.metrics.rules import rule_of
from tombola.store.tables import DIVERGED, NOT_RUN

SHARE = 0.10
"""Margin of a metric that has no rule of its own, as a share of the dense mean, unless given."""
MOST_ROWS = 10_000
"""Values kept of the way; beyond that every other one is left out."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)
_EVENTS = (DIVERGED, NOT_RUN)


def save_images(path: Path, images: Any) -> tuple[int, ...]:
    """Write the first 32 of a batch of images as one PNG of 8 columns; returns (C, H, W).

    ``images``: (N, C, H, W), C 1 or 3, uint8 or float in [-1, 1]. ConfigError for anything else.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(
            f"sample gave {what}; let it return a tensor (N, C, H, W) with C 1 or 3, "
            "uint8 or float in [-1, 1]"
        )
    from tombola.data.batches import to_uint8
    from tombola.data.grid import GRID_COLUMNS, GRID_ROWS, save_grid

    shown = images[: GRID_COLUMNS * GRID_ROWS].detach().cpu()
    if shown.is_floating_point():
        shown = to_uint8(shown.nan_to_num())
    picture = io.BytesIO()
    save_grid(picture, shown.byte())
    write_atomic(path, picture.getvalue())
    return tuple(images.shape[1:])


def surroundings(networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The fields of a ``Round`` on where it was trained."""
    leaves = (p for network in networks.values() for p in network.parameters())
    device = next((leaf.device.type for leaf in leaves), "")
    return {"device": device, "threads": torch.get_num_threads()}


def judged_by(clock: Any) -> str:
    """What is judged, where it is not what the last step left; empty where it is."""
    kinds = ", ".join(clock.judged)
    return f"judged with the evaluation weights of {kinds}" if kinds else ""


def check_rule(metric: str, better: str | None, margin: float | None) -> dict[str, Any] | None:
    """The rule to be kept with a metric; None where the contract has one.

    ``better``: lower or higher; ``margin``: a share of the dense mean. ConfigError if a metric that
    has no rule comes without a direction, or one that has comes with another.
    """
    known, share = rule_of(metric), SHARE if margin is None else margin
    if not (isinstance(share, int | float) and share > 0 and math.isfinite(share)):
        raise ConfigError(f"margin of {metric!r} is {margin!r}; give a share of the dense mean > 0")
    own = {"better": better, "margin": float(share)}
    if known is not None:
        same = known.share and margin == known.margin
        if better not in (None, known.better) or not (margin is None or same):
            raise ConfigError(
                f"metric {metric!r} has a rule of its own ({known.better} is better); leave better "
                "and margin out, or choose another name"
            )
        return None
    if better not in ("lower", "higher"):
        raise ConfigError(
            f"metric {metric!r} is not one that Tombola knows, and better is {better!r}; "
            'say better="lower" or better="higher"'
        )
    return own


class Measured:
    """What a training told of itself: for each metric the last value, and the way there."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int | None, int]] = {}
        self._rules: dict[str, dict[str, Any]] = {}
        self._log: list[dict[str, Any]] = []

    def add(
        self,
        metric: str,
        value: Any,
        n: int | None,
        better: str | None,
        margin: float | None,
        *,
        step: int,
    ) -> None:
        """Take in a value; ConfigError for what is no metric's name, no number or no count."""
        if not isinstance(metric, str) or not _NAME.fullmatch(metric) or metric in _EVENTS:
            raise ConfigError(
                f"a metric's name is {metric!r}; give letters, digits, dashes and underscores"
            )
        try:
            number = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"metric {metric!r} got {type(value).__name__} ({error}); give one number"
            ) from error
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ConfigError(f"n of metric {metric!r} is {n!r}; give a count of images, or None")
        if metric not in self._rules or better is not None or margin is not None:
            rule = check_rule(metric, better, margin)
            if rule is not None and self._rules.setdefault(metric, rule) != rule:
                raise ConfigError(f"metric {metric!r} got another rule before; give one rule")
        self._last[metric] = (number, n, step)
        shown = number if math.isfinite(number) else str(number)
        self._log.append({"step": step, "metric": metric, "value": shown})
        if len(self._log) > MOST_ROWS:
            del self._log[::2]

    def bad(self) -> str:
        """Which last value is not finite, in words; empty if none."""
        names = [name for name, (value, _, _) in self._last.items() if not math.isfinite(value)]
        return f"not finite: {', '.join(names)}" if names else ""

    def told(self) -> dict[str, Any]:
        """The fields of a ``Round`` that it fills; values that are not finite are left out."""
        sound = {k: each for k, each in self._last.items() if math.isfinite(each[0])}
        return {
            "values": {name: value for name, (value, _, _) in sound.items()},
            "n": {name: n for name, (_, n, _) in sound.items()},
            "at": {name: step for name, (_, _, step) in sound.items()},
            "rules": self._rules,
            "log": self._log,
        }
