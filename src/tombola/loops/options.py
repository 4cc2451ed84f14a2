"""What can ``tombola.draw`` be asked for, and can it be done? Checked before any training."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from tombola.config.limits import ascending, distinct, integer
from tombola.config.runtime import state_hash
from tombola.config.search import MOST
from tombola.config.values import coerce, decimal_fraction, split_networks
from tombola.errors import ConfigError, unknown
from tombola.loops.book import CONTROLS, Facts, rewind_steps
from tombola.loops.capture import captured, opaque, structure
from tombola.loops.modules import Modules
from tombola.plan.setting import MAX_STEPS
from tombola.sparsity.masks import prunable


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``draw`` takes besides the function, the networks, the steps and the folder."""

    rewind: str = "10it"
    """Where the weights go back to: 500it = as they were after 500 steps, 5% = after that share of
    them, 0it = as they began."""
    rounds: int = 20
    """Levels of sparsity."""
    rate: str | float = "0.2"
    """Share of the weights left that goes each round."""
    sparsity: Sequence[str | float] = ()
    """Levels given outright, ascending, instead of rounds and rate."""
    prune: str | Sequence[str] = "all"
    """Names of the networks that are pruned."""
    exclude: Sequence[str] = ()
    """Layers that are not: first, last (of each network) or names network.parameter."""
    seeds: int | None = None
    """Training seeds 0..seeds-1; by default 1 for given networks, 3 for a function."""
    controls: str | Sequence[str] = CONTROLS
    """reinit, shuffle, or none."""
    judge: Callable[..., Any] | None = None
    """Called after each training; returns a number, or a dict of metric to number."""
    sample: Callable[..., Any] | None = None
    """Called after each training; returns images (N, C, H, W) in [-1, 1] for the report."""
    better: str | Mapping[str, str] | None = None
    """lower or higher, for metrics that Tombola does not know; by metric if they differ."""
    margin: float | Mapping[str, float] | None = None
    """How much worse still is a match, as a share of the dense mean; 0.10 unless said."""
    clock: str | None = None
    """The network whose optimizer steps are counted; by default rounds of all are."""
    optimizers: Sequence[Any] = ()
    """Objects with step() that are no torch optimizers."""
    ema: Any = None
    """Averaged copies that outlive the function: they begin anew each round, and are judged."""
    task: str = ""
    """What the training is called in tables; by default the function's name."""
    data: str = "own data"
    """What its data is called in tables."""
    key: str = ""
    """Stands for what draw cannot tell of the function: a text that changes when that does."""
    tell: Callable[[str], None] | None = None
    """Gets a line of text after each training, such as print."""


def options_of(given: Mapping[str, Any]) -> Options:
    """Options with their names and values checked; ConfigError for what draw does not take."""
    names = [field.name for field in fields(Options)]
    for name in given:
        if name not in names:
            raise ConfigError(f"draw has no option {name!r}; it has: {', '.join(names)}")
    chosen = Options(**given)
    if not isinstance(chosen.key, str):
        raise ConfigError(f"key is a {type(chosen.key).__name__}; give a text, such as lr=0.1")
    for name in ("judge", "sample", "tell"):
        value = getattr(chosen, name)
        if value is not None and not callable(value):
            raise ConfigError(f"{name} is a {type(value).__name__}; give a function")
    return chosen


