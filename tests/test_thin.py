"""Thin dense networks: do they cost what the smaller networks cost, and is it known where not?"""

from __future__ import annotations

import warnings

import pytest
import torch

from helpers import WideGAN
from tombola.errors import ConfigError
from tombola.recipes.thin import NEAR, forward_macs, thin_networks, thin_plan
from tombola.registry import TASKS
from tombola.runtime import rng
from tombola.sparsity.compact import Channels
from tombola.sparsity.cutting import copied, shrink
from tombola.sparsity.earlybird import channel_masks
from tombola.tasks.adversarial import DCGAN
from tombola.training.scoring import inputs_of


def work_of_a_cut(networks, inputs, share):
    """The multiply-adds of each network with random channels of it cut, as many as asked."""
    wanted = {}
    for name, network in networks.items():
        channels = Channels.of({name: network}, {name: inputs[name]}, ["all"])
        scores = {g.name: torch.rand(g.n, generator=rng(1, g.name)) for g in channels.groups}
        small = copied({name: network})
        shrink(small, channels.cut(channel_masks(scores, share)))
        wanted[name] = forward_macs(small[name], inputs[name])
    return wanted


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "ddpm" else n for n in TASKS.names()],
)
def test_half_of_any_quick_task_is_met_within_2_percent_by_each_network(name):
    kind = TASKS.load(name)
    options = {k: v for k, v in kind.presets["quick"].items() if k not in ("epochs", "steps")}
    task = kind(**options)
    shape = task.image_shape(1)
    networks = task.networks(shape)
    inputs = inputs_of(task, networks, shape)
    wanted = work_of_a_cut(networks, inputs, "0.5")
    plan = thin_plan(task, shape, wanted)
    made = thin_networks(task, shape, plan)
    assert made.keys() == plan.keys() == networks.keys()
    for role, network in made.items():
        ratio = forward_macs(network, inputs[role]) / wanted[role]
        assert plan[role]["ratio"] == ratio
        assert abs(ratio - 1) <= NEAR, role
        assert wanted[role] < 0.75 * forward_macs(networks[role], inputs[role])


def test_every_network_is_drawn_anew_for_another_seed():
    """To learn what a network is called with draws numbers too, and those are the same always."""
    task, shape = WideGAN(), (1, 8, 8)
    networks = task.networks(shape)
    wanted = work_of_a_cut(networks, inputs_of(task, networks, shape), "0.7")
    plan = thin_plan(task, shape, dict(sorted(wanted.items())))
    assert plan["discriminator"]["counts"], "the first is cut, for which its inputs are learnt"
    made = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        made.append(thin_networks(task, shape, plan))
    for name in plan:
        first, other, again = (each[name][0 if name == "discriminator" else 1] for each in made)
        assert first.weight.shape == other.weight.shape
        assert not torch.equal(first.weight, other.weight), name
        assert torch.equal(first.weight, again.weight), name


def test_where_whole_channels_come_no_nearer_the_plan_says_how_far():
    """Of two channels and one, there is nothing to take or give that is less than 2%."""
    task = WideGAN(width=1)
    shape = (1, 8, 8)
    networks = task.networks(shape)
    inputs = inputs_of(task, networks, shape)
    wanted = {name: round(0.93 * forward_macs(n, inputs[name])) for name, n in networks.items()}
    plan = thin_plan(task, shape, wanted)
    made = thin_networks(task, shape, plan)
    for name, network in made.items():
        ratio = forward_macs(network, inputs[name]) / wanted[name]
        assert plan[name]["ratio"] == ratio
        assert abs(ratio - 1) > NEAR


def test_a_task_without_width_cannot_be_made_thin():
    class Fixed(DCGAN):
        width = 4

        @classmethod
        def options(cls):
            return {k: v for k, v in super().options().items() if k != "width"}

    task = Fixed()
    networks = task.networks((1, 32, 32))
    with pytest.raises(ConfigError, match="by the option width, which Fixed does not have"):
        thin_plan(task, (1, 32, 32), dict.fromkeys(networks, 1000))


class Normed(WideGAN):
    """A critic under the older weight norm, which torch refuses to copy as it comes."""

    def networks(self, shape):
        networks = super().networks(shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.nn.utils.weight_norm(networks["discriminator"][0])
        return networks


def test_what_torch_does_not_copy_is_asked_for_its_inputs_too():
    task = Normed()
    inputs = inputs_of(task, task.networks((1, 8, 8)), (1, 8, 8))
    assert [tuple(x.shape[1:]) for x in inputs["discriminator"]] == [(1, 8, 8)]
