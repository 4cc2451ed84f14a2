"""Pruned weights are exactly zero after 200 steps of every kind of loop, by a ticket or a clock."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tombola.loops.clock import Clock
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import prunable
from tombola.sparsity.names import plain_state
from tombola.tickets.ticket import Ticket
from tombola.training.trainer import named_state

STEPS, DENSE = 200, 20
HERE = Path(__file__).resolve()
optim = torch.optim


class ByHand(optim.Optimizer):
    """Momentum and weight decay, written by a user."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["m"] = state.get("m", torch.zeros_like(p)).mul(0.9).add(p.grad + 1e-3 * p)
                p.sub_(group["lr"] * state["m"])


class Plain:
    """The same, and torch knows nothing of it."""

    def __init__(self, params):
        self.params = list(params)
        self.moments = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self):
        for p, m in zip(self.params, self.moments, strict=True):
            m.mul_(0.9).add_(p.grad)
            p.sub_(0.05 * m)

    def zero_grad(self):
        for p in self.params:
            p.grad = None


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: optim.Adam(p, 1e-2, weight_decay=1e-2),
    "adam foreach": lambda p: optim.Adam(p, 1e-2, foreach=True),
    "adam fused": lambda p: optim.Adam(p, 1e-2, fused=True),
    "adamw": lambda p: optim.AdamW(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "adafactor": lambda p: optim.Adafactor(p, 1e-2),
    "by hand": ByHand,
    "plain object": Plain,
}


