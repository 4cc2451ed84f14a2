"""Masks stay held: under every optimizer, with carried-over state, spectral norm, ties, EMA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tombola.errors import TicketError
from tombola.sparsity.criteria import magnitude
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks, ones, prunable
from tombola.sparsity.names import plain_state
from tombola.sparsity.select import top
from tombola.tickets.ticket import Ticket

STEPS = 200
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "sgd-nesterov-fused": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, fused=True
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda layer: layer,
    "spectral-old": spectral_norm,
    "spectral-new": parametrizations.spectral_norm,
}


def net(norm: str = "plain") -> nn.Sequential:
    torch.manual_seed(0)
    wrap = NORMS[norm]
    return nn.Sequential(wrap(nn.Conv2d(1, 3, 3)), nn.Tanh(), nn.Flatten(), wrap(nn.Linear(12, 2)))


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, hold: Hold | None = None
) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        images = torch.randn(4, 1, 4, 4)
        optimizer.zero_grad()
        ((module(images) - 1) ** 2).mean().backward()
        optimizer.step()
        if hold is not None:
            hold.apply()


def half(module: nn.Module) -> Masks:
    """Keep 25 of the 51 weights by magnitude."""
    return top(magnitude(dict(prunable({"net": module})), None, None, 0), 25)


def pruned_values(module: nn.Module, masks: Masks) -> Tensor:
    state = plain_state(module)
    return torch.cat([state[name.removeprefix("net.")][~mask] for name, mask in masks.items()])


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, "plain") for name in OPTIMIZERS]
    + [(name, norm) for name in ("sgd", "adam-fused") for norm in ("spectral-old", "spectral-new")],
)
def test_no_leak_in_200_steps_with_state_carried_over_from_dense(name: str, norm: str) -> None:
    module = net(norm)
    optimizer = OPTIMIZERS[name](module.parameters())
    train(module, optimizer, 10)
    masks = half(module)
    hold = Hold({"net": module}, masks)
    hold.apply()
    hold.mask_optimizer(optimizer)
    train(module, optimizer, STEPS, hold)
    assert hold.leaks() == []
    assert not pruned_values(module, masks).any()
    kept = plain_state(module)["0.weight"][masks["net.0.weight"]]
    assert bool((kept != 0).all())


def test_a_leak_is_seen() -> None:
    module = net()
    hold = Hold({"net": module}, half(module))
    optimizer = OPTIMIZERS["adam"](module.parameters())
    hold.apply()
    assert hold.leaks() == []
    train(module, optimizer, 1)
    assert hold.leaks() == ["net.0.weight", "net.3.weight"]
    hold.apply()
    assert hold.leaks() == []
    with torch.no_grad():
        module[3].weight[:, :] = torch.nan
    assert hold.leaks() == ["net.3.weight"]


def test_apply_is_the_product_and_keeps_the_leaf() -> None:
    layer = nn.Linear(3, 1, bias=False)
    leaf = layer.weight
    with torch.no_grad():
        leaf.copy_(torch.tensor([[1.5, -2.0, 3.0]]))
    Hold({"n": layer}, {"n.weight": torch.tensor([[True, False, True]])}).apply()
    assert leaf.tolist() == [[1.5, 0.0, 3.0]]
    assert layer.weight is leaf
    assert leaf.requires_grad
    assert leaf.grad_fn is None


@pytest.mark.parametrize("name", ["sgd", "adam", "adam-fused", "adam-amsgrad", "rmsprop"])
def test_moments_are_zero_at_pruned_positions_only(name: str) -> None:
    module = net()
    optimizer = OPTIMIZERS[name](module.parameters())
    train(module, optimizer, 5)
    masks = half(module)
    before = copy.deepcopy(optimizer.state_dict())["state"]
    Hold({"net": module}, masks).mask_optimizer(optimizer)
    mask = masks["net.0.weight"]
    seen = 0
    for key, value in optimizer.state[module[0].weight].items():
        if value.shape == mask.shape:
            seen += 1
            assert not value[~mask].any()
            assert torch.equal(value[mask], before[0][key][mask])
        else:
            assert torch.equal(value, before[0][key])
    assert seen >= 1
    for key, value in optimizer.state[module[0].bias].items():
        assert torch.equal(value, before[1][key])


def test_moments_of_other_networks_and_fresh_optimizers_are_left_alone() -> None:
    module, other = net(), net()
    fresh = OPTIMIZERS["adam"](module.parameters())
    foreign = OPTIMIZERS["adam"](other.parameters())
    train(other, foreign, 2)
    hold = Hold({"net": module}, half(module))
    hold.mask_optimizer(fresh)
    assert not fresh.state
    before = foreign.state[other[0].weight]["exp_avg"].clone()
    hold.mask_optimizer(foreign)
    assert torch.equal(foreign.state[other[0].weight]["exp_avg"], before)


@pytest.mark.parametrize("norm", ["spectral-old", "spectral-new"])
def test_spectral_norm_is_masked_before_normalising(norm: str) -> None:
    torch.manual_seed(0)
    layer = NORMS[norm](nn.Linear(20, 20))
    masks = top(magnitude(dict(prunable({"n": layer})), None, None, 0), 80)
    Hold({"n": layer}, masks).apply()
    for _ in range(200):
        layer(torch.zeros(1, 20))
    weight = layer.weight.detach()
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0, abs=1e-3)
    assert not weight[~masks["n.weight"]].any()


@pytest.mark.parametrize("norm", NORMS)
def test_deepcopy_copies_the_weights_and_is_held_on_its_own(norm: str) -> None:
    module = net(norm)
    masks = half(module)
    hold = Hold({"net": module}, masks)
    hold.apply()
    twin = copy.deepcopy(module)
    assert not pruned_values(twin, masks).any()
    train(twin, OPTIMIZERS["sgd"](twin.parameters()), 2)
    assert pruned_values(twin, masks).any()
    assert hold.leaks() == []
    Hold({"net": twin}, masks).apply()
    assert not pruned_values(twin, masks).any()


@pytest.mark.parametrize("share", ["inside", "across"])
def test_shared_weights_are_held_once(share: str) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    inside = {"n": nn.Sequential(first, second)}
    networks = inside if share == "inside" else {"n": first, "m": second}
    masks = top(magnitude(dict(prunable(networks)), None, None, 0), 4)
    assert len(masks) == 1
    hold = Hold(networks, masks)
    hold.apply()
    assert int((second.weight != 0).sum()) == 4
    name = next(iter(masks))
    alias = "n.1.weight" if share == "inside" else "m.weight"
    assert Hold(networks, {alias: masks[name]}).names == [alias]
    assert Hold(networks, {name: masks[name], alias: masks[name]}).names == [name]
    with pytest.raises(TicketError, match="differ, but the networks share"):
        Hold(networks, {name: masks[name], alias: ~masks[name]})


def test_channels_last_keeps_its_layout() -> None:
    module = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    mask = torch.zeros(3, 4, 3, 3, dtype=torch.bool)
    mask[1, 2] = True
    expected = module.weight.detach() * mask
    hold = Hold({"n": module}, {"n.weight": mask})
    hold.apply()
    assert torch.equal(module.weight, expected)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert hold._masks[0].stride() == module.weight.stride()


def test_bfloat16_weights() -> None:
    module = net().to(torch.bfloat16)
    masks = half(module)
    hold = Hold({"net": module}, masks)
    hold.apply()
    assert hold._masks[0].dtype == torch.bfloat16
    assert hold.leaks() == []
    assert not pruned_values(module, masks).any()


def test_wrapped_networks_take_metric_wordss() -> None:
    module = net()
    masks = half(module)
    Hold({"net": nn.DataParallel(torch.compile(module, backend="eager"))}, masks).apply()
    assert not pruned_values(module, masks).any()


def test_averaged_weights_are_masked_when_read() -> None:
    module = net()
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    average.update_parameters(module)  # starts at the dense weights
    masks = half(module)
    hold = Hold({"net": module}, masks)
    hold.apply()
    for _ in range(20):
        average.update_parameters(module)
    state = {f"net.{name}": value.clone() for name, value in plain_state(average).items()}
    weight = state["net.0.weight"].clone()
    mask = masks["net.0.weight"]
    assert weight[~mask].any(), "the average of dense weights leaks: that is why it is masked"
    hold.mask_state(state)
    assert not state["net.0.weight"][~mask].any()
    assert not torch.signbit(state["net.0.weight"][~mask]).any()
    assert torch.equal(state["net.0.weight"][mask], weight[mask])
    hold.mask_state({})
    with pytest.raises(TicketError, match=r"'net\.0\.weight' has shape \(2,\)"):
        hold.mask_state({"net.0.weight": torch.zeros(2)})


def test_a_mask_of_ones_changes_no_bit() -> None:
    module = net()
    with torch.no_grad():
        module[0].weight.view(-1)[:3] = torch.tensor([-0.0, 1e-45, -1e-45])
    before = copy.deepcopy(module.state_dict())
    hold = Hold({"net": module}, ones(prunable({"net": module})))
    hold.apply()
    for name, value in module.state_dict().items():
        assert torch.equal(value.view(torch.int32), before[name].view(torch.int32)), name


def test_no_masks_is_no_work() -> None:
    hold = Hold({"net": net()}, {})
    hold.apply()
    assert hold.names == []
    assert hold.leaks() == []


@pytest.mark.parametrize(
    ("masks", "text"),
    [
        ({"net.0.weigth": torch.ones(3, 1, 3, 3).bool()}, r"'net\.0\.weigth' .*'net\.0\.weight'"),
        ({"other.0.weight": torch.ones(3, 1, 3, 3).bool()}, r"'other\.0\.weight'"),
        ({"net.0.weight": torch.ones(3, 3).bool()}, r"'net\.0\.weight' has shape \(3, 3\)"),
        ({"net.0.weight": torch.ones(3, 1, 3, 3)}, r"'net\.0\.weight' is torch\.float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: dict[str, Any], text: str) -> None:
    with pytest.raises(TicketError, match=text):
        Hold({"net": net()}, masks)


def test_buffers_cannot_be_masked() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(TicketError, match="running_var"):
        Hold({"n": module}, {"n.0.running_var": torch.ones(2, dtype=torch.bool)})


def test_what_two_networks_share_is_masked_under_both_names() -> None:
    shared = nn.Linear(3, 3, bias=False)
    networks = {"n": nn.Sequential(shared), "m": nn.Sequential(nn.ReLU(), shared)}
    mask = torch.tensor([[True, False, True]] * 3)
    hold = Hold(networks, {"n.0.weight": mask})
    state = {"n.0.weight": torch.ones(3, 3), "m.1.weight": torch.ones(3, 3)}
    for each in (hold, hold.part([shared.weight])):
        each.mask_state(state)
        assert all(torch.equal(value, mask.float()) for value in state.values())
        state = {name: torch.ones(3, 3) for name in state}


def test_a_ticket_starts_what_two_networks_share_with_its_mask() -> None:
    shared = nn.Linear(3, 3, bias=False)
    networks = {"n": nn.Sequential(shared), "m": nn.Sequential(nn.ReLU(), shared)}
    mask = torch.tensor([[True, False, True]] * 3)
    weights = {"n.0.weight": -torch.ones(3, 3), "m.1.weight": -torch.ones(3, 3)}
    Ticket({"n.0.weight": mask}, weights).start(networks)
    assert torch.equal(shared.weight.detach(), -mask.float())
    assert not torch.signbit(shared.weight.detach()[~mask]).any()
