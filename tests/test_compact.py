"""Channel tickets to smaller networks: the same answers, the same training, or a clear refusal."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import tombola
from helpers import stir
from test_imports import MODULES, python
from tombola.config.registry import TASKS
from tombola.errors import ConfigError, TicketError
from tombola.sparsity.channels import channel_groups
from tombola.sparsity.compact import Channels, check_cut, cut_of, random_like, rounded
from tombola.sparsity.cutting import Cut, copied, floating_tensors, resize, shrink
from tombola.sparsity.names import plain_parameters, plain_state
from tombola.tickets.compact import compact
from tombola.tickets.ticket import Ticket, load, save_ticket
from tombola.training.scoring import inputs_of

OPTIONS = {
    "linear-ae": {"width": 10},
    "conv-ae": {"width": 2},
    "vae": {"width": 3, "latent": 5},
    "beta-vae": {"width": 2, "latent": 3},
    "resnet-vae": {"width": 3, "latent": 4},
    "dcgan": {"width": 3, "latent": 5},
    "sngan": {"width": 2, "latent": 5},
    "wgan": {"width": 2, "latent": 4},
    "wgan-gp": {"width": 2, "latent": 4},
    "resnet-dcgan": {"width": 5, "latent": 4},
    "ddpm": {"width": 8, "levels": (1, 2), "blocks": 1, "patch": 2},
}
LATENT = {
    "linear-ae": 3,
    **{name: each["latent"] for name, each in OPTIONS.items() if "latent" in each},
}
BATCH_NORMED = sorted({"vae", "beta-vae", "resnet-vae", "dcgan", "wgan", "resnet-dcgan"})
SHAPE = (3, 32, 32)


@functools.cache
def task_of(name: str):
    """(networks with stirred weights, what they are called with, all that can be cut in them)."""
    task = TASKS.load(name)(**OPTIONS[name])
    torch.manual_seed(0)
    networks = task.networks(SHAPE)
    inputs = inputs_of(task, networks, SHAPE)
    for seed, network in enumerate(networks.values()):
        stir(network, seed)
    groups = [g for n in networks for g in channel_groups(n, networks[n], inputs[n])]
    return networks, inputs, Channels(tuple(g for g in groups if not g.reason))


def off(some, others) -> float:
    """The largest difference of two answers, as a share of the first one's largest number."""
    pairs = list(zip(floating_tensors(some), floating_tensors(others), strict=True))
    scale = max(float(a.detach().abs().max()) for a, _ in pairs)
    return max(float((a - b).detach().abs().max()) for a, b in pairs) / scale


