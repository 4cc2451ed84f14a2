"""What do users, scripts and files rely on? A change here is a change of the contract.

Each list is written out, not derived: an addition or a removal is made on purpose, with a line in
CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys

import pytest

import tombola
from tombola.cli import command_line as cli
from tombola.cli.parser import build_parser
from tombola.config import registry
from tombola.config import sections as config

PUBLIC = {
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
}

COMMON = {
    "--config",
    "--data",
    "--data-dir",
    "--device",
    "--executor",
    "--dry-run",
    "--epochs",
    "--json",
    "--keep",
    "--out",
    "--precision",
    "--preset",
    "--seeds",
    "--set",
    "--skip-broken",
    "--steps",
    "--threads",
    "--workers",
    "TASK",
}
SEARCH = {
    "--compress", "--controls", "--controls-at", "--draws", "--method", "--prune", "--rate",
    "--anyway", "--rewind", "--round-to", "--rounds", "--sparsity", "--stop-after",
}  # fmt: skip
COMMANDS = {
    "find": COMMON | SEARCH | {"--transfer-to"},
    "transfer": COMMON | {"TICKET", "--matrix", "--rounds", "--rate", "--sparsity", "--rewind"},
    "train": COMMON | {"--ticket", "--compact"},
    "export": {"FILE", "--to", "--out", "--task", "--json"},
    "sample": {"FILE", "--n", "--out", "--seed", "--task", "--data", "--data-dir", "--json"},
    "inspect": {"FILE", "--diff", "--json"},
    "publish": {"FILE", "hub:USER/NAME", "--private", "--license", "--dry-run", "--json"},
    "verify": {"FILE", "--rebuild", "--data", "--data-dir", "--task", "--json"},
    "report": {"DIR", "--margin", "--json"},
    "verdict": {
        "FILE.csv",
        "--metric",
        "--better",
        "--margin",
        "--dense",
        "--ticket",
        "--controls",
        "--json",
    },
    "figure": {"DIR", "--images", "--sparsity", "--readme", "--json"},
    "list": {"{tasks,data,methods,metrics}", "--json"},
    "doctor": {"--data-dir", "--json"},
    "status": {"DIR", "--watch", "--json"},
    "reproduce": {"NAME", "--scale", "--table", "--kept", "--data-dir", "--json"},
    "run": {
        "--controls",
        "--dry-run",
        "--exclude",
        "--json",
        "--name",
        "--out",
        "--prune",
        "--rate",
        "--rewind",
        "--rounds",
        "--same-script",
        "--seeds",
        "--sparsity",
        "--steps",
    },
}
TO_COME: set[str] = set()

SECTIONS = {
    "task": {"name", "preset", "options"},
    "data": {"name", "skip_broken", "white"},
    "train": {"steps", "epochs", "precision", "ema"},
    "prune": {
        "networks",
        "exclude",
        "criterion",
        "score_batches",
        "score_draws",
        "compress",
        "settle",
        "rule",
        "delta",
        "draw_epochs",
        "scale_l1",
        "floor",
        "round_to",
    },
    "search": {
        "method",
        "rounds",
        "rate",
        "sparsity",
        "rewind",
        "optimizer_at_rewind",
        "controls",
        "controls_at",
        "draws",
        "stop_after",
        "anyway",
        "seeds",
    },
    "rewind": {"schedule"},
    "gates": {"length"},
    "gradual": {"length"},
    "judge": {
        "samples",
        "fakes",
        "validation_samples",
        "sampling_seeds",
        "steps",
        "downstream",
        "features",
    },
    "verdict": {"margins"},
    "run": {"workers", "threads", "device", "keep", "executor"},
}

TASK = {
    "batch_size",
    "betas",
    "channels",
    "constrain",
    "cosine",
    "family",
    "image_shape",
    "judge_loss",
    "judged_samples",
    "latent",
    "latents",
    "learning_rate",
    "loss",
    "networks",
    "optimizer",
    "options",
    "presets",
    "reconstruct",
    "role",
    "roles",
    "sample",
    "schedule",
    "size",
    "turns",
    "weight_decay",
    "takes_labels",
    "turn_loss",
}
TURN = ["name", "learns", "repeats", "images"]

REGISTERED = {
    "TASKS": {
        "linear-ae",
        "conv-ae",
        "vae",
        "beta-vae",
        "resnet-vae",
        "dcgan",
        "sngan",
        "wgan",
        "wgan-gp",
        "resnet-dcgan",
        "ddpm",
    },
    "DATA": {"digits", "mnist", "cifar10", "celeba"},
    "FEATURES": set(),
    "CRITERIA": {"magnitude", "random"},
    "EXECUTORS": {"local", "serial"},
}


def subparsers() -> dict[str, argparse.ArgumentParser]:
    parser, _ = build_parser()
    (sub,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(sub.choices)


def words(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a command, and its places as its help names them."""
    found: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if action.choices is not None and not action.option_strings:
            found.add("{" + ",".join(action.choices) + "}")
        else:
            found.update(action.option_strings or [str(action.metavar or action.dest)])
    return found


