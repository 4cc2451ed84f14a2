"""Is a pruned weight zero in what its layer computes with? Else it is refused, by name, at once."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import tombola
from helpers import TinyAE
from tombola.errors import ConfigError
from tombola.loops.clock import Clock
from tombola.plan.trial import check_products, try_task
from tombola.sparsity.guard import Guard
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import prunable
from tombola.tickets.ticket import Ticket
from tombola.training.trainer import named_state

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Softplus(nn.Module):
    def forward(self, w):
        return F.softplus(w)


class Standard(nn.Module):
    def forward(self, w):
        return (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)


class Upper(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).t()


class Scaled(nn.Module):
    """What keeps zeros: a gain, a square, a straight-through sign."""

    def forward(self, w):
        return w + (0.1 * w.sign() * w.square() - w).detach() + 0.5 * w


def wrapped(part, layer=None):
    layer = layer or nn.Linear(8, 8)
    if isinstance(part, nn.Module):
        parametrize.register_parametrization(layer, "weight", part)
        return layer
    return part(layer)


def net(layer):
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 8))


LOST = {
    "softplus": (Softplus(), "the weight that Softplus makes of it is not"),
    "orthogonal": (parametrizations.orthogonal, "the weight that Orthogonal makes of it"),
    "standardised": (Standard(), "the weight that Standard makes of it is not"),
    "symmetric": (Upper(), "the weight that Upper makes of it is not"),
    "pruned already": (
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        r"call torch\.nn\.utils\.prune\.remove\(module, 'weight'\) first",
    ),
    "pruned twice": (
        lambda layer: prune.l1_unstructured(prune.identity(layer, "weight"), "weight", 3),
        r"call torch\.nn\.utils\.prune\.remove",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_a_parametrization_that_loses_zeros_is_refused_by_name_unless_left_out(name):
    part, words = LOST[name]
    networks = {"ae": net(wrapped(copy.deepcopy(part)))}
    with pytest.raises(ConfigError, match=rf"^'ae\.0\.weight' cannot be pruned: .*{words}"):
        prunable(networks)
    assert list(prunable(networks, exclude=["ae.0.weight"])) == ["ae.2.weight"]
    assert list(prunable(networks, exclude=["first"])) == ["ae.2.weight"]
    with pytest.raises(ConfigError, match=words):  # registered after the masks were drawn
        Hold(networks, {"ae.0.weight": torch.ones(8, 8, dtype=torch.bool)})


def test_all_that_is_refused_is_named_at_once_and_other_networks_do_not_matter():
    layers = [wrapped(Softplus()) for _ in range(3)]
    networks = {"g": nn.Sequential(*layers), "d": nn.Linear(8, 8)}
    with pytest.raises(ConfigError, match=r"^'g\.0\.weight' .*\(so too g\.1\.weight, g\.2\.wei"):
        prunable(networks)
    assert list(prunable(networks, ["d"])) == ["d.weight"]


KEPT = {
    "spectral, old": spectral_norm,
    "spectral, new": parametrizations.spectral_norm,
    "gain": Scaled(),
    "weight norm, old": weight_norm,
    "weight norm, new": parametrizations.weight_norm,
    "weight norm by columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight norm, then a gain": lambda layer: wrapped(
        Scaled(), parametrizations.weight_norm(layer)
    ),
}
DIRECTION = {"old": "weight_v", "new": "weight_original1"}


@pytest.mark.parametrize("name", KEPT)
def test_where_zeros_stay_zeros_the_effective_weight_is_as_sparse_as_its_mask(name):
    network = net(wrapped(KEPT[name]))
    found = prunable({"ae": network})
    first = next(iter(found))
    if "norm" in name:
        assert first == f"ae.0.{DIRECTION['old' if 'old' in name else 'new']}"
    generator = torch.Generator().manual_seed(1)
    masks = {key: torch.rand(leaf.shape, generator=generator) < 0.5 for key, leaf in found.items()}
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    with Ticket(masks, named_state({"ae": network})).enforce({"ae": network}, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            (network(X) - X).square().mean().backward()
            optimizer.step()
    network(X)
    weight = network[0].weight.detach()
    assert not weight[~masks[first]].any()
    assert bool(weight[masks[first]].all())


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
def test_a_mask_that_leaves_a_row_no_direction_is_refused_before_it_divides_by_zero(norm):
    networks = {"ae": net(norm(nn.Linear(8, 8)))}
    name, leaf = next(iter(prunable(networks).items()))
    mask = torch.ones(leaf.shape, dtype=torch.bool)
    mask[3, :7] = False
    Hold(networks, {name: mask})
    mask[3] = False
    with pytest.raises(ConfigError, match=rf"{name}' leaves nothing of some outputs"):
        Hold(networks, {name: mask})


def test_a_weight_made_of_several_tensors_is_refused_and_can_be_left_out():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

        def right_inverse(self, w):
            return w / 2, w / 2

    networks = {"ae": net(wrapped(Sum()))}
    with pytest.raises(ConfigError, match=r"'ae\.0\.weight' .* computed from several tensors"):
        prunable(networks)
    assert list(prunable(networks, exclude=["ae.0.weight"])) == ["ae.2.weight"]


def test_complex_parameters_are_refused_in_whatever_network():
    odd = nn.Linear(2, 2, dtype=torch.complex64)
    for networks in ({"ae": odd}, {"ae": nn.Linear(2, 2), "other": odd}):
        with pytest.raises(ConfigError, match=r"\.weight' is a complex parameter"):
            prunable(networks, ["ae"])


# --- layers of their own forward -----------------------------------------------------------------


class OwnStandard(nn.Conv1d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2), keepdim=True)
        return F.conv1d(x, w, self.bias)


class OwnSoftplus(nn.Linear):
    def forward(self, x, scale=1.0):
        return scale * (x @ F.softplus(self.weight).t()) + self.bias


class OwnProduct(nn.Linear):
    """Made of the weight by products alone, of nothing that comes in."""

    def forward(self, x):
        return F.linear(x, self.weight @ self.weight.t() @ self.weight, self.bias)


class OwnConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight + 1, bias)


class Equal(nn.Linear):
    """ProGAN's: scaled when it is used."""

    def forward(self, x):
        return F.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