def layers():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def masks_of(networks):
    """Half of every prunable weight, drawn once."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(leaf.shape, generator=generator) < 0.5
        for name, leaf in prunable(networks).items()
    }


@contextlib.contextmanager
def by_ticket(networks, masks, optimizers):
    """``Ticket.enforce``; objects that are no torch optimizers call the hold themselves."""
    ticket = Ticket(masks, named_state(networks))
    ticket.start(networks)
    ours = [each for each in optimizers if isinstance(each, optim.Optimizer)]
    with ticket.enforce(networks, ours) as hold:
        yield hold.mask_state, (None if ours else hold.apply)


@contextlib.contextmanager
def by_clock(networks, masks, optimizers):
    """The clock, which is told of objects that torch knows nothing of."""
    plain = [each for each in optimizers if not isinstance(each, optim.Optimizer)]
    with Clock(networks, masks=masks, optimizers=plain):
        yield Hold(networks, masks).mask_state, None


HOLDERS = {"ticket": by_ticket, "clock": by_clock}
holders = pytest.mark.parametrize("holder", HOLDERS)


def check(networks, masks):
    """Exactly zero where pruned, and trained where kept."""
    assert Hold(networks, masks).leaks() == []
    leaves = prunable(networks)
    for name, mask in masks.items():
        leaf = leaves[name].detach()
        assert bool((leaf[~mask] == 0).all()), name
        assert bool((leaf[mask] != 0).any()), name
        assert bool(leaf.isfinite().all()), name


def train(networks, optimizers, step, steps=STEPS, after=None):
    for number in range(steps):
        step(number)
        if after is not None:
            after()


def regress(network, optimizer):
    """One step of the plainest loop."""

    def step(number):
        del number
        optimizer.zero_grad()
        network(torch.randn(8, 6)).sub(1).square().mean().backward()
        optimizer.step()

    return step


def held(holder, networks, optimizers, step):
    """200 steps with masks held, from networks that were trained densely before."""
    masks = masks_of(networks)
    with HOLDERS[holder](networks, masks, optimizers) as (read, after):
        check(networks, masks)
        train(networks, optimizers, step, after=after)
        check(networks, masks)
    return masks, read


@holders
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("restored", [False, True])
def test_under_every_optimizer_fresh_or_with_the_moments_of_dense_weights(name, holder, restored):
    torch.manual_seed(0)
    network = layers()
    optimizer = OPTIMIZERS[name](network.parameters())
    if restored:
        train(network, optimizer, regress(network, optimizer), DENSE)
        if isinstance(optimizer, optim.Optimizer):
            state = optimizer.state_dict()
            optimizer = OPTIMIZERS[name](network.parameters())
            optimizer.load_state_dict(state)
    held(holder, {"net": network}, [optimizer], regress(network, optimizer))


@holders
def test_under_lbfgs_and_its_closures(holder):
    torch.manual_seed(0)
    network = layers()
    optimizer = optim.LBFGS(network.parameters(), 0.1, max_iter=2, history_size=3)
    images = torch.randn(8, 6)

    def closure():
        optimizer.zero_grad()
        loss = network(images).sub(1).square().mean()
        loss.backward()
        return loss

    held(holder, {"net": network}, [optimizer], lambda number: optimizer.step(closure))


@holders
def test_with_accumulated_gradients(holder):
    torch.manual_seed(0)
    network = layers()
    optimizer = optim.Adam(network.parameters(), 1e-2)

    def step(number):
        (network(torch.randn(8, 6)).sub(1).square().mean() / 4).backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()

    held(holder, {"net": network}, [optimizer], step)


@holders
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_in_mixed_precision(holder, scaled, fused):
    torch.manual_seed(0)
    network = layers()
    optimizer = optim.Adam(network.parameters(), 1e-2, weight_decay=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, growth_interval=5)

    def step(number):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(torch.randn(8, 6)).float().sub(1).square().mean()
        if number % 50 == 10:
            loss = loss * float("inf")  # a step that the scaler skips
            if not scaled:
                return
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    held(holder, {"net": network}, [optimizer], step)


@holders
def test_averaged_weights_that_began_dense_are_zero_where_pruned_when_read(holder):
    torch.manual_seed(0)
    network = layers()
    optimizer = optim.Adam(network.parameters(), 1e-2)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    average.update_parameters(network)
    plain = regress(network, optimizer)

    def step(number):
        plain(number)
        average.update_parameters(network)

    masks, read = held(holder, {"net": network}, [optimizer], step)
    assert Hold({"net": average}, masks).leaks() != []
    read({f"net.{name}": tensor for name, tensor in plain_state(average).items()})
    check({"net": average}, masks)


@holders
@pytest.mark.parametrize("normed", [spectral_norm, parametrizations.spectral_norm])
def test_under_spectral_norm_of_either_kind(holder, normed):
    torch.manual_seed(0)
    network = nn.Sequential(normed(nn.Linear(6, 8)), nn.Tanh(), normed(nn.Linear(8, 4)))
    optimizer = optim.Adam(network.parameters(), 1e-2)
    masks, _ = held(holder, {"net": network}, [optimizer], regress(network, optimizer))
    network.eval()
    network(torch.zeros(1, 6))
    assert bool((network[0].weight[~masks["net.0.weight"]] == 0).all())


@holders
def test_in_a_gan_with_a_gradient_penalty_and_clipped_weights(holder):
    torch.manual_seed(0)
    networks = {
        "generator": nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)),
        "discriminator": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)),
    }
    generator, critic = networks.values()
    of_g = optim.Adam(generator.parameters(), 1e-3, (0.0, 0.9))
    of_d = optim.RMSprop(critic.parameters(), 1e-3)

    def step(number):
        del number
        real, fake = torch.randn(8, 6) + 1, generator(torch.randn(8, 3)).detach()
        between = real.lerp(fake, torch.rand(8, 1)).requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        loss = critic(fake).mean() - critic(real).mean()
        loss = loss + 10 * (slope.norm(dim=1) - 1).square().mean()
        of_d.zero_grad()
        loss.backward()
        of_d.step()
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.clamp_(-0.5, 0.5)
        of_g.zero_grad()
        (-critic(generator(torch.randn(8, 3))).mean()).backward()
        of_g.step()

    held(holder, networks, [of_d, of_g], step)


@holders
def test_in_a_loop_that_makes_its_fakes_once_and_keeps_their_graph(holder):
    """PyTorch's DCGAN tutorial: the generator's graph is open while the discriminator steps."""
    torch.manual_seed(0)
    networks = {"generator": layers(), "discriminator": nn.Linear(4, 1)}
    generator, critic = networks.values()
    of_g, of_d = optim.Adam(generator.parameters(), 1e-3), optim.Adam(critic.parameters(), 1e-3)

    def step(number):
        del number
        fake = generator(torch.randn(8, 6))
        of_d.zero_grad()
        (critic(fake.detach()) - critic(torch.randn(8, 4))).mean().backward()
        of_d.step()
        of_g.zero_grad()
        (-critic(fake).mean()).backward()
        of_g.step()

    held(holder, networks, [of_d, of_g], step)


def test_what_no_given_optimizer_steps_is_held_by_all_and_what_is_added_later_too():
    torch.manual_seed(0)
    networks = {"generator": layers(), "discriminator": nn.Linear(4, 1)}
    optimizer = optim.SGD(networks["generator"].parameters(), 0.1)
    other = optim.SGD([networks["discriminator"].bias], 0.1)
    masks = masks_of(networks)
    weight = networks["discriminator"].weight
    ticket = Ticket(masks, named_state(networks))
    with ticket.enforce(networks, [optimizer, other]):
        with torch.no_grad():
            weight.fill_(1.0)
        optimizer.step()
        assert torch.equal(weight != 0, masks["discriminator.weight"])
        other.step()
        first = networks["generator"][0].weight
        other.add_param_group({"params": [first]})
        with torch.no_grad():
            first.fill_(1.0)
        other.step()
        assert torch.equal(first != 0, masks["generator.0.weight"])


@holders
def test_under_torch_compile(holder):
    torch.manual_seed(0)
    network = torch.compile(layers(), backend="eager")
    optimizer = optim.Adam(network.parameters(), 1e-2)
    held(holder, {"net": network}, [optimizer], regress(network, optimizer))


def rank(number: int, folder: Path) -> None:
    """One of two processes that train together."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=number, world_size=2
    )
    for holder in HOLDERS:
        torch.manual_seed(0)
        network = nn.parallel.DistributedDataParallel(layers())
        optimizer = optim.AdamW(network.parameters(), 1e-2)
        torch.manual_seed(number)  # each has its own batches
        held(holder, {"net": network}, [optimizer], regress(network, optimizer))
        mine = torch.cat([p.detach().flatten() for p in network.parameters()])
        every = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(every, mine)
        assert torch.equal(*every)
    torch.distributed.destroy_process_group()
    (folder / f"rank{number}").write_text("exactly zero")


def test_with_two_ranks_that_train_together(tmp_path):
    words = [sys.executable, str(HERE)]
    ranks = [
        subprocess.Popen([*words, str(number), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    ends = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], ends
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank0", "rank1"]


def test_without_masks_none_of_this_would_be_zero():
    torch.manual_seed(0)
    network = layers()
    optimizer = optim.Adam(network.parameters(), 1e-2)
    masks = masks_of({"net": network})
    Ticket(masks, named_state({"net": network})).start({"net": network})
    train(network, optimizer, regress(network, optimizer), 1)
    assert sorted(Hold({"net": network}, masks).leaks()) == ["net.0.weight", "net.2.weight"]


if __name__ == "__main__":
    rank(int(sys.argv[1]), Path(sys.argv[2]))