def facts_of(train: Callable[..., Any], modules: Modules, steps: int, chosen: Options) -> Facts:
    """What is asked, checked; ConfigError names what is off."""
    if not callable(train):
        raise ConfigError(f"train is a {type(train).__name__}; give a function that trains")
    seeds = (1 if modules.given else 3) if chosen.seeds is None else chosen.seeds
    for name, value, high in (
        ("steps", steps, MAX_STEPS), ("rounds", chosen.rounds, MOST), ("seeds", seeds, MOST),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} got {value!r}; it takes a whole number")
        integer(name, value, low=1, high=high)
    if modules.given and seeds > 1:
        raise ConfigError(
            f"seeds={seeds} needs networks to be drawn anew for each; give networks=a function of "
            "no arguments that makes them, in the place of a dict"
        )
    if not modules.given and not arity(train):
        raise ConfigError(
            "networks is a function, but train takes no argument; let it take the networks that "
            "it is to train: def train(networks)"
        )
    decimal_fraction("rate", str(chosen.rate))
    sparsity = tuple(str(value) for value in chosen.sparsity)
    ascending("sparsity", sparsity, decimal_fraction)
    if chosen.clock is not None and chosen.clock not in modules.networks:
        raise unknown("network", chosen.clock, modules.networks, "for the clock")
    return Facts(
        task=chosen.task or _name(train),
        data=chosen.data,
        networks=",".join(_pruned(chosen)),
        rewind_steps=rewind_steps(str(chosen.rewind), steps, "train"),
        rounds=chosen.rounds,
        rate=str(chosen.rate),
        sparsity=sparsity,
        seeds=seeds,
        controls=coerce("controls", chosen.controls, "tuple"),
        steps=steps,
        asked={
            "train": _name(train),
            "networks": modules.sizes(),
            "exclude": list(chosen.exclude),
            "clock": chosen.clock,
            "ema": chosen.ema is not None,
            "judge": None if chosen.judge is None else _name(chosen.judge),
            **{key: _plain(getattr(chosen, key)) for key in ("better", "margin")},
            **({"key": chosen.key} if chosen.key else {}),
        },
        given=given_of(train, modules, chosen),
        command=f"tombola.draw({_name(train)}, steps={steps}, rewind={chosen.rewind!r})",
    )


def given_of(train: Callable[..., Any], modules: Modules, chosen: Options) -> dict[str, Any]:
    """What decides what the functions and networks do, by path: see ``capture.py``."""
    averaged = chosen.ema.values() if isinstance(chosen.ema, Mapping) else [chosen.ema]
    named = {f"average {n}": each for n, each in enumerate(averaged)} | dict(modules.networks)
    known: dict[int, str] = {}
    for name, network in named.items():
        known[id(network)] = f"network {name}"
        parts = network.modules() if isinstance(network, nn.Module) else ()
        for place, part in enumerate(parts):
            known[id(part)] = f"network {name} {place}"
            known |= {
                id(each): f"network {name} {place}.{key}"
                for key, each in (*part._parameters.items(), *part._buffers.items())
                if each is not None
            }
    roots = {"train": train} if chosen.judge is None else {"train": train, "judge": chosen.judge}
    if not modules.given:
        roots["networks"] = modules.make
    found = captured(roots, known)
    for name, network in modules.networks.items():
        found |= {f"{name}.{key}": value for key, value in structure(network).items()}
    found["start"] = f"weights {state_hash(modules.came)}"
    if torch.get_default_dtype() != torch.float32:
        found["default dtype"] = repr(torch.get_default_dtype())
    return found


def check_told(facts: Facts) -> None:
    """ConfigError for what cannot be told again, unless a key stands for it."""
    odd = opaque(facts.given)
    if odd and "key" not in facts.asked:
        raise ConfigError(
            f"draw cannot tell whether {', '.join(odd[:3])} will be the same in a later call; give "
            "key=, a text of yours that changes when it does, such as key='lr=0.1'"
        )


def _pruned(chosen: Options) -> tuple[str, ...]:
    prune = chosen.prune
    names = split_networks(prune) if isinstance(prune, str) else tuple(prune)
    distinct("prune", names)
    return names


def pool_of(modules: Modules, chosen: Options) -> dict[str, int]:
    """Names and sizes of the prunable weights."""
    pool = prunable(modules.networks, _pruned(chosen), tuple(chosen.exclude))
    return {name: leaf.numel() for name, leaf in pool.items()}


def arity(function: Callable[..., Any]) -> int:
    """How many arguments a function must be given by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in by_position and p.default is p.empty for p in parameters)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _written(function: Any) -> Any:
    """The function or class that was written down, behind what is called."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if hasattr(function, "__name__") else type(function)


def _name(function: Any) -> str:
    return str(_written(function).__name__).replace("<lambda>", "lambda")
