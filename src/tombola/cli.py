"""The command line: parse, call, print, exit. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import tombola
from tombola.errors import ConfigError, UserError, unknown
from tombola.hub import is_hub, resolve

DONE, FAULT, USER, INTERRUPTED = 0, 1, 2, 130
TO_COME = {
    "reproduce": "later",
}
"""Commands of the contract that are not built yet, and the part that brings them."""
_NOT_BUILT = {
    "--cluster": "later",
}
_TRAVEL = frozenset({"transfer", "run", "publish"})
"""Commands whose function is in travel.py; that of the others is in commands.py."""
_USER_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EISDIR}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, so that they are one line like all others."""

    def error(self, message: str) -> NoReturn:
        hint = f"{self.prog} --help lists what is allowed"
        raise ConfigError(f"{message}; {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of the contract (0, 1, 2 or 130)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(arguments)
    except UserError as error:
        return _fail(str(error), USER)
    except KeyboardInterrupt:
        line = shlex.join(["tombola", *arguments])
        print(f"\ninterrupted; nothing is lost. To resume: {line}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE
    except OSError as error:
        return _os_error(error)
    except Exception as error:
        if os.environ.get("TOMBOLA_DEBUG"):
            raise
        # The first line: a worker's error goes on with its traceback, which TOMBOLA_DEBUG shows.
        first = (str(error).splitlines() or [""])[0]
        text = f"{type(error).__name__}: {first} (this is a fault of Tombola; set TOMBOLA_DEBUG=1 "
        return _fail(text + "to see where, and report it)", FAULT)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _os_error(error: OSError) -> int:
    """A full disk is exit 1; a place that cannot be written or read is the user's to mend."""
    name = error.filename or ""
    text = f"{name}: {error.strerror}" if error.strerror else str(error)
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return _fail(
            f"the disk is full ({text}); free some space and run the same command again: "
            "what is finished is kept",
            FAULT,
        )
    if error.errno in _USER_ERRNOS or "Permission denied" in text or "Read-only" in text:
        return _fail(f"cannot use {text}; choose another folder or mend its permissions", USER)
    return _fail(f"{text} (run the same command again to go on)", FAULT)


def _fail(text: str, code: int) -> int:
    """Print one line; what could steer a terminal in a name or a file's text is escaped."""
    line = " ".join(text.split())
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"error: {safe}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    whole, script = arguments, []
    if arguments[:1] == ["run"] and "--" in arguments:  # what follows is the script's, not ours
        place = arguments.index("--")
        arguments, script = arguments[:place], arguments[place + 1 :]
    if arguments and arguments[0] in TO_COME:
        raise ConfigError(
            f"command {arguments[0]!r} is not built yet (part: "
            f"{TO_COME[arguments[0]]}); tombola --help lists what is"
        )
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in _NOT_BUILT:
            raise ConfigError(
                f"option {option} is not built yet (part: {_NOT_BUILT[option]}); leave it out"
            )
    parser, commands = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise unknown("command", arguments[0], commands)
    options, rest = parser.parse_known_args(arguments)
    if rest:
        name = getattr(options, "command", None)
        raise _superfluous(rest[0], commands[name] if name else parser, commands)
    if "function" not in options:
        parser.print_help()
        return DONE
    options.words, options.script = shlex.join(["tombola", *whole]), script
    _fetch(options)
    if options.command in _TRAVEL or getattr(options, "transfer_to", None) is not None:
        from tombola import travel as does
    else:
        from tombola import commands as does  # type: ignore[no-redef]

    options.stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what a user's code prints is no answer of ours
        code: int = getattr(does, options.function)(options)
    return code


def _fetch(options: argparse.Namespace) -> None:
    """Files that are named as hub:user/name become files on this disk, for every command."""
    for name in ("file", "ticket", "diff"):
        given = getattr(options, name, None)
        if isinstance(given, str):
            setattr(options, name, str(resolve(given)) if is_hub(given) else given)
        elif isinstance(given, list):
            setattr(options, name, [str(resolve(each)) if is_hub(each) else each for each in given])


def _superfluous(
    word: str, parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]
) -> ConfigError:
    """The error for a word that a command does not take: who takes it, or what is written alike."""
    option = word.partition("=")[0]
    kind = "option" if word.startswith("-") else "word"
    known = [*parser._option_string_actions] if kind == "option" else []
    takers = [n for n, other in commands.items() if option in other._option_string_actions]
    # A slip of the hand changes a letter or two; a name that is half alike is another name.
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.8)
    meant = f"did you mean {near[0]}? " if near else ""
    meant = meant or (f"it goes with {', '.join(takers)}; " if takers and kind == "option" else "")
    return ConfigError(
        f"{parser.prog} does not take the {kind} {word!r}; {meant}"
        f"{parser.prog} --help lists what is allowed"
    )


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="tombola",
        description="Draws winning lottery tickets from deep generative models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tombola {tombola.__version__}")
    sub = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = sub.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(function=f"do_{name}", command=name)
        return made

    _add_find(command("find", "Search winning tickets and prove them with a report."))
    train = command("train", "Train the dense task, or a ticket as find trained it.")
    _add_common(train)
    train.add_argument("--ticket", metavar="FILE", help="a ticket file that find has written")
    train.add_argument("--compact", action="store_true", help="cut its channels (early-bird)")
    _add_run(command("run", "Search tickets in a training script of your own, a process a round."))
    _add_transfer(command("transfer", "Play tickets in another task, beside its own ones."))
    _add_export(command("export", "Write a model's generator or decoder for other tools."))
    sample = command("sample", "Make images from a trained model file, or from an exported one.")
    sample.add_argument("file", metavar="FILE", help="a file from OUT/models, or an exported one")
    sample.add_argument("--n", type=int, default=64, metavar="N", help="how many (default: 64)")
    sample.add_argument("--out", required=True, metavar="DIR", help="where the PNG files go")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="of the latents drawn")
    _add_task_option(sample)
    sample.add_argument("--data", metavar="DATA", help="images to reconstruct (autoencoders)")
    sample.add_argument("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    sample.add_argument("--json", action="store_true", help="print one JSON object")
    _add_inspect(command("inspect", "Show what is in a ticket or model file, or compare two."))
    _add_verify(command("verify", "Check a file's format, checksum and masks; exit 0 if sound."))
    _add_publish(command("publish", "Put a ticket or model file on the Hugging Face hub."))
    report = command("report", "Write report.html again from what is there.")
    report.add_argument("dir", metavar="DIR", help="a folder that find or train wrote")
    report.add_argument("--json", action="store_true", help="print one JSON object")
    figure = command("figure", "Draw what each arm makes at each sparsity: PNG and SVG.")
    figure.add_argument("dir", metavar="DIR", help="a folder that find has written")
    figure.add_argument(
        "--images", type=int, metavar="N", help="images in a cell (default: 16, or all there are)"
    )
    figure.add_argument(
        "--sparsity",
        metavar="S[,S]",
        help="the nearest levels to these, such as 0.5,0.9 (default: six, evenly)",
    )
    figure.add_argument("--json", action="store_true", help="print one JSON object")
    listing = command("list", "What exists: tasks, data, methods or metrics.")
    listing.add_argument("what", choices=("tasks", "data", "methods", "metrics"))
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    doctor = command("doctor", "Device, versions, data and judge files: found or missing.")
    doctor.add_argument("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser, dict(sub.choices)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="a ticket or model file")
    add("--diff", nargs="+", metavar="FILE", help="two tickets to compare, or one to hold FILE to")
    add("--json", action="store_true", help="print one JSON object")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a ticket or model file")
    add("--rebuild", action="store_true", help="train a ticket's start weights again and compare")
    add("--data", metavar="DATA", help="the images it was found on, if they have no plain name")
    add("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    _add_task_option(parser)
    add("--json", action="store_true", help="print one JSON object")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a ticket or model file")
    add("target", metavar="hub:USER/NAME", help="where it goes; made if it is not there")
    add("--private", action="store_true", help="make the repository one that only you see")
    add("--license", metavar="NAME", help="the hub's name of its licence, such as mit")
    add("--dry-run", action="store_true", help="print the model card; send nothing")
    add("--json", action="store_true", help="print one JSON object")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] -- COMMAND [WORD ...]"
    parser.epilog = (
        "COMMAND is how the script is started, such as: python train.py --epochs 5 --seed {seed} "
        "--out {dir}, where {dir} becomes a folder of each training's own. "
        "The script has one more line: tombola.attach({...networks...})."
    )
    add = parser.add_argument
    add("--rounds", type=int, metavar="N", help="levels of sparsity (default: 20)")
    add("--rate", metavar="P", help="share of the weights removed each round (default: 0.2)")
    add("--sparsity", metavar="S[,S]", help="levels outright, instead of --rounds and --rate")
    add("--prune", metavar="NETWORK[,NETWORK]", help="networks to prune (default: all attached)")
    add("--rewind", metavar="STEP", help="where weights go back to: 500it, 0it (default: 10it)")
    add("--steps", type=int, metavar="N", help="stop each training there (default: its own end)")
    add("--seeds", type=int, metavar="N", help="training seeds, put in for {seed} (default: 1)")
    add("--controls", metavar="LIST|none", help="reinit, shuffle (default: both)")
    add("--name", metavar="NAME", help="what the training is called (default: as its script)")
    add("--same-script", action="store_true", help="go on though the script was edited since")
    add("--out", metavar="DIR", help="default: runs/<script>-imp")
    add("--json", action="store_true", help="print summary.json's object")
    add("--dry-run", action="store_true", help="say what would be run; run nothing")


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a model file from OUT/models")
    add("--to", required=True, metavar="FORMAT", help="onnx or torch-export (a .pt2 file)")
    add("--out", metavar="PATH", help="default: beside FILE, as .onnx or .pt2")
    _add_task_option(parser)
    add("--json", action="store_true", help="print one JSON object")


def _add_task_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        metavar="path/to/file.py:Class",
        help="the code of a user's task; never run because a file names it",
    )


def _add_find(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add = parser.add_argument
    add(
        "--method",
        metavar="LIST",
        help="imp, one-shot, early-bird, snip, grasp, synflow, random (default: imp)",
    )
    add(
        "--prune",
        action="append",
        metavar="NETWORK[,NETWORK]",
        help="networks to prune, once per arm; all = every network (default: all)",
    )
    _add_levels(parser)
    add("--transfer-to", metavar="TASK[,TASK]", help="play its tickets in these tasks too")
    add("--compress", metavar="R", help="share of the channels that early-bird cuts (default: 0.5)")
    add("--round-to", type=int, metavar="N", help="round every layer's channels to N (early-bird)")
    add(
        "--controls",
        metavar="LIST|none",
        help="reinit, shuffle, erk, reinit-chain, thin-parameters, dense-long (default: "
        "reinit,shuffle); early-bird: random-channels, thin-flops, thin-parameters (default: all)",
    )


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s TICKET TASK [options], or %(prog)s --matrix TASK,TASK [options]"
    add = parser.add_argument
    add("ticket", nargs="?", metavar="TICKET", help="a ticket file that find has written")
    _add_common(parser, nargs="?")
    add("--matrix", metavar="TASK,TASK", help="all ordered pairs of tasks, with their controls")
    _add_levels(parser)


def _add_levels(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, metavar="N", help="levels of sparsity (default: 20)")
    add("--rate", metavar="P", help="share of the weights removed each round (default: 0.2)")
    add("--sparsity", metavar="S[,S]", help="levels outright, instead of --rounds and --rate")
    add("--rewind", metavar="STEP", help="500it, 2ep, 0it (default: 10it); a list makes arms")


def _add_common(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    text = "a name, or path/to/file.py:ClassName"
    parser.add_argument("task", nargs=nargs, metavar="TASK", help=text)
    add = parser.add_argument
    add(
        "--data",
        metavar="DATA",
        help="digits, mnist, cifar10, celeba, folder:PATH (default: digits)",
    )
    add("--epochs", type=float, metavar="N", help="training length in epochs")
    add("--steps", type=int, metavar="N", help="training length in steps")
    add("--seeds", type=int, metavar="N", help="training seeds (default: 3; train: 1)")
    add("--out", metavar="DIR", help="default: runs/<task>-<data>-<method>")
    add("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    add("--preset", metavar="NAME", help="quick (the default), paper or shared (vae, dcgan)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        help="any key of the config, such as task.width=16",
    )
    add("--config", metavar="FILE.toml", help="a config as --dry-run prints it")
    add("--workers", type=int, metavar="N", help="processes (default: up to the cores)")
    add("--threads", type=int, metavar="N", help="threads of each (default: cores / workers)")
    add("--device", metavar="NAME", help="auto, cpu, cuda or cuda:i (default: auto)")
    add("--precision", metavar="LIST", help="fp32, bf16, fp16 on CUDA (default: fp32)")
    add("--keep", metavar="all", help="keep every trained network and judged state")
    add("--skip-broken", action="store_true", default=None, help="leave broken images out")
    add("--json", action="store_true", help="print summary.json's object")
    add("--dry-run", action="store_true", help="resolve, plan and estimate; train nothing")