def drawn_kept(channels: Channels, seed: int) -> dict[str, Tensor]:
    """Of each group some channels, at least one, not all if it has two."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in channels.groups:
        kept[group.name] = torch.rand(group.n, generator=generator) < 0.6
        kept[group.name][torch.randperm(group.n, generator=generator)[:2]] = torch.tensor(
            [True, False]
        )
    return kept


def state_of(networks) -> dict[str, Tensor]:
    return {
        f"{n}.{k}": v.clone() for n, net in networks.items() for k, v in plain_state(net).items()
    }


def ticket_of(networks, channels: Channels, kept, inputs=None, **more) -> Ticket:
    """A channel ticket as a search saves it."""
    manifest = {"granularity": "channel", **more}
    if inputs is not None:
        manifest["inputs"] = {n: [list(x.shape[1:]) for x in each] for n, each in inputs.items()}
    return Ticket(channels.masks(kept, networks), state_of(networks), manifest)


# --- the tasks -----------------------------------------------------------------------------------


def test_every_registered_task_is_here() -> None:
    assert sorted(OPTIONS) == sorted(TASKS.names())


@pytest.mark.parametrize("name", OPTIONS)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a mask that fails says as much as a simpler one, minutes earlier
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_smaller_network_of_any_task_answers_as_with_zeros(name: str, data) -> None:
    networks, inputs, channels = task_of(name)
    before = state_of(networks)
    kept = {
        g.name: torch.tensor(
            data.draw(st.lists(st.booleans(), min_size=g.n, max_size=g.n).filter(any), g.name)
        )
        for g in channels.groups
    }
    cut = channels.cut(kept)
    masked, small = copied(networks), copied(networks)
    cut.zero(masked)
    shrink(small, cut)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "inputs"))
    for each, network in networks.items():
        asked = [torch.randn(3, *x.shape[1:], generator=generator).double() for x in inputs[each]]
        for training in (False, True):
            masked[each].double().train(training)
            small[each].double().train(training)
            wanted, made = masked[each](*asked), small[each](*asked)
            assert off(wanted, made) < 1e-9, (each, training)
        whole = copied({each: network})[each](*(x.float() for x in asked))
        assert [x.shape for x in floating_tensors(whole)] == [
            x.shape for x in floating_tensors(made)
        ]
        gone = any(not kept[g.name].all() for g in channels.groups if g.name.startswith(each))
        assert (count(small[each]) < count(network)) == gone
    assert same(before, state_of(networks))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    assert some.keys() == others.keys()
    return all(torch.equal(v, others[k]) and v.dtype == others[k].dtype for k, v in some.items())


GROUPS = {
    # network -> [channels of each group], in order
    "linear-ae": {"encoder": [10, 5, 12], "decoder": [12, 5, 10]},
    "conv-ae": {"encoder": [2, 4, 8, 16], "decoder": [16, 8, 4, 2]},
    "vae": {"encoder": [3, 6, 12, 24], "decoder": [24, 12, 6, 3]},
    "beta-vae": {"encoder": [2, 4, 8, 16], "decoder": [16, 8, 4, 2]},
    "dcgan": {"generator": [24, 12, 6, 3], "discriminator": [3, 6, 12, 24]},
    "wgan": {"generator": [16, 8, 4, 2], "discriminator": [2, 4, 8, 16]},
    "wgan-gp": {"generator": [16, 8, 4, 2], "discriminator": [2, 4, 8, 16]},
    "sngan": {"generator": [16, 8, 4, 2], "discriminator": [2, 2, 4, 4, 8, 8, 16]},
    # Sets of four channels, but where no GroupNorm looks: before the repetition, and the time.
    "ddpm": {"denoiser": [2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 16, 32, 32]},
    # The stream of equal widths, and the inner width of each block.
    "resnet-dcgan": {"generator": [5, 5, 5, 5], "discriminator": [5, 5, 5, 5, 5, 5]},
    "resnet-vae": {
        "encoder": [3, 3, 6, 6, 12, 12, 24, 24],
        "decoder": [24, 24, 12, 12, 6, 6, 3, 3],
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_groups_of_every_task(name: str) -> None:
    networks, _, channels = task_of(name)
    for network in networks:
        found = [g.n for g in channels.groups if g.name.startswith(f"{network}.")]
        assert sorted(found) == sorted(GROUPS[name][network]), network


@pytest.mark.parametrize("name", LATENT)
def test_latent_and_image_sizes_stay(name: str) -> None:
    networks, _, channels = task_of(name)
    small = copied(networks)
    shrink(small, channels.cut({g.name: torch.arange(g.n) < 1 for g in channels.groups}))
    maker = "generator" if "generator" in small else "decoder"
    small[maker].eval()
    assert small[maker](torch.randn(2, LATENT[name])).shape == (2, *SHAPE)
    if "encoder" in small:
        codes = small["encoder"].eval()(torch.randn(2, *SHAPE))
        assert {x.shape for x in floating_tensors(codes)} == {(2, LATENT[name])}
    else:
        assert small["discriminator"].eval()(torch.randn(2, *SHAPE)).shape == (2,)


def chain(widths: list[int], kernel: int) -> int:
    """Parameters of layers of k x k without bias, each with a BatchNorm."""
    return sum(a * b * kernel + 2 * b for a, b in itertools.pairwise(widths))


@pytest.mark.parametrize("seed", [1, 2])
def test_parameters_by_closed_form(seed: int) -> None:
    for name in ("dcgan", "vae"):
        networks, _, channels = task_of(name)
        kept = drawn_kept(channels, seed)
        small = copied(networks)
        shrink(small, channels.cut(kept))
        widths: dict[str, list[int]] = {n: [] for n in networks}
        for group in channels.groups:
            widths[group.name.partition(".")[0]].append(int(kept[group.name].sum()))
        if name == "dcgan":
            g, (d0, *d) = widths["generator"], widths["discriminator"]
            assert count(small["generator"]) == (
                chain([5, *g[:1]], 16) + chain(g, 16) + g[-1] * 3 * 9 + 3
            )
            assert count(small["discriminator"]) == (
                (3 * d0 * 16 + d0) + chain([d0, *d], 16) + d[-1] * 4 + 1
            )
        else:
            e, d = widths["encoder"], widths["decoder"]
            assert count(small["encoder"]) == chain([3, *e], 16) + e[-1] * 10 * 4 + 10
            assert count(small["decoder"]) == (
                chain([5, d[0]], 4) + chain(d, 16) + d[-1] * 3 * 16 + 3
            )


# --- tickets -------------------------------------------------------------------------------------


def prune_all(name: str):
    networks, inputs, _ = task_of(name)
    return networks, inputs, Channels.of(networks, inputs, ["all"])


@pytest.mark.parametrize("name", ["dcgan", "wgan-gp", "conv-ae", "resnet-dcgan", "linear-ae"])
def test_the_bits_of_a_ticket_come_back(name: str) -> None:
    networks, _, channels = prune_all(name)
    for seed in range(3):
        kept = drawn_kept(channels, seed)
        masks = channels.masks(kept, networks)
        again = channels.kept(masks)
        assert same(kept, again)
        ranked = [g for g in channels.groups if g.scales]
        for group in ranked:
            assert all(torch.equal(masks[scale], kept[group.name]) for scale in group.scales)


def test_the_bits_come_back_where_groups_share_a_norm() -> None:
    from test_channels import CASES

    for case in ("dense block", "norm of a concatenation"):
        network, inputs = CASES[case].make(), (torch.zeros(2, 3, 8, 8),)
        channels = Channels.of({"n": network}, {"n": inputs}, ["n"])
        assert len(channels.groups) == 2
        for seed in range(4):
            kept = drawn_kept(channels, seed)
            masks = channels.masks(kept, {"n": network})
            assert same(channels.kept(masks), kept)


def test_a_file_makes_the_same_smaller_networks(tmp_path) -> None:
    networks, inputs, channels = prune_all("dcgan")
    kept = drawn_kept(channels, 3)
    save_ticket(tmp_path / "ticket", ticket_of(networks, channels, kept, inputs))
    ticket = load(tmp_path / "ticket")
    assert isinstance(ticket, Ticket)
    fresh = copied(networks)
    ticket.start(fresh)
    before = state_of(fresh)
    small = compact(fresh, ticket)
    assert same(before, state_of(fresh))
    away = channels.cut(kept)
    wanted = {k: away.apply(k, v) for k, v in ticket.weights.items()}
    assert same(state_of(small), wanted)
    for group in channels.groups:
        scale = small[group.name.partition(".")[0]].get_parameter(group.scales[0].split(".", 1)[1])
        assert len(scale) == int(kept[group.name].sum())


def test_the_copies_are_as_the_networks_were() -> None:
    networks, inputs, channels = prune_all("dcgan")
    networks = copied(networks)
    networks["generator"].to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    networks["discriminator"].eval().requires_grad_(False)
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0), inputs)
    small = compact(networks, ticket)
    for name, network in networks.items():
        assert small[name].training == network.training
        for key, leaf in small[name].named_parameters():
            own = network.get_parameter(key)
            assert (leaf.dtype, leaf.requires_grad) == (own.dtype, own.requires_grad)
            assert (
                leaf.is_contiguous(memory_format=torch.channels_last)
                or leaf.dim() != 4
                or (name == "discriminator")
            )
    modes = {part.training for part in small["discriminator"].modules()}
    assert modes == {False}


def test_inputs_given_go_before_those_of_the_ticket() -> None:
    networks, inputs, channels = prune_all("dcgan")
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0))
    ticket.manifest["inputs"] = {"generator": [[99]], "discriminator": [[1]]}
    with pytest.raises(ConfigError, match="cannot be followed"):
        compact(networks, ticket)
    tensors = {name: each[0] for name, each in inputs.items()}
    some, others = compact(networks, ticket, inputs), compact(networks, ticket, tensors)
    assert same(state_of(some), state_of(others))


def test_a_network_that_the_ticket_does_not_prune_is_copied_whole() -> None:
    networks, inputs, _ = task_of("dcgan")
    channels = Channels.of(networks, inputs, ["generator"])
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0), inputs)
    small = compact(networks, ticket)
    assert count(small["generator"]) < count(networks["generator"])
    assert same(plain_state(small["discriminator"]), plain_state(networks["discriminator"]))
    assert small["discriminator"] is not networks["discriminator"]
    assert small.keys() == networks.keys()


def test_a_ticket_that_keeps_all_is_no_error() -> None:
    networks, inputs, channels = prune_all("dcgan")
    kept = drawn_kept(channels, 0)
    whole = {
        name: torch.ones_like(bits) if name.startswith("generator") else bits
        for name, bits in kept.items()
    }
    small = compact(networks, ticket_of(networks, channels, whole, inputs))
    assert count(small["generator"]) == count(networks["generator"])
    assert count(small["discriminator"]) < count(networks["discriminator"])


def refused(kind, words: str, networks, ticket, inputs=None) -> None:
    with pytest.raises(kind, match=words) as caught:
        compact(networks, ticket, inputs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_errors_of_tickets() -> None:
    networks, inputs, channels = prune_all("dcgan")
    kept = drawn_kept(channels, 0)
    ticket = ticket_of(networks, channels, kept, inputs)
    generator = {"generator": networks["generator"]}
    refused(TicketError, "of network discriminator, which was not given", generator, ticket)
    refused(
        TicketError, "prunes single weights.*--method early-bird", networks,
        Ticket(ticket.masks, ticket.weights, {"granularity": "weight"}),
    )  # fmt: skip
    refused(TicketError, "prunes single weights", networks, Ticket(ticket.masks, ticket.weights))
    wider = TASKS.load("dcgan")(width=4, latent=5).networks(SHAPE)
    refused(TicketError, r"is \[24\], but the network has 32 channels there", wider, ticket)
    strange = ticket_of(networks, channels, kept, inputs)
    strange.masks["discriminator.main.0.weight"] = torch.ones(3, 3, 4, 4, dtype=torch.bool)
    refused(TicketError, "discriminator.main.0.weight is on no channels", networks, strange)
    name = channels.groups[1].scales[0]
    emptied = ticket_of(networks, channels, kept, inputs)
    emptied.masks[name] = torch.zeros_like(emptied.masks[name])
    refused(TicketError, "takes away every channel of generator", networks, emptied)


def test_a_mask_that_divides_what_goes_together_is_refused() -> None:
    networks, inputs, channels = prune_all("resnet-vae")
    group = next(g for g in channels.groups if len(g.scales) > 1)
    kept = drawn_kept(channels, 0)
    ticket = ticket_of(networks, channels, kept, inputs)
    ticket.masks[group.scales[1]] = ~ticket.masks[group.scales[1]]
    refused(TicketError, "divides channels that go together", networks, ticket)
    networks, inputs, channels = prune_all("wgan-gp")
    group = next(g for g in channels.groups if not g.scales)
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0), inputs)
    row = int(ticket.masks[group.filters[0].tensor].flatten(1).any(1).nonzero()[0])
    ticket.masks[group.filters[0].tensor][row, 0, 0, 0] = False
    refused(TicketError, "divides channels that go together", networks, ticket)


def test_what_the_networks_are_called_with_must_be_known() -> None:
    networks, inputs, channels = prune_all("dcgan")
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0))
    words = r"does not say what network 'discriminator' is called with; give inputs=\{'disc"
    refused(ConfigError, words, networks, ticket)
    refused(ConfigError, words, networks, ticket, {"generator": inputs["generator"]})
    refused(ConfigError, "inputs is a Tensor; give a dict", networks, ticket, torch.zeros(2, 5))
    for wrong in (5, "text", [1, 2], (), {"x": 1}):
        refused(
            ConfigError, "inputs of 'discriminator' is a .*; give a tensor", networks, ticket,
            {**inputs, "discriminator": wrong},
        )  # fmt: skip


def nested(depth: int) -> list:
    found: list = [3]
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "shapes",
    [
        "text", 5, {"0": [3, 32, 32]}, [], [3, 32, 32], ["text"], [[3, "32", 32]], [[3, 32.0, 32]],
        [[-3, 32, 32]], [[0]], [[True, 3]], [[1 << 62]], [[1 << 20, 1 << 20]], [None],
        [[1] * 9], [[1 << 24]] * 2, [[1]] * 17, [[1 << 24] * 100_000], nested(900), [[10**400]],
    ],
    ids=lambda shapes: f"{str(shapes)[:24]}",
)  # fmt: skip
def test_hostile_inputs_of_a_ticket_allocate_nothing(shapes) -> None:
    networks, inputs, channels = prune_all("dcgan")
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0), inputs)
    ticket.manifest["inputs"]["discriminator"] = shapes
    zeros, made = torch.zeros, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *a, **k: made.append(math.prod(a)) or zeros(*a, **k))
        refused(TicketError, "which is no list of shapes of a sensible size", networks, ticket)
    assert max(made, default=0) < 10_000


@pytest.mark.parametrize("named", ["text", 5, [["generator", [5]]]])
def test_hostile_inputs_that_are_no_table(named) -> None:
    networks, inputs, channels = prune_all("dcgan")
    ticket = ticket_of(networks, channels, drawn_kept(channels, 0), inputs)
    ticket.manifest["inputs"] = named
    refused(TicketError, "which is no list of shapes of a sensible size", networks, ticket)


def test_networks_that_share_a_tensor_are_not_cut() -> None:
    def net(first: nn.Module) -> nn.Module:
        return nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))

    shared = nn.Conv2d(3, 6, 3)
    networks = {"a": net(shared), "b": net(shared), "c": net(nn.Conv2d(3, 6, 3))}
    inputs = {name: (torch.zeros(2, 3, 8, 8),) for name in networks}
    for prune in (["a"], ["b", "c"], ["all"]):
        with pytest.raises(ConfigError, match=r"networks 'a' and 'b' share 0\.weight"):
            Channels.of(networks, inputs, prune)
    assert len(Channels.of(networks, inputs, ["c"]).groups) == 1
    resize(networks, {k: v.shape for k, v in state_of(networks).items()})


def test_a_wrong_cut_is_refused_by_name() -> None:
    networks, inputs, channels = prune_all("dcgan")
    cut = channels.cut(drawn_kept(channels, 0))
    check_cut(networks, inputs, cut, channels.groups)
    bits = cut.keep["discriminator.main.5.weight"][1]
    assert bits.any()
    cut.keep["discriminator.main.5.weight"][1] = bits.roll(1)
    with pytest.raises(
        ConfigError,
        match=r"network 'discriminator' cannot be cut at discriminator.main.3: .*differ",
    ):
        check_cut(networks, inputs, cut, channels.groups)
    # A group that is right alone is not named, and where all are the layers of the cut are.
    others = [group for group in channels.groups if group.name != "discriminator.main.3"]
    with pytest.raises(ConfigError, match=r"cut at discriminator\.main\.\d+, .*main.5, .*differ"):
        check_cut(networks, inputs, cut, others)


class Gated(nn.Module):
    """Its first channel has a meaning of its own, which no gradient shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(h) * h[:, :1].detach()