def parameters(function: object) -> list[str]:
    assert callable(function)
    return [str(p).partition(":")[0] for p in inspect.signature(function).parameters.values()]


def test_the_names_of_the_package() -> None:
    assert set(tombola.__all__) == PUBLIC
    assert dir(tombola) == tombola.__all__


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(tombola, name)
    assert isinstance(value, str) or value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compakt'"):
        _ = tombola.compakt


def test_the_kinds_of_user_errors() -> None:
    for kind in (tombola.ConfigError, tombola.DataError, tombola.TicketError):
        assert kind.__bases__ == (tombola.UserError,)
    assert tombola.UserError.__bases__ == (Exception,)


def test_the_functions_take_what_they_took() -> None:
    expected = "task data data_dir out settings progress **options"
    assert parameters(tombola.find) == expected.split()
    assert parameters(tombola.draw) == ["train", "networks", "steps", "out", "**options"]
    expected = "networks ema optimizers clock judge sample"
    assert parameters(tombola.attach) == expected.split()
    assert parameters(tombola.record) == ["metric", "value", "n", "better", "margin"]
    assert parameters(tombola.load) == ["path"]
    assert parameters(tombola.load_model) == ["path", "task"]
    assert parameters(tombola.save_ticket) == ["path", "ticket"]
    assert parameters(tombola.verdict) == [
        "rows_or_path", "metric", "better", "margin", "dense", "ticket", "controls",
    ]  # fmt: skip
    assert parameters(tombola.Ticket.start) == ["self", "networks"]
    assert parameters(tombola.Ticket.enforce) == ["self", "networks", "optimizers"]


def test_what_a_task_of_a_users_own_may_define() -> None:
    names = {name for name in vars(tombola.Task) if not name.startswith("_")}
    assert names == TASK
    assert [field.name for field in dataclasses.fields(tombola.Turn)] == TURN


def test_the_commands() -> None:
    assert subparsers().keys() == COMMANDS.keys()
    assert cli.TO_COME.keys() == TO_COME


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_words_of_a_command(name: str) -> None:
    assert words(subparsers()[name]) == COMMANDS[name]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_word_of_a_command_has_help_or_speaks_for_itself(name: str) -> None:
    plain = {"FILE", "DIR", "N", "S", None}
    silent = [
        action.dest
        for action in subparsers()[name]._actions
        if not action.help and action.metavar not in plain and not action.choices
    ]
    assert silent == []


@pytest.mark.parametrize("name", sorted(TO_COME))
def test_a_command_to_come_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "anything"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: command '{name}' is not built yet")
    assert error.count("\n") == 1


def test_the_exit_codes() -> None:
    assert (cli.DONE, cli.FAULT, cli.USER) == (0, 1, 2)
    assert (cli.INTERRUPTED, cli.PREEMPTED) == (130, 143)


def test_the_keys_of_a_config() -> None:
    found = {
        section.name: {field.name for field in dataclasses.fields(kind)}
        for section, kind in zip(
            dataclasses.fields(config.Config), config._SECTIONS.values(), strict=True
        )
    }
    assert found == SECTIONS


def test_every_key_of_a_config_is_described_where_it_stands() -> None:
    for section in config._SECTIONS.values():
        source = inspect.getsource(sys.modules[section.__module__])
        for field in dataclasses.fields(section):
            after = source.partition(f"class {section.__name__}")[2].partition(f"    {field.name}:")
            assert after[2].partition("\n")[2].lstrip().startswith('"""'), field.name


def test_the_registered_names() -> None:
    found = {
        name: set(table.names())
        for name, table in vars(registry).items()
        if isinstance(table, registry.Registry)
    }
    assert found == REGISTERED
