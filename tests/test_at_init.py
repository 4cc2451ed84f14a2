"""Pruning before training: scores against slow, direct ways, exact masks, no layer left empty."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

import in_process
import tombola
from tombola.config.search import AT_INIT
from tombola.data.batches import Batches
from tombola.errors import ConfigError
from tombola.sparsity import at_init
from tombola.sparsity.at_init import grasp, guarded, select, snip, synflow
from tombola.sparsity.masks import count, nested, ones, prunable
from tombola.store.runs import Store
from tombola.tasks.adversarial import SNGAN
from tombola.tasks.autoencoding import LinearAE
from tombola.tasks.base import Task, Turn
from tombola.training.scoring import Scored, inputs_of

SMALL = {"samples": 20, "sampling_seeds": 1, "validation_samples": 0}
TOY = str(Path(__file__).with_name("toy_task.py"))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1))


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(1, 2, 2, 2), nn.BatchNorm2d(2), nn.Softplus(), nn.Conv2d(2, 1, 2)
    )


def normed() -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, 2, 3)), nn.Tanh(), nn.Flatten(), spectral_norm(nn.Linear(8, 1))
    )


def old_normed() -> nn.Module:
    return nn.Sequential(
        old_spectral_norm(nn.Conv2d(1, 2, 3)),
        nn.Tanh(),
        nn.Flatten(),
        old_spectral_norm(nn.Linear(8, 1)),
    )


KINDS = {
    "conv": conv,
    "transposed": transposed,
    "spectral norm": normed,
    "spectral norm, training": normed,
    "old spectral norm, training": old_normed,
}
SIZE = {"conv": 4, "transposed": 3}


def scene(kind):
    """A network in float64, its weights by name, and two losses that are always the same."""
    torch.manual_seed(3)
    network = KINDS[kind]().double()
    if kind == "spectral norm":
        # In train mode its vectors follow the weights, which a finite difference would notice.
        network(torch.randn(4, 1, 4, 4, dtype=torch.float64))
        network.eval()
    elif kind.endswith("training"):
        # At its singular vectors a norm does not change, to first order, if they follow: there one
        # power iteration from always the same vectors has the slope that autograd gives.
        for _ in range(500):
            network(torch.randn(4, 1, 4, 4, dtype=torch.float64))
    weights = dict(prunable({"n": network}))
    size = SIZE.get(kind, 4)
    batches = [torch.randn(4, 1, size, size, dtype=torch.float64) for _ in range(2)]
    buffers = {k: v.clone() for k, v in network.named_buffers()}

    def losses():
        for batch in batches:
            with torch.no_grad():
                for key, value in network.named_buffers():
                    value.copy_(buffers[key])
            yield network(batch).square().mean()

    return weights, losses


def mean_loss(losses):
    return sum(float(loss) for loss in losses()) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_snip_is_a_weight_times_its_finite_difference(kind):
    weights, losses = scene(kind)
    scores = snip(weights, losses)
    step = 1e-6
    for name, weight in weights.items():
        assert scores[name].shape == weight.shape
        flat = weight.data.view(-1)
        for place in range(0, len(flat), 3):
            kept = float(flat[place])
            ends = []
            for moved in (kept + step, kept - step):
                flat[place] = moved
                with torch.no_grad():
                    ends.append(mean_loss(losses))
            flat[place] = kept
            slope = (ends[0] - ends[1]) / (2 * step)
            assert scores[name].view(-1)[place] == pytest.approx(abs(kept * slope), abs=1e-8)
    assert max(float(score.max()) for score in scores.values()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_grasp_is_a_weight_times_the_hessian_times_the_gradient(kind):
    weights, losses = scene(kind)
    leaves = list(weights.values())
    hessian, slope = torch.zeros(()), torch.zeros(())
    for loss in losses():
        own = torch.autograd.grad(loss, leaves, create_graph=True)
        flat = torch.cat([part.reshape(-1) for part in own])
        rows = []
        for entry in flat:
            parts = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True)
            pairs = zip(parts, leaves, strict=True)
            rows.append(
                torch.cat([(torch.zeros_like(w) if p is None else p).reshape(-1) for p, w in pairs])
            )
        hessian = hessian + torch.stack(rows) / 2
        slope = slope + flat.detach() / 2
    torch.testing.assert_close(hessian, hessian.T, atol=1e-9, rtol=1e-6)
    values = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
    expected = values * (hessian @ slope)
    found = torch.cat([score.reshape(-1) for score in grasp(weights, losses).values()])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-8)
    assert float(expected.min()) < 0 < float(expected.max())


def test_synaptic_flow_of_two_layers_in_closed_form():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()
    )
    masks = ones(prunable({"n": network}))
    masks["n.0.weight"][1, 2] = False
    scores = at_init._synaptic_flow({"n": network}, {"n": (torch.zeros(5, 3),)}, masks)
    first = network[0].weight.detach().double().abs() * masks["n.0.weight"]
    last = network[3].weight.detach().double().abs()
    bias = network[0].bias.detach().double().abs()
    scale = (1 + network[1].eps) ** -0.5
    hidden = (first.sum(1) + bias) * scale
    whole = (last @ hidden).sum() + network[3].bias.detach().double().abs().sum()
    torch.testing.assert_close(scores["n.0.weight"], first * last.sum(0)[:, None] * scale / whole)
    torch.testing.assert_close(scores["n.3.weight"], last * hidden / whole)
    assert float(scores["n.0.weight"][1, 2]) == 0


@pytest.mark.parametrize("norm", [spectral_norm, old_spectral_norm])
def test_synaptic_flow_passes_a_spectral_norm_by_and_leaves_it_in_place(norm):
    torch.manual_seed(2)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(8, 1))
    with_norm = copy.deepcopy(plain)
    norm(with_norm[0])
    inputs = {"n": (torch.zeros(1, 1, 4, 4),)}
    flows = [
        at_init._synaptic_flow({"n": net}, inputs, ones(prunable({"n": net})))
        for net in (plain, with_norm)
    ]
    assert list(flows[0]) == list(flows[1]) == ["n.0.weight", "n.3.weight"]
    for name in flows[0]:
        torch.testing.assert_close(flows[0][name], flows[1][name])
    out = with_norm(torch.ones(1, 1, 4, 4))
    assert with_norm[0].weight.reshape(2, -1).detach().svd().S[0] < 1.5
    assert torch.isfinite(out).all()


class Saturating(nn.Module):
    """Two layers, and an activation by any of the names that torch has for it."""

    def __init__(self, activation) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.last = nn.Linear(30, 8), nn.Linear(8, 6)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.last(self.first(x)))


@pytest.mark.parametrize(
    "activation",
    [
        nn.Tanh(),
        torch.tanh,
        lambda x: torch.tanh(input=x),
        lambda x: x.tanh_(),
        nn.functional.tanh,
        nn.Sigmoid(),
        lambda x: x.sigmoid(),
        torch.sigmoid_,
        nn.Softmax(1),
        lambda x: x.softmax(1),
        nn.Hardtanh(),
        nn.functional.hardtanh_,
    ],
)
def test_no_activation_stops_the_synaptic_flow_by_whatever_name_it_is_called(activation):
    flows = []
    for each in (activation, nn.Identity()):
        networks = {"n": Saturating(each)}
        everything = ones(prunable(networks))
        flows.append(at_init._synaptic_flow(networks, {"n": (torch.zeros(1, 30),)}, everything))
    assert all(float(flow.min()) > 0 for flow in flows[0].values())
    for name, flow in flows[0].items():
        assert torch.equal(flow, flows[1][name])
    x = torch.full((1, 30), 20.0)
    assert not torch.equal(Saturating(activation)(x), Saturating(nn.Identity())(x))


def test_synflow_leaves_weights_in_every_layer_of_the_linear_autoencoder():
    task = LinearAE(width=32)
    networks = task.networks((1, 28, 28))
    inputs = inputs_of(task, networks, (1, 28, 28))
    everything = ones(prunable(networks))
    masks = synflow(networks, inputs, count(everything)[0] // 2, everything)
    for name, mask in masks.items():
        assert float(mask.float().mean()) > 0.2, name


class Labelled(nn.Module):
    """A network of numbers and of a label."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(5, 4), nn.Linear(8, 2)

    def forward(self, x, label):
        return self.last(torch.cat([x, self.embed(label)], 1))