def test_a_cut_that_its_groups_probe_could_not_foresee_is_refused() -> None:
    networks = {"n": stir(Gated(), 0)}
    inputs = {"n": (torch.zeros(2, 3, 8, 8),)}
    channels = Channels.of(networks, inputs, ["n"])
    right, wrong = bits("111001"), bits("011111")
    compact(networks, ticket_of(networks, channels, {"n.first": right}, inputs))
    ticket = ticket_of(networks, channels, {"n.first": wrong}, inputs)
    refused(ConfigError, "cannot be cut at n.first: .*differ", networks, ticket)


def test_the_proof_looks_at_the_weights_themselves_too(monkeypatch) -> None:
    from tombola.sparsity import compact as module

    networks, inputs, channels = prune_all("dcgan")
    cut, seen = channels.cut(drawn_kept(channels, 0)), []
    monkeypatch.setattr(module, "prove", lambda name, *_, random: seen.append((name, random)) or "")
    check_cut(networks, inputs, cut, channels.groups)
    assert seen == [(n, r) for n in ("generator", "discriminator") for r in (True, False)]


# --- what can be cut -----------------------------------------------------------------------------


def test_where_there_are_scales_the_rest_is_left_and_listed() -> None:
    channels = prune_all("dcgan")[2]
    assert channels.by_scale == {"generator", "discriminator"}
    assert all(group.scales for group in channels.groups)
    assert channels.left == {
        "generator.main.12": "it makes the network's output",
        "discriminator.main.0": "it has no normalisation layer to rank it by",
        "discriminator.main.11": "it makes the network's output",
    }
    channels = prune_all("wgan-gp")[2]
    assert channels.by_scale == {"generator"}


