"""What a search comes down to once its task, data and machine are known: every number resolved."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tombola.config.registry import (
    TASKS,
    code_files,
    code_sha256,
    file_sha256,
    is_file_spec,
    split_file_spec,
)
from tombola.config.runtime import Runtime, check_precision, resolve_device, seed_everything
from tombola.config.search import PruneSection
from tombola.config.sections import Config
from tombola.config.values import parse_rewind, percent_of, split_networks
from tombola.data.batches import Batches
from tombola.data.sources import load_images, native_channels
from tombola.data.splits import Images
from tombola.errors import ConfigError, UserError
from tombola.metrics.rules import rule_of
from tombola.plan.judges import choose_classifier, choose_judge
from tombola.plan.trial import (
    Thin,
    Work,
    check_products,
    first_line,
    given_weights,
    task_options,
    thinner,
    try_criterion,
    try_task,
)
from tombola.sparsity.compact import Channels
from tombola.sparsity.cutting import Inputs
from tombola.sparsity.earlybird import pooled_masks
from tombola.sparsity.masks import kept_at, kept_count, prunable
from tombola.tasks.base import FAMILIES, Networks, Shape, Task
from tombola.training.scoring import batches_of, inputs_of
from tombola.training.trainer import Settings, Trainer

MAX_STEPS, MAX_BATCH = 1_000_000_000, 1_000_000
"""Longer trainings and larger batches are a slip of the hand."""
CHEAP_MACS = 20_000_000
"""Below so many multiply-adds an image more samples than reals are judged."""
FAKES_A_REAL = 5
"""So many samples for each real then: by few reals no number of samples makes a distance exact."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A config with everything filled in that decides what the runs are."""

    config: Config
    task: Task
    images: Images
    shape: Shape
    device: str
    """cpu or cuda: the type is part of a run's name."""
    workers: int
    threads: int
    steps: int
    """Training length N."""
    epoch_steps: int
    parameters: Mapping[str, int]
    """Network -> number of its parameters."""
    pools: Mapping[str, int]
    """Pruned networks (as --prune names them) -> number of prunable weights."""
    prunable: Mapping[str, tuple[str, ...]]
    """Pruned networks -> names of the prunable weights."""
    work: Work
    judge: Mapping[str, Any] | None
    """Name, source and hash of the judge; None where nothing is sampled."""
    classifier: Mapping[str, Any] | None
    """The same of the network that says what images are of; None without labels, or not asked."""
    watched: tuple[tuple[str, ...], ...] = ()
    """Shares of channels that early-bird seeks in one training each, as they came to the folder."""
    given_weights: str = ""
    """Hash of what a file of the user's reads into its networks; empty if that is nothing."""
    margins_first: Mapping[str, Any] = field(default_factory=dict)
    """The margins that the folder's results were first judged by; empty = those of the config."""

    def watched_with(self, compress: str) -> tuple[str, ...]:
        """The shares that are sought in the same training as one of them, itself included."""
        return next((g for g in self.watched if compress in g), self.config.prune.compress)

    def base(self, precision: str) -> dict[str, Any]:
        """The part of the config that every training run's name contains."""
        name = self.config.task.name
        task: dict[str, Any] = {"name": name, "options": task_options(self.task)}
        if is_file_spec(name):
            path, attribute = split_file_spec(name)
            task.update(name=attribute, sha256=code_sha256(path))
        if self.given_weights:
            task["weights"] = self.given_weights
        return {
            "task": task,
            "data": {"sha256": self.images.sha256, "shape": list(self.shape)},
            "steps": self.steps,
            "precision": precision,
            "ema": self.config.train.ema,
            "device": self.device,
            "threads": self.threads,
        }

    @property
    def files(self) -> dict[str, dict[str, str]]:
        """Each file of the user's -> the own modules that it imports, and their SHA-256."""
        config = self.config
        specs = (config.task.name, config.data.name, config.prune.criterion, config.judge.features)
        paths = dict.fromkeys(split_file_spec(spec)[0] for spec in specs if is_file_spec(spec))
        found = {str(path): code_files(path) for path in paths}
        return {path: {k: file_sha256(v) for k, v in own.items()} for path, own in found.items()}

    @property
    def judged_samples(self) -> int:
        """At most so many reals are judged by: as asked, else as the task says."""
        return self.config.judge.samples or self.task.judged_samples

    @property
    def reals(self) -> int:
        """By how many real images is judged."""
        return min(self.judged_samples, len(self.images.splits["judge"]))

    @property
    def fakes(self) -> int:
        """How many samples are compared with them; 0 for a task without a prior.

        As asked. Else as many as reals where their number was asked for or an image is dear, and
        otherwise FAKES_A_REAL times as many, up to the task's number: 50,000 by 10,000 reals.
        """
        judge, task = self.config.judge, self.task
        if not task.latent or judge.fakes:
            return judge.fakes if task.latent else 0
        if judge.samples or self.work.sample_macs >= CHEAP_MACS:
            return self.reals
        return min(task.judged_samples, FAKES_A_REAL * self.reals)

    @property
    def levels(self) -> tuple[str, ...]:
        """A name for every level, in order: its round, or the sparsity asked for."""
        search = self.config.search
        return search.sparsity or tuple(str(k) for k in range(1, search.rounds + 1))

    def kept(self, pool: str, level: int) -> int:
        """How many weights of a pool are kept at a level, counted from 1; level 0 keeps all."""
        n = self.pools[pool]
        if level == 0:
            return n
        if self.config.search.sparsity:
            return kept_at(n, self.config.search.sparsity[level - 1])
        return kept_count(n, self.config.search.rate, level)

    def sparsities(self, pool: str, kept: int) -> tuple[float, float]:
        """(sparsity, sparsity_all) when ``kept`` weights of a pool are left."""
        n, total = self.pools[pool], sum(self.parameters.values())
        return 1 - kept / n, 1 - (total - (n - kept)) / total

    def thin(self, pool: str, level: int) -> Thin:
        """The widest networks that have no more parameters than a level's ticket keeps.

        If even the thinnest have more, those. ConfigError for a task without an option ``width``.
        """
        gone = self.pools[pool] - self.kept(pool, level)
        return thinner(self.task, self.shape, sum(self.parameters.values()) - gone)

    def rewind_step(self, text: str) -> int:
        """``500it``, ``2ep``, ``5%`` in steps; ConfigError if the training has none after it."""
        value, unit = parse_rewind(text)
        if unit == "%":
            step = percent_of(value, self.steps)
        else:
            step = int(value) if unit == "it" else round(value * self.epoch_steps)
        if step >= self.steps:
            raise ConfigError(
                f"rewind {text} is step {step}, but the training has {self.steps} steps; "
                f"rewind to a step below {self.steps} or train longer"
            )
        return step


