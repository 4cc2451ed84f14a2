"""The command line: parse, call, print, exit. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import shlex
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from tombola.cli.parser import build_parser
from tombola.config.streams import careful, open_streams
from tombola.errors import ConfigError, EndedError, PreemptedError, UserError, unknown
from tombola.tickets.hub import is_hub, resolve

DONE, FAULT, USER, INTERRUPTED, PREEMPTED = 0, 1, 2, 130, 143
MOST_CHARACTERS = 800
"""Of an error: what comes in may be as long as a command line."""
TO_COME: dict[str, str] = {}
"""Commands of the contract that are not built yet, and the part that brings them."""
_NOT_BUILT = {
    "--cluster": "later",
}
_TRAVEL = frozenset({"transfer", "run", "publish"})
"""Commands whose function is in travel.py; that of the others is in commands.py."""
_USER_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
    errno.EEXIST,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of the contract (0, 1, 2, 130 or 143)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupt)
    open_streams()
    with contextlib.redirect_stderr(careful(sys.stderr)):
        return _answered(arguments)


def _answered(arguments: list[str]) -> int:
    """The exit code, whatever happens; one line on stderr if it is not the answer."""
    try:
        return _run(arguments)
    except UserError as error:
        return _fail(str(error), USER)
    except KeyboardInterrupt as error:
        line = shlex.join(["tombola", *arguments])
        print(f"\ninterrupted; nothing is lost. To resume: {line}", file=sys.stderr)
        return PREEMPTED if isinstance(error, PreemptedError) else INTERRUPTED
    except OSError as error:
        if not _reader_is_gone(error):
            return _os_error(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE
    except EndedError as error:
        return _fail(str(error), FAULT)
    except Exception as error:
        if os.environ.get("TOMBOLA_DEBUG"):
            raise
        # The first line: a worker's error goes on with its traceback, which TOMBOLA_DEBUG shows.
        first = (str(error).splitlines() or [""])[0]
        text = f"{type(error).__name__}: {first} (this is a fault of Tombola; set TOMBOLA_DEBUG=1 "
        return _fail(text + "to see where, and report it)", FAULT)


def _interrupt(*_: object) -> NoReturn:
    raise PreemptedError


def _reader_is_gone(error: OSError) -> bool:
    """Whether an answer found nobody: its pipe is closed, or its terminal has hung up."""
    hung_up = error.errno == errno.EIO and error.filename is None
    return isinstance(error, BrokenPipeError) or (hung_up and stat.S_ISCHR(os.fstat(1).st_mode))


def _os_error(error: OSError) -> int:
    """A full disk is exit 1; a place that cannot be written or read is the user's to mend."""
    name = str(error.filename or "")
    if error.errno == errno.ENAMETOOLONG:
        return _fail(f"the path {name[:60]}... is too long; give a shorter one", USER)
    text = f"{name}: {error.strerror}" if name and error.strerror else error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
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
    if len(safe) > MOST_CHARACTERS:
        safe = f"{safe[: MOST_CHARACTERS // 2]} ... {safe[-MOST_CHARACTERS // 2 :]}"
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
    parser, commands = build_parser()
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
    if options.command == "reproduce":
        from tombola.cli.reproduce import command as does
    elif options.command in _TRAVEL or getattr(options, "transfer_to", None) is not None:
        from tombola.cli import travel as does  # type: ignore[no-redef]
    else:
        from tombola.cli import commands as does  # type: ignore[no-redef]

    if getattr(sys.stdout, "errors", None) == "strict":  # a folder's name may be any bytes
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
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