def test_nothing_to_cut_is_an_error_that_says_why() -> None:
    inputs = {"n": (torch.zeros(2, 4),)}
    with pytest.raises(ConfigError, match=r"no channel of n can be cut \(n: it makes the network"):
        Channels.of({"n": nn.Linear(4, 2)}, inputs, ["n"])
    with pytest.raises(ConfigError, match=r"can be cut \(none has a layer that makes channels\)"):
        Channels.of({"n": nn.ReLU()}, inputs, ["all"])


# --- ranks ---------------------------------------------------------------------------------------


def test_scores_are_the_mean_absolute_scale_of_all_norms_a_channel_passes() -> None:
    stream, inner, after = nn.BatchNorm2d(3), nn.BatchNorm2d(2), nn.BatchNorm2d(3)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.n0, self.out = nn.Conv2d(3, 3, 1), stream, nn.Conv2d(3, 1, 1)
            self.c1, self.n1, self.c2, self.n2 = (
                nn.Conv2d(3, 2, 1),
                inner,
                nn.Conv2d(2, 3, 1),
                after,
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.n0(self.stem(x))
            return self.out(h + self.n2(self.c2(self.n1(self.c1(h)).relu())))

    network = Residual()
    with torch.no_grad():
        stream.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        after.weight.copy_(torch.tensor([-3.0, 1.0, 0.5]))
        inner.weight.copy_(torch.tensor([-0.25, 4.0]))
    channels = Channels.of({"n": network}, {"n": (torch.zeros(2, 3, 4, 4),)}, ["n"])
    scores = channels.scores({"n": network})
    assert {k: v.tolist() for k, v in scores.items()} == {
        "n.n0": [2.0, 1.5, 0.5],
        "n.n1": [0.25, 4.0],
    }


def test_without_norms_scores_are_filter_norms_as_a_share_of_the_layers_mean() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        network[0].bias.fill_(100.0)
        network[2].weight.copy_(torch.tensor([[0.0, 0.0, 2.0], [6.0, 0.0, 0.0]]))
    channels = Channels.of({"n": network}, {"n": (torch.zeros(2, 2),)}, ["n"])
    scores = channels.scores({"n": network})
    assert {k: v.tolist() for k, v in scores.items()} == {
        "n.0": pytest.approx([5 * 3 / 16, 3 / 16, 10 * 3 / 16]),
        "n.2": pytest.approx([0.5, 1.5]),
    }
    nn.init.zeros_(network[0].weight)
    assert channels.scores({"n": network})["n.0"].tolist() == [0, 0, 0]


def test_a_channel_of_several_filters_has_all_of_their_norms() -> None:
    """Linear -> reshape: a channel is made by four rows; and by transposed filters."""
    network = nn.Sequential(
        nn.Linear(1, 8, bias=False), nn.Unflatten(1, (-1, 2, 2)), nn.ConvTranspose2d(2, 2, 1),
        nn.ReLU(), nn.Conv2d(2, 1, 1),
    )  # fmt: skip
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3])[:, None])
        network[2].weight.copy_(torch.tensor([[3.0, 0], [4, 15]])[:, :, None, None])
    channels = Channels.of({"n": network}, {"n": (torch.zeros(2, 1),)}, ["n"])
    assert {k: v.tolist() for k, v in channels.scores({"n": network}).items()} == {
        "n.0": pytest.approx([0.5, 1.5]),
        "n.2": pytest.approx([0.5, 1.5]),
    }


