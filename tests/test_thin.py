"""Thin dense networks: do they cost what the smaller networks cost, and is it known where not?"""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch

from helpers import WideGAN
from tombola.config.registry import TASKS
from tombola.errors import ConfigError
from tombola.plan.thin import forward_macs, of_width, thin_networks, thin_plan
from tombola.sparsity.cutting import outputs_of
from tombola.tasks.adversarial import DCGAN
from tombola.training.scoring import inputs_of


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "ddpm" else n for n in TASKS.names()],
)
def test_no_other_width_of_any_quick_task_is_nearer_to_half_of_its_work(name):
    kind = TASKS.load(name)
    options = {k: v for k, v in kind.presets["quick"].items() if k not in ("epochs", "steps")}
    task = kind(**options)
    shape = task.image_shape(1)
    networks = task.networks(shape)
    inputs = inputs_of(task, networks, shape)
    wanted = {role: forward_macs(net, inputs[role]) // 2 for role, net in networks.items()}
    plan = thin_plan(task, shape, wanted)
    made = thin_networks(task, shape, plan)
    assert made.keys() == plan.keys() == networks.keys()
    for role, part in plan.items():
        work = {part["width"]: forward_macs(made[role], inputs[role])}
        assert part["ratio"] == work[part["width"]] / wanted[role]
        whole = [x.shape for x in outputs_of(networks[role], inputs[role])]
        for width in (part["width"] - 1, part["width"] + 1):
            with contextlib.suppress(Exception):  # a width that the task does not take
                other = of_width(task, width).networks(shape)[role]
                if [x.shape for x in outputs_of(other, inputs[role])] == whole:
                    work[width] = forward_macs(other, inputs[role])
        assert min(work, key=lambda width: abs(work[width] - wanted[role])) == part["width"]
        assert part["width"] < task.width or len(work) == 1, "of conv-ae no other width fits"


def test_every_network_is_drawn_anew_for_another_seed():
    """To learn what a network is called with draws numbers too, and those are the same always."""
    task, shape = WideGAN(), (1, 8, 8)
    plan = {name: {"width": 3} for name in ("discriminator", "generator")}
    made = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        made.append(thin_networks(task, shape, plan))
    for name in plan:
        first, other, again = (each[name][0 if name == "discriminator" else 1] for each in made)
        assert first.weight.shape == other.weight.shape
        assert not torch.equal(first.weight, other.weight), name
        assert torch.equal(first.weight, again.weight), name


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
