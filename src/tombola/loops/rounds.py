"""What is left to be made of a search around somebody's own training? Every round once, in order.

A round that is damaged is as good as not there, and is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from tombola.engine.mending import describe_again
from tombola.loops.book import Book
from tombola.loops.folder import write_folder
from tombola.store.runs import healed

Which = tuple[str, int, int]


def make_rounds(
    book: Book, make: Callable[[Which, int, int], None], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Make the rounds that are not there and write the folder; returns summary.json's object.

    ``make``: called with (arm, seed, level), its number from 1 and how many are left in all.
    """
    every = list(book.rounds())
    fresh: set[Which] = set()
    labels = {book.name(*each): f"{each[0]} of round {each[2]}, seed {each[1]}" for each in every}

    def work() -> dict[str, Any]:
        faults = book.store.faults().items()
        if bad := {labels[name]: why for name, why in faults if name in labels}:
            tell(describe_again(bad, book.store))
        todo = [each for each in every if not book.has(*each)]
        for number, each in enumerate(todo, 1):
            make(each, number, len(todo))
            fresh.add(each)
        for part in book.store.folder.glob("*.part"):  # of words that were mended since
            shutil.rmtree(part)
        trained = sum(not book.read(*each).not_run for each in fresh)
        reused = sum(not book.read(*each).not_run for each in every) - trained
        return write_folder(book, {"trained": trained, "reused": reused})

    return healed(book.store, work)