def bits(text: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in text])


@pytest.mark.parametrize(
    ("scores", "kept", "multiple", "wanted"),
    [
        ([5, 4, 3, 2, 1, 0], "111000", 2, "111100"),  # 3 of 6 by 2s: up to 4, the best that went
        ([5, 4, 3, 2, 1, 0], "011000", 2, "011000"),  # 2 already
        ([5, 4, 3, 2, 1, 0], "111110", 4, "111100"),  # 5 by 4s: down to 4, without the worst
        ([5, 4, 3, 2, 1, 0], "111111", 4, "111111"),  # 6 by 4s is 8, of which there are 6
        ([0, 1, 2, 3, 4, 5], "000001", 4, "001111"),  # 1: at least one multiple
        ([5, 4, 3], "010", 8, "111"),  # fewer channels than the multiple: whole
        ([1, 1, 1, 1, 1], "00001", 2, "10001"),  # ties: what was kept, then the earlier position
        ([1, 1, 1, 1, 1], "11101", 3, "11100"),  # ties: the later one goes
        ([9, 8, 1, 2, 0], "00110", 3, "10110"),  # kept ones stay, whatever their score
        ([5, 4, 3, 2, 1, 0], "111000", 1, "111000"),
    ],
)
def test_rounded(scores, kept, multiple, wanted) -> None:
    found = rounded({"x": torch.tensor(scores).float()}, {"x": bits(kept)}, multiple, {"x": 1})
    assert found["x"].tolist() == bits(wanted).tolist()


