"""Which metrics are judged, which way each is better, and how much worse still is a match."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from tombola.config.values import parse_margin
from tombola.errors import ConfigError, unknown

CURVE_ONLY = (
    "discriminator_loss",
    "denoising_loss",
    "kl",
    "active_units",
    "confident",
    "early_stopping_step",
)
"""Metrics that are drawn but never judged; so is any metric without a rule."""
PRIMARY_ORDER = ("fid", "fcd", "reconstruction_error", "elbo")
"""Kinds of metrics that decide a search, the first that was measured."""
_JUDGE_NAME = re.compile(r"(fcd|kcd|cs)-.+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Rule:
    """Which way a metric is better and how much worse still counts as a match."""

    better: Literal["lower", "higher"]
    margin: float
    share: bool = True
    """Whether the margin is a share of the absolute dense mean; else in the metric's own unit."""


_RULES: dict[str, Rule] = {
    "reconstruction_error": Rule("lower", 0.05),
    "elbo": Rule("higher", 0.01),
    **{kind: Rule("lower", 0.10) for kind in ("fid", "fcd", "kid", "kcd")},
    **{kind: Rule("higher", 0.05) for kind in ("is", "cs")},
    "accuracy": Rule("higher", 0.01, share=False),  # a fraction: 0.01 is one point
    **{
        kind: Rule("higher", 0.02, share=False)
        for kind in ("precision", "recall", "density", "coverage")
    },
}


def is_beyond(value: float, dense: float, rule: Rule) -> bool:
    """Whether a value is worse than a dense one by more than the margin.

    A margin that is a share is one of the ratio where both are positive, log(worse / better) >
    log(1 + margin), else of the absolute dense value.
    """
    better, worse = (dense, value) if rule.better == "lower" else (value, dense)
    if not rule.share:
        return worse - better > rule.margin
    if min(better, worse) > 0:
        return worse > better * (1 + rule.margin)
    return worse - better > rule.margin * abs(dense)


def register_rule(kind: str, rule: Rule) -> None:
    """Give a metric of one's own a direction and a margin; ConfigError if it has others."""
    if _RULES.get(kind, rule) != rule:
        raise ConfigError(f"metric {kind!r} has a rule already; choose another name")
    _RULES[kind] = rule


_OWN: ContextVar[Mapping[str, Rule]] = ContextVar("rules of one search")


@contextlib.contextmanager
def own_rules(rules: Mapping[str, Rule]) -> Iterator[None]:
    """Within it the metrics of one search have these rules besides; another search has its own."""
    token = _OWN.set(rules)
    try:
        yield
    finally:
        _OWN.reset(token)


def _known() -> dict[str, Rule]:
    """Every rule there is here: by kind, or by the name of a metric of one's own."""
    return {**_RULES, **_OWN.get({})}


def metric_kind(metric: str) -> str:
    """``fcd-mnist-1a2b3c4d`` -> ``fcd`` (kcd, cs alike); any other name is its own kind."""
    named = _JUDGE_NAME.fullmatch(metric)
    return named[1] if named else metric


_WORDS = {
    "elbo": "ELBO",
    "fid": "FID",
    "kid": "KID",
    "is": "inception score",
    "fcd": "Frechet classifier distance",
    "kcd": "kernel classifier distance",
    "cs": "classifier score",
    "kl": "KL divergence",
    "accuracy": "downstream accuracy",
    "confident": "share of clear samples",
    "early_stopping_step": "early-stopping step",
}


def metric_words(metric: str) -> str:
    """A metric's name in words, without the hash of its judge: for sentences."""
    kind = metric_kind(metric)
    return _WORDS.get(kind, kind.replace("_", " "))


def by_importance(metric: str) -> tuple[int, str]:
    """Sort key: the metric that decides a search first, then by name."""
    kind = metric_kind(metric)
    order = PRIMARY_ORDER.index(kind) if kind in PRIMARY_ORDER else len(PRIMARY_ORDER)
    return order, metric


def fixed_margins(margins: Mapping[str, float] | None = None) -> dict[str, dict[str, Any]]:
    """Every rule there is, by kind or name, as config.json keeps it before the first training.

    ``margins`` override as in ``rule_of``, with its ConfigErrors. ``share``: of the dense mean.
    """
    names = dict.fromkeys((*_known(), *(margins or {})))
    rules = {name: rule_of(name, margins) for name in names}
    return {
        name: {"margin": rule.margin, "share": rule.share, "better": rule.better}
        for name, rule in rules.items()
        if rule is not None
    }


def changed_margins(
    first: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Kind of metric -> ``from 10% to 2%`` where its margin is another than the first one."""

    def words(rule: Mapping[str, Any]) -> str:
        return f"{100 * rule['margin']:g}%" if rule.get("share") else f"{rule['margin']:g}"

    return {
        name: f"from {words(first[name])} to {words(rule)}"
        for name, rule in now.items()
        if name in first and rule["margin"] != first[name]["margin"]
    }


def rule_of(metric: str, margins: Mapping[str, float] | None = None) -> Rule | None:
    """The rule of a metric, its margin overridden by kind or name; None if it is curve only.

    Margins are in the unit of the table: a share of the dense mean, or the metric's own unit.
    ConfigError for a margin that is not positive, or of a metric that has no rule.
    """
    for name, margin in (margins or {}).items():
        if metric_kind(name) not in _known():
            raise unknown("metric with a margin", name, _known())
        parse_margin(name, margin)
    kind = metric_kind(metric)
    rule = _known().get(kind)
    if rule is None or not margins:
        return rule
    margin = margins.get(metric, margins.get(kind, rule.margin))
    return Rule(rule.better, parse_margin(metric, margin), rule.share)
