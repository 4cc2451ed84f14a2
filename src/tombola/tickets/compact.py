"""Smaller networks by a channel ticket."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tombola.sparsity.compact import cut_of
from tombola.sparsity.cutting import Inputs, copied, shrink
from tombola.tickets.ticket import Ticket


def compact(
    networks: Mapping[str, nn.Module],
    ticket: Ticket,
    inputs: Mapping[str, Tensor | Inputs] | None = None,
) -> dict[str, nn.Module]:
    """Smaller copies of networks, without the channels that a channel ticket takes away.

    You et al. 2020, "Drawing early-bird tickets"; Kalibhat et al. 2021. ``networks`` by name keep
    their weights and are not changed; the copies have theirs, on the same devices and in the same
    modes. ``inputs``: what each network is called with, a tensor or a tuple of them (N, ...) of any
    values; by default zeros of the shapes that the ticket names. Proven: the copies' outputs equal
    those of the networks with these channels zeroed, in float64 to 1e-8 of the largest output, or
    to 1e-4 in float32 where a network does not run in float64. Which layers cannot be cut, and why:
    ``Channels.of(networks, inputs, ["all"]).left``. TicketError for a ticket of single weights or
    of other networks, ConfigError, naming the layer, for a network that cannot be cut.
    """
    cut = cut_of(networks, ticket.masks, ticket.manifest, inputs)
    small = copied(networks)
    shrink(small, cut)
    return small