@pytest.mark.parametrize(
    ("multiple", "size", "wanted"),
    [
        (16, 4, "11110000"),  # sixteen channels are four sets of four
        (16, 8, "11110000"),  # or two sets of eight: four already, of 32 channels
        (6, 4, "11100000"),  # 4 sets are 16 channels; of 12 a multiple of 6, by threes
        (4, 4, "11110000"),
        (64, 4, "11111111"),
    ],
)
def test_sets_of_channels_are_rounded_by_their_channels(multiple, size, wanted) -> None:
    scores, kept = {"x": torch.arange(8.0, 0, -1)}, {"x": bits("11110000")}
    assert rounded(scores, kept, multiple, {"x": size})["x"].tolist() == bits(wanted).tolist()


def test_random_like_keeps_the_counts_and_depends_on_seed_and_name() -> None:
    kept = {"a": bits("1100000000" * 4), "b": bits("1100000000" * 4), "c": bits("1")}
    first, again, other = random_like(kept, 1), random_like(kept, 1), random_like(kept, 2)
    assert {k: int(v.sum()) for k, v in first.items()} == {"a": 8, "b": 8, "c": 1}
    assert same(first, again)
    assert not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], kept["a"])


# --- cuts ----------------------------------------------------------------------------------------


def small_net() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
        nn.PReLU(6), nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )  # fmt: skip
    return stir(network, 0)


