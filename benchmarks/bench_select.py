"""How long does the exact global mask of a dcgan's 6.5 million weights take?

Against one ``torch.kthvalue`` over the same scores laid flat in one tensor, which gives only the
threshold, without the mask and without a rule for ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

import settings
from measure import Section, compare, row, timed
from tombola.sparsity.masks import kept_count, prunable
from tombola.sparsity.select import top


def threshold(flat: Tensor, keep: int) -> Tensor:
    """The least of the ``keep`` largest scores: the k-th smallest of all."""
    return torch.kthvalue(flat, len(flat) - keep + 1).values


def measured(size: str, blocks: int) -> Section:
    """The first round over all weights, and a late one among the survivors."""
    torch.set_num_threads(1)
    built = settings.networks(settings.task("dcgan", size), "dcgan")
    scores = {name: weight.detach().abs() for name, weight in prunable(built).items()}
    flat = torch.cat([value.flatten() for value in scores.values()])
    rows = []
    for level, target in ((1, 0.5), (settings.LEVEL, None)):
        keep = kept_count(len(flat), settings.RATE, level)
        among = settings.masks(built, level - 1) if level > 1 else None
        pool = flat
        if among is not None:
            # Zeros of earlier rounds stay in the pool of one kthvalue over everything.
            pool = torch.cat([(value * among[name]).flatten() for name, value in scores.items()])
        found = compare(
            timed(lambda keep=keep, among=among: top(scores, keep, among)),
            timed(lambda pool=pool, keep=keep: threshold(pool, keep)),
            blocks,
        )
        label = f"round {level}: {keep:,} of {len(flat):,} weights kept"
        rows.append(row(label, found, target))
    return Section(
        title="The exact global mask against one kthvalue",
        rows=rows,
        notes=["Scores are given; one thread. Ours returns the whole mask, ties settled."],
    )


if __name__ == "__main__":
    from run import main

    main(["select"])
