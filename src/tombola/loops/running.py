"""How are tickets found in somebody's script? It is started anew for each round of the search.

Dense first, then level by level the ticket and its controls, each a process of its own: a crash
costs at most the round under way. Masks are drawn between the processes, from files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tombola.config.surroundings import own_source
from tombola.engine.search import absent, gone_if_refused
from tombola.errors import ConfigError
from tombola.loops import orders
from tombola.loops.asking import DIR, Request, command_of
from tombola.loops.book import TICKET, Book, Round
from tombola.loops.draws import chain_ended, ticket_of
from tombola.loops.folder import write_config
from tombola.loops.rounds import Which, make_rounds
from tombola.store.lock import locked
from tombola.tickets.ticket import save_ticket

OWN = "own"
"""Folder of OUT with a folder for each training, where the script's words ask for it."""
PATIENCE_SECONDS = 8.0
"""How long a script that is asked to end may take before it is killed."""
Tell = Callable[[str], None]


def run_script(request: Request, tell: Tell) -> dict[str, Any]:
    """Carry out every round that is not there and write the folder; returns summary.json's object.

    ConfigError with the reason if a round fails: the same call again goes on with that round.
    """
    made = absent(request.out)
    with locked(request.out, tell) as lock:
        book = Book(request.out, request.facts)
        with gone_if_refused(made):
            book.check()
        book.store.folder.mkdir(exist_ok=True)
        book.recall()
        write_config(book)
        every = list(book.rounds())
        if all(book.has(*each) for each in every):
            tell(f"nothing to do: all {len(every)} trainings are there")

        def make(each: Which, number: int, count: int) -> None:
            _round(book, request, each, lock, lambda text: tell(f"{number}/{count} {text}"))

        return make_rounds(book, make, tell)


def _round(book: Book, request: Request, which: Which, lock: int, tell: Tell) -> None:
    """Make one round: its order, its process, its answer."""
    arm, seed, level = which
    if chain_ended(book, *which):
        book.begin(*which)
        book.commit(Round(arm=arm, seed=seed, round=level, steps=0, seconds=0.0, not_run=True))
        tell(f"{arm} of round {level}, seed {seed}: not run, its chain diverged")
        return
    part = book.begin(*which)
    starts = {"dense": "own", "reinit": "permuted"}
    order = orders.Order(
        arm=arm,
        seed=seed,
        round=level,
        start=starts.get(arm, "ticket"),  # type: ignore[arg-type]
        prune=tuple(name.strip() for name in request.facts.networks.split(",")),
        exclude=tuple(request.facts.asked.get("exclude", ())),
        rewind_steps=request.facts.rewind_steps,
        steps=request.facts.steps,
        own=book.read("dense", seed, 0).own if arm != "dense" else "",
        ends=_ends(book),
    )
    if arm != "dense":
        save_ticket(part / TICKET, ticket_of(book, *which))
    orders.write_order(part, order)
    log = book.out / "logs" / f"{arm}-seed{seed}-round{level:02d}.log"
    log.parent.mkdir(exist_ok=True)
    tell(f"{order.name}: started, its output goes to {log}")
    own = book.out / OWN / log.stem
    if any(DIR in word for word in request.words):
        shutil.rmtree(own, ignore_errors=True)  # of a training that was cut off
        own.mkdir(parents=True)
    code = launch(command_of(request.words, seed, own), part, log, lock)
    answer = _answer(part, order, code, log)
    book.learn(dict(answer["parameters"]), dict(answer["prunable"]))
    for name in (orders.ORDER, orders.ANSWER, orders.STATE):
        (part / name).unlink(missing_ok=True)
    made = Round(**answer["round"])
    book.commit(made)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in made.values.items())
    end = f"diverged ({made.why})" if made.diverged is not None else measured or "nothing measured"
    told = f"{order.name}: {made.steps:,} steps, {made.seconds:.0f} s, {end}"
    tell(", ".join(filter(None, [told, made.judged])))
    if made.unlike:
        tell(
            f"{order.name}: came with other weights than the dense training of its seed; see notes"
        )
    alike = [each.title for each in book.ends().get(made.end, ()) if each.title != made.title]
    if alike:
        tell(f"{order.name}: ended with the weights of {'; '.join(alike)}, bit for bit")


def _ends(book: Book) -> dict[str, str]:
    """Hash of weights -> the training that ended with them; not of one that changed nothing."""
    found = book.ends()
    began = {made.own for alike in found.values() for made in alike}
    return {end: alike[0].title for end, alike in found.items() if end not in began}


def launch(words: Sequence[str], part: Path, log: Path, lock: int) -> int:
    """Run a script to its end with its output in ``log``; returns its exit code.

    The process and all that it starts are ended with this one; they hold the folder's lock until
    they are gone. ConfigError if it cannot be started.
    """
    environment = {**os.environ, **own_source(), orders.VARIABLE: str(part.resolve())}
    environment["PYTHONUNBUFFERED"] = "1"  # the log is there to be watched, also of a killed script
    with log.open("wb") as stream:
        try:
            process = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError as error:
            raise ConfigError(
                f"cannot start {words[0]!r}: {error.strerror}; give a command that can be run"
            ) from error
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and all that it started to end, and see to it."""
    for number, seconds in ((signal.SIGTERM, PATIENCE_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _answer(part: Path, order: orders.Order, code: int, log: Path) -> dict[str, Any]:
    """What a script that has ended told; ConfigError with the reason if it told no end."""
    again = "the same command takes this round up again"
    fault = orders.read_told(part, orders.FAULT)
    if fault is not None:
        raise ConfigError(f"{order.name}: {fault['fault']} (output in {log}); {again}")
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by {_signal(-code)}"
        raise ConfigError(
            f"{order.name}: the script {how}{_last_words(log)} (output in {log}); mend it, and "
            f"{again}"
        )
    answer = orders.read_told(part, orders.ANSWER)
    if answer is None:
        raise ConfigError(
            f"{order.name}: the script ended without calling tombola.attach (output in {log}); "
            'add the line tombola.attach({"generator": G, "discriminator": D}) after its networks '
            f"are built, and {again}"
        )
    return answer


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(log: Path) -> str:
    """The last line of what a script printed that is not empty; empty if there is none."""
    size = log.stat().st_size
    with log.open("rb") as stream:
        stream.seek(max(0, size - 4000))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines()]
    said = [line for line in lines if line]
    return f", saying {said[-1][:300]!r}" if said else ""