def cut_small() -> tuple[nn.Module, Cut]:
    network = small_net()
    groups = channel_groups("n", network, (torch.zeros(2, 3, 8, 8),))
    fine = [g for g in groups if not g.reason]
    assert {g.name: g.n for g in fine} == {"n.1": 3, "n.6": 4}
    return network, Cut.of([(g.slices, torch.arange(g.n) < 2) for g in fine])


def test_layers_know_their_new_sizes() -> None:
    network, cut = cut_small()
    weights = list(network.parameters())
    network[0].weight.grad = torch.ones_like(network[0].weight)
    shrink({"n": network}, cut)
    assert [id(p) for p in network.parameters()] == [id(p) for p in weights]
    assert network[0].weight.grad is None
    convolution, group, _, depthwise, prelu, transposed, batch, _, linear = network
    assert (convolution.in_channels, convolution.out_channels) == (3, 4)
    assert (group.num_groups, group.num_channels) == (2, 4)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 4, 4)
    assert prelu.num_parameters == 4
    assert (transposed.in_channels, transposed.out_channels) == (4, 2)
    assert batch.num_features == 2
    assert (linear.in_features, linear.out_features) == (72, 2)
    table = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 2))
    groups = channel_groups("n", table, (torch.tensor([0, 1]),))
    shrink({"n": table}, Cut.of([(groups[0].slices, torch.arange(6) < 4)]))
    assert (table[0].num_embeddings, table[0].embedding_dim) == (5, 4)