class Low(nn.Linear):
    """LoRA's: something small beside the weight, made of what comes in."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return super().forward(x) + self.b(self.a(x))


class Modulated(nn.Conv2d):
    """StyleGAN2's: scaled by what comes in, the batch folded into groups."""

    def forward(self, x):
        n, c = x.shape[:2]
        weight = self.weight * x.mean((2, 3)).view(n, 1, c, 1, 1)
        made = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), groups=n)
        return made.view(n, -1, *made.shape[2:])


class Attending(nn.Linear):
    """Products of activations with each other."""

    def forward(self, x):
        h = super().forward(x)
        return torch.softmax(h @ h.t(), -1) @ h


class Hooked(nn.Linear):
    """A weight that a hook of one's own makes before each call."""

    def __init__(self, *sizes, plus=0.0):
        super().__init__(*sizes)
        weight = self._parameters.pop("weight")
        self.register_parameter("weight_orig", weight)
        self.weight = weight.detach()
        self.register_forward_pre_hook(
            lambda layer, _: setattr(layer, "weight", 2 * layer.weight_orig + plus)
        )


IMAGE = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
OWN = {
    "standardised": (OwnStandard(8, 8, 3), IMAGE.flatten(2), True),
    "softplus": (OwnSoftplus(8, 8), X, True),
    "product": (OwnProduct(8, 8), X, True),
    "convolution": (OwnConv(8, 4, 3), IMAGE, True),
    "hook, shifted": (Hooked(8, 8, plus=1.0), X, True),
    "plain": (nn.Linear(8, 8), X, False),
    "equalised": (Equal(8, 8), X, False),
    "low rank beside": (Low(8, 8), X, False),
    "modulated": (Modulated(8, 4, 3), IMAGE, False),
    "attending": (Attending(8, 8), X, False),
    "hook": (Hooked(8, 8), X, False),
}


def call(way, layer, x):
    if way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)
    if way == "no grad":
        with torch.no_grad():
            return layer(x)
    if way == "inference":
        with torch.inference_mode():
            return layer(x)
    if way == "half":
        return layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    return layer(x)


