"""What does the next round begin with? Tickets from files of earlier rounds; weights permuted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tombola.config.runtime import rng
from tombola.loops.book import FINAL, REWIND, TICKET, Book
from tombola.sparsity.criteria import magnitude
from tombola.sparsity.masks import Masks, shuffle
from tombola.sparsity.names import plain_parameters
from tombola.sparsity.select import top
from tombola.tickets.ticket import Ticket, load_ticket
from tombola.training.checkpoint import load_weights_file


def ticket_of(book: Book, arm: str, seed: int, level: int) -> Ticket:
    """What a ticket's or control's training begins with; the rounds that it needs are whole.

    ``ticket``: the largest weights that the round before ended with, among its survivors, joined
    with the dense run's weights at the rewind step. ``shuffle``: the ticket's mask permuted within
    each tensor, by the draw of ``tombola find``. ``reinit``: the ticket, of which the mask counts.
    """
    if arm != "ticket":
        ticket = book.load(("ticket", seed, level), TICKET, load_ticket)
        if arm == "reinit":
            return ticket
        draw = rng(seed, f"shuffle/{level}").initial_seed()
        return Ticket(shuffle(ticket.masks, draw), _rewound(book, seed))
    source = ("dense", seed, 0) if level == 1 else ("ticket", seed, level - 1)
    ended = book.load(source, FINAL, load_weights_file)
    among: Masks | None = None
    if level > 1:
        among = book.load(source, TICKET, load_ticket).masks
    pool = {name: ended[name] for name in book.facts.prunable}
    masks = top(magnitude(pool, None, among, seed), book.facts.kept(level), among)
    return Ticket(masks, _rewound(book, seed))


def _rewound(book: Book, seed: int) -> dict[str, Tensor]:
    return book.load(("dense", seed, 0), REWIND, load_weights_file)


def chain_ended(book: Book, arm: str, seed: int, level: int) -> bool:
    """Whether the training whose weights or mask a round needs left none, or was not run."""
    if arm == "dense":
        return False
    before = ("ticket", seed, level - 1) if level > 1 else ("dense", seed, 0)
    source = before if arm == "ticket" else ("ticket", seed, level)
    if book.read(*source).not_run:
        return True
    return not book.wrote(source, FINAL if arm == "ticket" else TICKET)


@torch.no_grad()
def permute(networks: Mapping[str, nn.Module], seed: int, purpose: str) -> None:
    """Permute each parameter of two or more axes within itself, in place.

    Of independent draws from one distribution this is another draw, whatever the distribution;
    biases and scales, which begin at constants, stay as they are.
    """
    for name, leaf in leaves(networks):
        if leaf.dim() >= 2:
            order = torch.randperm(
                leaf.numel(), generator=rng(seed, f"{purpose}-{name}"), device="cpu"
            )
            leaf.copy_(leaf.reshape(-1)[order.to(leaf.device)].view(leaf.shape))


def leaves(networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter as (``network.name``, leaf), a shared one once in each network."""
    for network, module in networks.items():
        for name, leaf in plain_parameters(module).items():
            yield f"{network}.{name}", leaf