def test_synflow_hands_labels_on_as_they_are():
    networks = {"n": Labelled()}
    inputs = {"n": (torch.zeros(3, 4), torch.tensor([2, 0, 1]))}
    flow = at_init._synaptic_flow(networks, inputs, ones(prunable(networks)))["n.last.weight"]
    last = networks["n"].last.weight.detach().double().abs()
    row = networks["n"].embed.weight[2].detach().double().abs()
    whole = float(
        (last[:, :4].sum() + (last[:, 4:] * row).sum()) + networks["n"].last.bias.abs().sum()
    )
    torch.testing.assert_close(flow, torch.cat([last[:, :4], last[:, 4:] * row], 1) / whole)


@pytest.mark.parametrize("keep", [200, 40, 3])
def test_synflow_keeps_exact_counts_and_no_layer_is_left_empty(keep):
    torch.manual_seed(4)
    networks = {
        "n": nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10), nn.Linear(10, 1))
    }
    everything = ones(prunable(networks))
    masks = synflow(networks, {"n": (torch.zeros(1, 10),)}, keep, everything)
    assert count(masks)[0] == keep
    assert all(bool(mask.any()) for mask in masks.values())
    fewer = synflow(networks, {"n": (torch.zeros(1, 10),)}, 3, masks)
    assert nested(fewer, masks)