def check_channels(prune: PruneSection, networks: Networks, inputs: Mapping[str, Inputs]) -> None:
    """ConfigError unless every share of channels can be cut from every set of pruned networks."""
    for names in prune.networks:
        channels = Channels.of(networks, inputs, split_networks(names))
        scores = channels.scores(networks)
        for share in prune.compress:
            pooled_masks(
                scores,
                channels.by_scale,
                share,
                apart=prune.settle == "apart",
                floor=prune.floor,
                by_position=True,
            )


def task_class(spec: str) -> type[Task]:
    """The class that a task's name stands for; ConfigError if it is no task of a known family."""
    kind = TASKS.load(spec)
    if not isinstance(kind, type) or not issubclass(kind, Task):
        raise ConfigError(f"{spec} is no tombola.Task; give a class derived from it")
    if kind.family not in FAMILIES:
        raise ConfigError(
            f"task {spec} has family {kind.family!r}; set it to one of {', '.join(FAMILIES)}"
        )
    return kind


def make_task(config: Config) -> tuple[Task, dict[str, Any]]:
    """The task of a config, its preset applied, and what the preset says of the length."""
    kind = task_class(config.task.name)
    if config.task.preset == "shared" and "shared" not in kind.presets:
        raise ConfigError(
            f"task {config.task.name} has no preset 'shared'; it has: {', '.join(kind.presets)}"
        )
    preset = dict(kind.presets.get(config.task.preset, {}))
    length: dict[str, Any] = {k: preset.pop(k) for k in ("steps", "epochs") if k in preset}
    try:
        task = kind(**{**preset, **config.task.options})
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{config.task.name} cannot be made: {type(error).__name__}: {first_line(error)}; "
            "mend the task or its options"
        ) from error
    if task.family in ("vae", "gan") and task.latent < 1:
        raise ConfigError(
            f"task {config.task.name} is of family {task.family!r}, which is judged by samples, "
            f"but its latent is {task.latent}; set latent, the length of what sample() takes"
        )
    if not 1 <= task.batch_size <= MAX_BATCH:
        raise ConfigError(
            f"task option 'batch_size' is {task.batch_size}; it must be from 1 to {MAX_BATCH:,}"
        )
    return task, length


