"""Pruned weights are zero wherever a loop of one's own looks: SAM's climb, closures, evaluation."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import pytorch_optimizer
import torch
from torch import nn

import tombola
from tombola.loops.clock import Clock
from tombola.sparsity.guard import Guard
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import prunable
from tombola.tickets.ticket import Ticket
from tombola.training.trainer import named_state

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Sequential):
    """Two layers, which note at each call what is not zero though it is pruned."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
        self.masks, self.calls, self.leaks = {}, 0, 0

    def __getstate__(self):
        return {**super().__getstate__(), "masks": {}}


def note(network):
    """Hooks that look at the weights at the moment in which a layer computes with them."""

    def hook(layer, _args):
        network.calls += 1
        for key in network.masks:
            leaf, mask = prunable({"n": network})[key], network.masks[key]
            if leaf is layer.weight:
                network.leaks += int((leaf[~mask] != 0).sum())

    for layer in (network[0], network[2]):
        layer.register_forward_pre_hook(hook)
    return network


def half(network):
    generator = torch.Generator().manual_seed(1)
    pool = prunable({"n": network})
    return {name: torch.rand(leaf.shape, generator=generator) < 0.5 for name, leaf in pool.items()}


@contextlib.contextmanager
def by_ticket(network, masks, optimizer):
    ticket = Ticket(masks, named_state({"n": network}))
    ticket.start({"n": network})
    with ticket.enforce({"n": network}, optimizer):
        yield


@contextlib.contextmanager
def by_clock(network, masks, optimizer):
    del optimizer
    with Clock({"n": network}, masks=masks):
        yield


holders = pytest.mark.parametrize("holder", [by_ticket, by_clock])


def loss(network):
    return (network(X) - X).square().mean()


def climb(network, gradients):
    norm = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for leaf, gradient in zip(network.parameters(), gradients, strict=True):
            leaf.add_(0.05 * gradient / norm)


def sam_by_hand(network, optimizer):
    optimizer.zero_grad()
    loss(network).backward()
    old = [leaf.detach().clone() for leaf in network.parameters()]
    climb(network, [leaf.grad for leaf in network.parameters()])
    descend(network, optimizer, old)


def sam_by_autograd(network, optimizer):
    """Gradients that no hook sees."""
    old = [leaf.detach().clone() for leaf in network.parameters()]
    climb(network, torch.autograd.grad(loss(network), list(network.parameters())))
    descend(network, optimizer, old)


def noise(network, optimizer):
    """Weights are jittered before each pass."""
    old = [leaf.detach().clone() for leaf in network.parameters()]
    with torch.no_grad():
        for leaf in network.parameters():
            leaf.add_(0.1 * torch.randn_like(leaf))
    descend(network, optimizer, old)


def descend(network, optimizer, old):
    optimizer.zero_grad()
    loss(network).backward()
    with torch.no_grad():
        for leaf, value in zip(network.parameters(), old, strict=True):
            leaf.copy_(value)
    optimizer.step()


def with_closure(network, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss(network)
        value.backward()
        return value

    closure()
    optimizer.step(closure)


SGD = torch.optim.SGD


class OldSAM(SGD):
    """Climbs at random by what torch does not see as a change."""

    def step(self, closure):
        old = [leaf.data.clone() for leaf in self.param_groups[0]["params"]]
        for leaf in self.param_groups[0]["params"]:
            leaf.data.add_(0.05 * torch.randn_like(leaf))
        with torch.enable_grad():
            closure()
        for leaf, value in zip(self.param_groups[0]["params"], old, strict=True):
            leaf.data = value
        super().step()


LOOPS = {
    "SAM by hand": (sam_by_hand, lambda p: SGD(p, 0.05, momentum=0.9)),
    "SAM by autograd.grad": (sam_by_autograd, lambda p: SGD(p, 0.05)),
    "noise": (noise, lambda p: torch.optim.Adam(p, 1e-2)),
    "SAM": (with_closure, lambda p: pytorch_optimizer.SAM(p, SGD, lr=0.05)),
    "adaptive SAM": (with_closure, lambda p: pytorch_optimizer.SAM(p, SGD, lr=0.05, adaptive=True)),
    "SAM by data": (with_closure, lambda p: OldSAM(p, 0.05)),
    "friendly SAM": (with_closure, lambda p: pytorch_optimizer.FriendlySAM(p, SGD, lr=0.05)),
    "Bayesian SAM": (with_closure, lambda p: pytorch_optimizer.BSAM(p, num_data=16, lr=0.05)),
    "Lookahead": (with_closure, lambda p: pytorch_optimizer.Lookahead(SGD(p, 0.05), k=2)),
    "LBFGS": (with_closure, lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3)),
}


@holders
@pytest.mark.parametrize("name", LOOPS)
def test_no_layer_ever_computes_with_a_pruned_weight(name, holder):
    step, make = LOOPS[name]
    network = Net()
    optimizer = make(list(network.parameters()))
    masks = half(network)
    with holder(network, masks, optimizer):
        note(network).masks = masks
        for _ in range(5):
            step(network, optimizer)
    assert network.calls >= 10
    assert network.leaks == 0
    for key, leaf in prunable({"n": network}).items():
        assert not leaf[~masks[key]].any()
        assert bool((leaf[masks[key]] != 0).all())