def test_synflow_empties_no_network_because_its_flow_is_of_another_size():
    torch.manual_seed(5)
    networks = {
        name: nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10)) for name in "ab"
    }
    with torch.no_grad():
        for parameter in networks["b"].parameters():
            parameter.mul_(30.0)
    inputs = {name: (torch.zeros(1, 10),) for name in networks}
    masks = synflow(networks, inputs, 200, ones(prunable(networks)))
    kept = [sum(int(m.sum()) for k, m in masks.items() if k.startswith(f"{n}.")) for n in "ab"]
    assert sum(kept) == 200
    assert min(kept) > 80


def test_the_best_of_each_layer_comes_first_and_ties_go_to_the_earlier():
    scores = {"a": torch.tensor([[5.0, 4.0], [3.0, 5.0]]), "b": torch.tensor([0.1, 0.2, 0.2])}
    masks = select(scores, 2)
    assert masks["a"].tolist() == [[True, False], [False, False]]
    assert masks["b"].tolist() == [False, True, False]
    masks = select(scores, 4)
    assert masks["a"].tolist() == [[True, True], [False, True]]
    assert masks["b"].tolist() == [False, True, False]
    among = {"a": torch.tensor([[False, True], [True, True]]), "b": torch.tensor([1, 0, 1]) > 0}
    masks = select(scores, 2, among)
    assert masks["a"].tolist() == [[False, False], [False, True]]
    assert masks["b"].tolist() == [False, False, True]
    assert scores["a"].max() == 5  # what was given is not touched
    with pytest.raises(ConfigError, match="cannot keep 1 weights of 2 layers"):
        select(scores, 1)
    with pytest.raises(ConfigError, match="scores of 'b' are NaN"):
        select({**scores, "b": torch.tensor([1.0, float("nan"), 0.0])}, 3)
    # Strides that are not those of C order change nothing.
    turned = {"a": torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last)}
    assert int(guarded(turned)["a"].reshape(-1).argmax()) == int(turned["a"].reshape(-1).argmax())


class Two(Task):
    """Two networks that learn in turns; each loss looks at the other network too."""

    family = "gan"
    size, channels, latent, batch_size = 8, 1, 2, 4
    turns = (
        Turn("d", learns=("discriminator",)),
        Turn("g", learns=("generator",), images=False),
    )

    def networks(self, shape):
        del shape
        return {
            "generator": nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64)),
            "discriminator": nn.Linear(64, 1),
            "bystander": nn.Linear(1, 1),
        }

    def loss(self, turn, networks, images):
        made = networks["generator"](torch.randn(len(images), 2))
        value = networks["discriminator"](made).square().mean()
        if turn == "g":
            assert float(images.abs().max()) == 0
            return {"loss": -2 * value}
        return value - networks["discriminator"](images.flatten(1)).mean()


def scored():
    torch.manual_seed(0)
    task = Two()
    networks = task.networks((1, 8, 8))
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    return Scored(task, networks, Batches(images, 4, 0), seed=5), networks


def test_each_network_is_scored_by_its_own_turn_and_the_same_way_again():
    source, networks = scored()
    for name in ("discriminator", "generator"):
        values = [loss.item() for loss in source.losses(name, 3, 2)]
        assert len(set(values)) == 6  # three batches, two draws each
        assert values == [loss.item() for loss in source.losses(name, 3, 2)]
        learning = [
            key for key, net in networks.items() if all(p.requires_grad for p in net.parameters())
        ]
        assert learning == [name]
    # The forward passes in train mode left the running statistics where they were, but for one.
    assert int(networks["generator"][1].num_batches_tracked) == 1
    with pytest.raises(ConfigError, match="'bystander' learns in no turn of Two"):
        list(source.losses("bystander", 1, 1))


def test_the_inputs_of_a_network_are_what_its_turn_calls_it_with():
    task = SNGAN(width=2, latent=3, batch_size=4)
    networks = task.networks((1, 32, 32))
    blank = torch.zeros(2, 1, 32, 32)
    source = Scored(task, networks, Batches(blank.to(torch.uint8), 2, 0), seed=0)
    found = source.inputs(blank)
    assert {name: [tuple(x.shape) for x in each] for name, each in found.items()} == {
        "generator": [(2, 3)],
        "discriminator": [(2, 1, 32, 32)],
    }


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("at-init")
    with pytest.MonkeyPatch.context() as patch:
        in_process.use(patch)
        with in_process.Restored():
            result = find(out / "one")
            again = find(out / "one")
            other = find(out / "two", method=AT_INIT, controls="reinit,shuffle", rounds=1)
    return result, again, other