@pytest.mark.parametrize("way", ["plain", "autocast", "no grad", "inference", "half"])
@pytest.mark.parametrize("name", OWN)
def test_a_layer_of_its_own_forward_is_looked_at_when_it_is_first_called(name, way):
    layer, x, lost = OWN[name]
    layer = copy.deepcopy(layer)
    before = copy.deepcopy(layer.state_dict())
    guard = Guard({"n": layer}, ["n.weight"])
    state = torch.get_rng_state()
    try:
        if lost:
            with pytest.raises(ConfigError, match=r"^'n\.weight' cannot be pruned: .*forward com"):
                call(way, layer, x)
        else:
            call(way, layer, x)
            call(way, layer, x)
    finally:
        guard.close()
    assert torch.equal(torch.get_rng_state(), state)
    layer.float()
    if way != "half":
        assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def test_keywords_of_a_call_are_seen_and_only_pruned_layers_are_looked_at():
    layer = OwnSoftplus(8, 8)
    guard = Guard({"n": layer}, [])
    layer(X, scale=2.0)
    guard.close()
    guard = Guard({"n": layer}, ["n.weight"])
    with pytest.raises(ConfigError, match=r"OwnSoftplus\.forward"):
        layer(X, scale=2.0)
    guard.close()


def test_compiled_layers_run_whole_and_averages_raise_no_alarm():
    network = net(Equal(8, 8))
    masks = {"n.0.weight": torch.eye(8).bool()}
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    average = AveragedModel(network)
    with Ticket(masks, named_state({"n": network})).enforce({"n": network}, optimizer):
        compiled(X).sum().backward()
        optimizer.step()
        average.update_parameters(network)
        average(X)
        network(X)
    assert not network[0].weight[~masks["n.0.weight"]].any()


def test_a_task_whose_layers_lose_zeros_is_refused_when_it_is_tried():
    class Own(TinyAE):
        def networks(self, shape):
            made = super().networks(shape)
            made["decoder"][0] = OwnSoftplus(12, 64)
            return made

    networks, _ = try_task(Own(), (1, 8, 8))
    check_products(Own(), networks, (1, 8, 8), ["encoder.1.weight"])
    with pytest.raises(ConfigError, match=r"'decoder\.0\.weight' cannot be pruned"):
        check_products(Own(), networks, (1, 8, 8), ["encoder.1.weight", "decoder.0.weight"])


SOFT = """
import sys
sys.path.insert(0, {tests!r})
import helpers
from test_effective import OwnSoftplus

class Soft(helpers.TinyAE):
    def networks(self, shape):
        made = super().networks(shape)
        made["decoder"][0] = OwnSoftplus(12, 64)
        return made
"""


def test_find_refuses_such_a_layer_before_any_training(tmp_path):
    path = tmp_path / "soft.py"
    path.write_text(SOFT.format(tests=str(Path(__file__).parent)), "utf-8")
    with pytest.raises(ConfigError, match=r"'decoder\.0\.weight' cannot be pruned"):
        tombola.find(f"{path}:Soft", out=tmp_path / "o", seeds=1, rounds=1)
    assert not (tmp_path / "o" / "store").exists()


def test_draw_refuses_such_a_layer_before_its_first_step(tmp_path):
    network, steps = net(OwnSoftplus(8, 8)), []

    def train():
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for step in range(4):
            network(X).sum().backward()
            optimizer.step()
            steps.append(step)

    options = {"steps": 4, "rewind": "1it", "rounds": 1, "controls": "none", "rate": "0.5"}
    with pytest.raises(ConfigError, match=r"'ae\.0\.weight' cannot be pruned"):
        tombola.draw(train, {"ae": network}, out=tmp_path / "o", **options)
    assert steps == []
    options["exclude"] = ["ae.0.weight"]
    tombola.draw(train, {"ae": network}, out=tmp_path / "p", **options)
    assert len(steps) == 8


def test_a_clock_looks_at_what_will_be_pruned():
    network = net(OwnSoftplus(8, 8))
    with Clock({"n": network}, pruned=["n.2.weight"]):
        network(X)
    with (
        pytest.raises(ConfigError, match=r"'n\.0\.weight' cannot be pruned"),
        Clock({"n": network}, pruned=["n.0.weight"]),
    ):
        network(X)
    network(X)