def resolve(config: Config, data_dir: Path | None, chains: int = 1) -> Setting:
    """Load task and data, try one small step, and fill in every number; UserError if any is off.

    ``chains``: how many trainings can be under way at once, which decides the default workers.
    """
    device = resolve_device(config.run.device)
    for precision in config.train.precision:
        check_precision(precision, device)
    task, length = make_task(config)
    rule_of("", config.verdict.margins)  # refuses a margin of a metric that has no rule
    channels = native_channels(config.data.name, data_dir)
    shape = task.image_shape(channels)
    images = load_images(
        config.data.name,
        shape,
        data_dir=data_dir,
        skip_broken=config.data.skip_broken,
        white=config.data.white,
    )
    if task.takes_labels() and images.labels["train"] is None:
        raise ConfigError(
            f"task {config.task.name} learns from labels, but {images.name} has none; give images "
            "with labels, or a task whose loss takes none"
        )
    networks, work = try_task(task, shape)
    if "early-bird" in config.search.method:
        check_channels(config.prune, networks, inputs_of(task, networks, shape))
    pools = {
        name: prunable(networks, split_networks(name), config.prune.exclude)
        for name in config.prune.networks
    }
    check_products(task, networks, shape, [name for pool in pools.values() for name in pool])
    if {"imp", "one-shot"} & {*config.search.method}:
        try_criterion(config.prune, task, networks, shape)
    draws = sum(turn.repeats for turn in task.turns if turn.images)
    batches = Batches(images.splits["train"], task.batch_size, 0, torch.device("cpu"))
    epoch_steps = batches.steps_per_epoch(max(1, draws))
    workers, threads = processes(config, chains)
    setting = Setting(
        config=config,
        task=task,
        images=images,
        shape=shape,
        device=device.type,
        workers=workers,
        threads=threads,
        steps=training_steps(config, length, epoch_steps),
        epoch_steps=epoch_steps,
        parameters={
            name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
        },
        pools={name: sum(p.numel() for p in pool.values()) for name, pool in pools.items()},
        prunable={name: tuple(pool) for name, pool in pools.items()},
        work=work,
        given_weights=given_weights(task, shape) if is_file_spec(config.task.name) else "",
        judge=choose_judge(task, images, config.judge.features),
        classifier=choose_classifier(task, images, config.judge.downstream, config.judge.features),
    )
    _check_arms(setting)
    return setting


def _check_arms(setting: Setting) -> None:
    """ConfigError if an arm has no step to train, or is there twice.

    That every level keeps a weight is asked where levels are planned: a dense training has none.
    """
    config = setting.config
    if len({setting.rewind_step(text) for text in config.search.rewind}) < len(
        config.search.rewind
    ):
        raise ConfigError(
            f"rewind {','.join(config.search.rewind)} names one step twice; give each step once"
        )


def training_steps(config: Config, length: Mapping[str, Any], epoch_steps: int) -> int:
    """The training length in steps: as asked, else as the preset says."""
    steps, epochs = config.train.steps, config.train.epochs
    if not steps and not epochs:
        steps, epochs = int(length.get("steps", 0)), float(length.get("epochs", 0))
    if not steps and not epochs:
        raise ConfigError(
            f"task {config.task.name} has no training length in its preset "
            f"{config.task.preset!r}; give --steps or --epochs"
        )
    steps = steps or max(1, round(epochs * epoch_steps))
    if steps > MAX_STEPS:
        raise ConfigError(
            f"the training would take {steps:g} steps; at most {MAX_STEPS:,} are allowed: "
            "give fewer --steps or --epochs"
        )
    return steps


def processes(config: Config, chains: int) -> tuple[int, int]:
    """(workers, threads of each): as many as there are chains up to the cores, which they share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = config.run.workers or max(1, min(cores or 1, chains))
    return workers, config.run.threads or max(1, (cores or 1) // workers)


def search_chains(config: Config) -> int:
    """How many trainings of a search can be under way at once: its seeds, arms and controls."""
    search = config.search
    arms = len(search.method) * len(search.rewind) * len(config.prune.networks)
    return search.seeds * arms * len(config.train.precision) * max(1, len(search.controls))


def seconds_per_step(setting: Setting, budget_seconds: float = 1.0) -> float:
    """Measured seconds of one training step on throwaway networks (for the dry run's estimate)."""
    runtime = Runtime.open(setting.device, setting.config.train.precision[0], setting.threads)
    seed_everything(0, "trial")
    networks = setting.task.networks(setting.shape)
    batches = batches_of(setting.task, setting.images, 0, runtime.device)
    trainer = Trainer(
        setting.task,
        networks,
        batches,
        Settings(runtime=runtime, seed=0, total_steps=setting.steps),
    )
    trainer.advance()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < budget_seconds:
        trainer.advance()
        count += 1
    return (time.perf_counter() - start) / count