def test_a_file_of_a_smaller_network_makes_its_modules() -> None:
    network, cut = cut_small()
    smaller, other = copied({"n": network})["n"], small_net()
    other[0].to(memory_format=torch.channels_last)
    shrink({"n": smaller}, cut)
    resize({"n": other}, {f"n.{k}": v.shape for k, v in plain_state(smaller).items()})
    assert str(other) == str(smaller)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {k: v.shape for k, v in plain_state(other).items()} == {
        k: v.shape for k, v in plain_state(smaller).items()
    }
    assert not other[0].weight.any()
    other.load_state_dict(smaller.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert off(other.eval()(x), smaller.eval()(x)) < 1e-5


def test_a_file_of_the_same_size_changes_nothing() -> None:
    network = small_net()
    before = state_of({"n": network})
    resize({"n": network}, {k: v.shape for k, v in before.items()})
    assert same(before, state_of({"n": network}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n.0.bias": None}, r"tensor 'n.0.bias' is not in the file"),
        ({"n.9.bias": (3,)}, r"tensor 'n.9.bias' is of no network"),
        ({"n.0.weight": (6, 27)}, r"'n.0.weight' is \[6, 27\] in the file, which is no smaller"),
        ({"n.0.weight": (7, 3, 3, 3)}, r"no smaller version of the network's \[6, 3, 3, 3\]"),
        ({"n.0.weight": (1 << 40, 3, 3, 3)}, "no smaller version"),
        ({"n.0.weight": (0, 3, 3, 3)}, "no smaller version"),
        ({"n.0.weight": (4, 3, 3, 3)}, "tensor 'n.0.bias' has 6 channels .* its layer makes 4"),
        ({"n.0.bias": (5,)}, "tensor 'n.0.bias' has 5 channels .* its layer makes 6"),
        ({"n.6.running_var": (2,)}, "'n.6.running_var' has 2 channels .* its layer makes 4"),
        ({"n.8.bias": (1,)}, "'n.8.bias' has 1 channels .* its layer makes 2"),
        ({"n.1.weight": (4,)}, "'n.1.bias' has 6 channels .* its layer makes 4"),
    ],
)
def test_errors_of_a_file_of_other_shapes(change, words: str) -> None:
    network = small_net()
    shapes = {k: tuple(v.shape) for k, v in state_of({"n": network}).items()} | change
    with pytest.raises(TicketError, match=words) as caught:
        resize({"n": network}, {k: v for k, v in shapes.items() if v is not None})
    assert "\n" not in str(caught.value)


def test_masks_of_a_cut_are_of_parameters_that_lose_something() -> None:
    network, cut = cut_small()
    masks = cut.masks({"n": network})
    assert masks.keys() == metric_wordss(network) - {"n.8.bias"}
    assert masks["n.0.weight"].sum() == 4 * 27
    assert masks["n.5.weight"].sum() == 4 * 2 * 9
    whole = Cut.of([([], torch.ones(3, dtype=torch.bool))])
    assert not whole.keep
    cut.zero({"n": network})
    for name, leaf in plain_parameters(network).items():
        mask = masks.get(f"n.{name}", torch.ones_like(leaf, dtype=torch.bool))
        assert not leaf[~mask].any()
        assert leaf[mask].any()


def metric_wordss(network: nn.Module) -> set[str]:
    return {f"n.{name}" for name in plain_parameters(network)}


# --- training ------------------------------------------------------------------------------------


class SpectralResidual(nn.Module):
    """A discriminator's blocks, spectral-normed, with both kinds of skips."""

    def __init__(self) -> None:
        super().__init__()
        norm = spectral_norm
        self.stem = norm(nn.Conv2d(3, 6, 3, 1, 1))
        self.a, self.b = norm(nn.Conv2d(6, 5, 3, 1, 1)), norm(nn.Conv2d(5, 6, 3, 1, 1))
        self.c, self.d = norm(nn.Conv2d(6, 4, 3, 1, 1)), norm(nn.Conv2d(4, 8, 3, 1, 1))
        self.skip, self.out = norm(nn.Conv2d(6, 8, 1)), norm(nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.b(self.a(h.relu()).relu())
        h = self.skip(h) + self.d(self.c(h.relu()).relu())
        return self.out(h.relu().sum((2, 3)))


def generator_net() -> nn.Module:
    # A sigmoid of zero is a half: what reads a zeroed channel learns, unless it is held.
    return nn.Sequential(
        nn.Linear(4, 24), nn.Unflatten(1, (-1, 2, 2)), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 5, 4, 2, 1, bias=False), nn.BatchNorm2d(5), nn.Sigmoid(),
        nn.ConvTranspose2d(5, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2, (0.5, 0.9)),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, 0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("make", "size"), [(generator_net, (4,)), (SpectralResidual, (3, 8, 8))])
def test_enforced_training_is_the_smaller_networks_training_step_by_step(
    optimizer: str, make, size
) -> None:
    torch.manual_seed(0)
    networks = {"n": stir(make(), 0).double().train()}
    inputs = {"n": (torch.zeros(2, *size),)}
    channels = Channels.of(networks, inputs, ["n"])
    kept = drawn_kept(channels, 1)
    ticket = ticket_of(networks, channels, kept, inputs)
    small = compact(networks, ticket)
    away = cut_of(networks, ticket.masks, ticket.manifest)
    learners = [OPTIMIZERS[optimizer](net["n"].parameters()) for net in (networks, small)]
    generator = torch.Generator().manual_seed(2)
    before = state_of(small)
    with ticket.enforce(networks, learners[0]) as hold:
        for step in range(6):
            x = torch.randn(4, *size, generator=generator).double()
            for net, learner in zip((networks, small), learners, strict=True):
                learner.zero_grad()
                (net["n"](x) - 1).square().mean().backward()
                learner.step()
            assert not hold.leaks()
            for name, value in state_of(networks).items():
                if name.endswith(("_u", "_v")) and not step:
                    continue
                own = state_of(small)[name]
                torch.testing.assert_close(away.apply(name, value), own, rtol=1e-9, atol=1e-10)
    masks = away.masks(networks)
    assert set(hold.names) == set(masks)
    moved = state_of(small)
    assert max(float((moved[k] - v).abs().max()) for k, v in before.items()) > 1e-3


def test_moments_of_an_optimizer_that_learnt_before_are_zeroed_too() -> None:
    networks = {"n": generator_net().double()}
    inputs = {"n": (torch.zeros(2, 4),)}
    channels = Channels.of(networks, inputs, ["n"])
    ticket = ticket_of(networks, channels, drawn_kept(channels, 1), inputs)
    learner = torch.optim.Adam(networks["n"].parameters(), 1e-2)
    networks["n"](torch.randn(4, 4).double()).sum().backward()
    learner.step()
    with ticket.enforce(networks, learner) as hold:
        masks = cut_of(networks, ticket.masks, ticket.manifest).masks(networks)
        for name, leaf in plain_parameters(networks["n"]).items():
            if f"n.{name}" in masks:
                assert not learner.state[leaf]["exp_avg"][~masks[f"n.{name}"]].any()
        assert not hold.leaks()


# --- torch-pruning -------------------------------------------------------------------------------


def test_torch_pruning_is_imported_only_when_a_network_is_traced() -> None:
    code = f"""
import contextlib, importlib, io, sys
for words in (["--help"], ["find", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        importlib.import_module("tombola.cli.command_line").main(words)
for name in {MODULES!r}:
    importlib.import_module(name)
assert "torch_pruning" not in sys.modules
import torch
from tombola.sparsity.channels import channel_groups
channel_groups("n", torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
assert "torch_pruning" in sys.modules
"""
    assert python(code) == ""


def test_torch_pruning_is_known_in_one_file() -> None:
    package = Path(tombola.__file__).parent
    files = [p.name for p in package.rglob("*.py") if "import torch_pruning" in p.read_text()]
    assert files == ["tracing.py"]