def find(out, **options):
    return tombola.find(
        f"{TOY}:TinyGAN",
        out=out,
        **{
            "method": ("imp", *AT_INIT), "steps": 25, "rounds": 3, "rate": "0.5", "seeds": 1,
            "stop_after": 0, "workers": 1, "threads": 1, "device": "cpu", "controls": "none",
            "settings": {"judge": SMALL}, **options,
        },
    )  # fmt: skip


def test_every_method_has_the_same_levels_nested_masks_and_the_first_weights(searched):
    result, _, _ = searched
    kept = {}
    for method in ("imp", *AT_INIT):
        rewind = 10 if method == "imp" else 0
        folder = result.out / "tickets" / f"{method}-all-r{rewind}"
        tickets = [tombola.load(path) for path in sorted(folder.glob("*.safetensors"))]
        kept[method] = [count(ticket.masks)[0] for ticket in tickets]
        for inner, outer in zip(tickets[1:], tickets, strict=False):
            assert nested(inner.masks, outer.masks)
        for ticket in tickets:
            assert ticket.manifest["method"] == method
            assert ticket.manifest["rewind_step"] == rewind
            assert all(bool(mask.any()) for mask in ticket.masks.values()) or method == "imp"
    assert len({tuple(counts) for counts in kept.values()}) == 1
    masks = [
        {k: v.numpy().tobytes() for k, v in ticket_of(result, method).masks.items()}
        for method in AT_INIT
    ]
    assert len({str(sorted(each.items())) for each in masks}) == len(AT_INIT)
    first = {method: ticket_of(result, method).weights for method in AT_INIT}
    for method in AT_INIT[1:]:
        for name, mask in ticket_of(result, method).masks.items():
            both = mask & ticket_of(result, "snip").masks[name]
            assert torch.equal(first[method][name][both], first["snip"][name][both])


def ticket_of(result, method):
    return tombola.load(result.out / "tickets" / f"{method}-all-r0" / "seed0-round02.safetensors")


def test_only_scoring_counts_as_their_search(searched):
    result, _, _ = searched
    with (result.out / "costs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "ticket"]
    spent = {(row["method"], row["round"]): int(row["search_flops"]) for row in rows}
    for number in ("1", "2", "3"):
        assert spent["random", number] == 0
        assert 0 < spent["snip", number] < spent["grasp", number]
        assert spent["imp", number] > 0
    assert spent["snip", "1"] == spent["snip", "3"]  # scored once for all levels
    assert 0 < spent["synflow", "1"] < spent["synflow", "3"]
    steps = {row["method"]: int(row["train_flops"]) for row in rows if row["round"] == "1"}
    assert len({steps[method] for method in AT_INIT}) == 1
    assert steps["imp"] < steps["snip"]  # from step 10, the others from 0


def test_the_same_command_reuses_and_another_folder_has_the_same_numbers(searched):
    result, again, other = searched
    assert again.summary["runs"]["trained"] == 0
    # Another folder, fewer levels and more controls: what both have is the same to the last bit.
    assert {row.arm for row in other.rows} == {"dense", "ticket", "reinit", "shuffle"}
    both = [
        {
            row
            for row in found.rows
            if row.arm == "ticket" and row.round == 1 and row.method != "imp"
        }
        for found in (result, other)
    ]
    assert both[0] == both[1] != set()


def test_how_much_is_averaged_is_part_of_a_search(tmp_path, monkeypatch):
    in_process.use(monkeypatch)
    with in_process.Restored():
        prune = {"score_batches": 2, "score_draws": 3}
        result = find(
            tmp_path / "out",
            method="snip",
            rounds=1,
            controls="none",
            settings={"prune": prune, "judge": SMALL},
        )
    store = Store(result.out / "store")
    records = [store.record(name) for name in store.finished()]
    (scores,) = (record for record in records if record["kind"] == "scores")
    assert (scores["config"]["batches"], scores["config"]["draws"]) == (2, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"controls": "reinit,reinit-chain"}, "control reinit-chain takes its masks from trained"),
        ({"settings": {"prune": {"score_batches": 0}}}, "prune.score_batches got 0"),
        ({"settings": {"prune": {"score_draws": 0}}}, "prune.score_draws got 0"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        find(tmp_path / "out", method="snip", **options)
    assert not (tmp_path / "out").exists()