@holders
def test_gradients_are_those_of_the_smaller_network_and_their_norm_is_too(holder):
    network = Net()
    masks = half(network)
    optimizer = SGD(network.parameters(), 0.1)
    network[2].weight.requires_grad_(False)  # a frozen part that learns later
    with holder(network, masks, optimizer):
        assert not network[2].weight.requires_grad
        network[2].weight.requires_grad_(True)
        loss(network).backward()
        kept = {key: leaf.grad.clone() for key, leaf in prunable({"n": network}).items()}
    for key, gradient in kept.items():
        assert not gradient[~masks[key]].any()
        assert bool((gradient[masks[key]] != 0).all())
    optimizer.zero_grad()
    loss(network).backward()
    for key, leaf in prunable({"n": network}).items():  # outside nothing is masked any more
        assert bool(leaf.grad[~masks[key]].any())
        assert torch.equal(leaf.grad[masks[key]], kept[key][masks[key]])


@pytest.mark.parametrize("name", ["SAM", "friendly SAM", "Lookahead"])
def test_the_step_of_an_optimizer_within_another_is_none_of_its_own(name):
    step, make = LOOPS[name]
    network = Net()
    with Clock({"n": network}, rewind_steps=2) as clock:
        optimizer = make(list(network.parameters()))
        for _ in range(4):
            step(network, optimizer)
    assert (clock.steps, clock.turns) == (4, {"n": 4})


class Free(torch.optim.Optimizer):
    """Schedule-free SGD that mixes gradients, so that its hidden sequence is never masked."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.training, self.count = True, 0

    @torch.no_grad()
    def step(self, closure=None):
        assert self.training
        self.count += 1
        for leaf in self.param_groups[0]["params"]:
            z = self.state[leaf].setdefault("z", leaf.clone())
            x = (leaf - 0.1 * z) / 0.9
            z.sub_(0.1 * (leaf.grad + leaf.grad.mean()))
            leaf.copy_(0.1 * z + 0.9 * x.lerp(z, 1 / self.count))

    @torch.no_grad()
    def eval(self):
        if self.training:
            for leaf in self.param_groups[0]["params"]:
                leaf.copy_((leaf - 0.1 * self.state[leaf]["z"]) / 0.9)
        self.training = False

    @torch.no_grad()
    def train(self):
        if not self.training:
            for leaf in self.param_groups[0]["params"]:
                leaf.copy_(0.1 * self.state[leaf]["z"] + 0.9 * leaf)
        self.training = True


@holders
def test_weights_of_evaluation_are_masked_too(holder):
    network = Net()
    masks, optimizer = half(network), Free(network.parameters())
    with holder(network, masks, optimizer):
        for _ in range(4):
            loss(network).backward()
            optimizer.step()
            optimizer.zero_grad()
            for mode in (optimizer.eval, optimizer.train):
                mode()
                assert Hold({"n": network}, masks).leaks() == []
    assert "eval" not in vars(optimizer)
    assert "train" not in vars(optimizer)


@pytest.mark.parametrize("left", ["training", "evaluating"])
@pytest.mark.parametrize("total", [None, 4, 3])
def test_a_clock_leaves_the_weights_that_an_optimizer_evaluates_by(left, total):
    """As its loop left them, or, where that was cut off, those of its last step."""
    network = Net()
    ys, xs = [], []
    with Clock({"n": network}, total_steps=total) as clock:
        optimizer = Free(network.parameters())
        for _ in range(4):
            loss(network).backward()
            optimizer.step()
            optimizer.zero_grad()
            ys.append(network[0].weight.detach().clone())
            z = optimizer.state[network[0].weight]["z"]
            xs.append((ys[-1] - 0.1 * z) / 0.9)
        if left == "evaluating":
            optimizer.eval()
    assert clock.judged == ["Free"]
    assert not optimizer.training
    torch.testing.assert_close(network[0].weight.detach(), xs[clock.steps - 1])
    assert clock.steps == (total or 4)


def test_what_train_leaves_is_judged_and_it_is_said(tmp_path):
    network, judged, said = Net(), [], []

    def train():
        optimizer = Free(network.parameters())
        for _ in range(4):
            loss(network).backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.eval()
        judged.append(network[0].weight.detach().clone())

    def judge():
        assert torch.equal(network[0].weight, judged[-1])
        return float(loss(network))

    tombola.draw(
        train, {"n": network}, steps=4, rewind="1it", rounds=1, rate="0.5", controls="none",
        judge=judge, better="lower", out=tmp_path / "o", tell=said.append,
    )  # fmt: skip
    assert len(judged) == 2
    assert all(line.endswith("judged with the evaluation weights of Free") for line in said)
    assert int((judged[1] == 0).sum()) >= 30


def test_copies_and_files_of_held_networks_are_free_and_nothing_stays():
    network = Net()
    guard = Guard({"n": network}, ["n.0.weight"])
    hold = Hold({"n": network}, half(network))
    guard.fit(hold)
    guard.apply(hold)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            twin[0].weight.fill_(1.0)
        loss(twin).backward()
        assert bool(twin[0].weight.all())
        assert bool(twin[0].weight.grad.all())
    guard.close()
    assert not any(layer._forward_pre_hooks for layer in network)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    network(X)
    assert bool(network[0].weight.all())


def test_an_open_graph_is_not_written_to():
    """A call in between changes nothing that a backward pass needs."""
    network = Net()
    masks, optimizer = half(network), SGD(network.parameters(), 0.1)
    with by_ticket(network, masks, optimizer):
        first = loss(network)
        loss(network)
        first.backward()
        optimizer.step()
