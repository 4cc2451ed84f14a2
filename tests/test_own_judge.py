"""A feature network of one's own as judge: by the formula, by its name, and refused before work."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

import in_process
from tombola.cli import command_line as cli
from tombola.config import sections as config
from tombola.config.registry import file_sha256
from tombola.engine import judging, search
from tombola.engine.ticket_config import ticket_config
from tombola.errors import ConfigError
from tombola.metrics.own_judge import own_judge, try_own_judge
from tombola.plan import plans as recipes
from tombola.plan.setting import resolve

TOY = Path(__file__).parent / "toy_task.py"
QUADRANTS = '''
"""The mean of each quarter of an image."""
import torch
from torch import nn
from torch.nn import functional as F


def quadrants(images):
    return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


class Quadrants(nn.Module):
    """The same with logits of two classes, told by the first quarter; noisy while it trains."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def forward(self, images):
        features = self.drop(quadrants(images))
        bright = features[:, :1] * 1000
        return features, torch.cat([bright, -bright], 1)


def factory():
    return quadrants


ready = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
number = 7


def fails(images):
    raise RuntimeError("no weights\\nfound")


def a_list(images):
    return [0.0]


def a_map(images):
    return images


def one_row(images):
    return quadrants(images)[:1]


def infinite(images):
    return quadrants(images) / 0


def whole(images):
    return quadrants(images).round().long()


def by_chance(images):
    return quadrants(images) + torch.rand(len(images), 4)


def of_the_batch(images):
    return quadrants(images - images.mean(0))


def bad_logits(images):
    return quadrants(images), images


def broken():
    raise ValueError("no such file")
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(QUADRANTS)
    return path


def factorial(low: int, high: int) -> torch.Tensor:
    """uint8 (16, 1, 8, 8): each quarter dark or bright, in all combinations: no covariance."""
    images = torch.empty(16, 1, 8, 8, dtype=torch.uint8)
    for image, levels in zip(images, itertools.product((low, high), repeat=4), strict=True):
        corners = itertools.product((0, 4), (0, 4))
        for (row, column), level in zip(corners, levels, strict=True):
            image[0, row : row + 4, column : column + 4] = level
    return images


def test_the_distance_is_that_of_the_formula(file):
    """Diagonal covariances: |dmu|^2 + sum (sqrt a - sqrt b)^2, of 4 independent quarters."""
    name = f"quadrants-{file_sha256(file)[:8]}"
    judge = own_judge(f"{file}:quadrants", 4)
    assert judge.name == name
    reals, samples = factorial(51, 102), factorial(51, 255)
    features, none = judge.features(samples)
    assert none is None
    assert features[0].tolist() == pytest.approx([-0.6] * 4)  # 51 / 127.5 - 1
    assert features[1].tolist() == pytest.approx([-0.6, -0.6, -0.6, 1.0])
    seen = judging.Seen(judge, None).add(samples)
    values, _ = judging._Eye(judge, None, reals, None, "f" * 64).look(seen, None)
    # Means -0.4 and 0.2; unbiased standard deviations 0.2 and 0.8 times sqrt(16 / 15).
    exact = 4 * (0.6**2 + (0.6 * math.sqrt(16 / 15)) ** 2)
    assert values[f"fcd-{name}"] == pytest.approx(exact, rel=1e-5)
    assert {f"kcd-{name}", f"kcd-{name}-error", "precision", "coverage"} <= set(values)
    assert not {key for key in values if key.startswith(("cs-", "fid", "is"))}


def test_logits_give_a_class_score(file):
    judge = own_judge(f"{file}:Quadrants", 4)
    seen = judging.Seen(judge, None).add(factorial(51, 255))
    values, _ = judging._Eye(judge, None, factorial(51, 102), None, "e" * 64).look(seen, None)
    assert values[f"cs-{judge.name}"] == pytest.approx(2.0)  # two classes, half of it each, certain


@pytest.mark.parametrize("name", ["quadrants", "Quadrants", "factory", "ready"])
def test_functions_modules_and_what_makes_them(file, name):
    found = try_own_judge(f"{file}:{name}", factorial(0, 255))
    sha256 = file_sha256(file)
    assert found == {"source": "file", "name": name, "sha256": sha256, "dimensions": 4}
    features, _ = own_judge(f"{file}:{name}", 4).features(factorial(51, 255))
    assert features[1].tolist() == pytest.approx([-0.6, -0.6, -0.6, 1.0])


def test_weights_that_a_module_reads_elsewhere_are_in_its_hash(file):
    weights = file.with_name("weights.pt")
    file.write_text(
        "import torch\nclass Own(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 4))\n"
        f"        self.load_state_dict(torch.load({str(weights)!r}))\n"
        "class Drawn(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 4))\n"
    )

    def tried(weight, name="Own"):
        torch.save({"1.weight": torch.full((4, 64), weight), "1.bias": torch.zeros(4)}, weights)
        return try_own_judge(f"{file}:{name}", factorial(0, 255))["sha256"]

    one, other = tried(0.5), tried(0.25)
    assert one == tried(0.5)
    assert one != other
    assert own_judge(f"{file}:Own", 4, sha256=one).sha256 == f"{one}:Own"
    for spec, sha256 in ((f"{file}:Own", other), (f"{file}:Drawn", tried(0.5, "Drawn"))):
        with pytest.raises(ConfigError, match="not the one that was tried before the search"):
            own_judge(spec, 4, sha256=sha256)


REFUSED = {
    "number": "is a int, which cannot be called",
    "fails": "failed: RuntimeError: no weights; it is",
    "a_list": "gave a list as features",
    "a_map": "gave features of shape (8, 1, 8, 8) for 8 images; return (8, how many)",
    "one_row": "gave features of shape (1, 4) for 8 images",
    "infinite": "gave features that are not finite",
    "whole": "gave features that are not finite floating-point numbers",
    "by_chance": "other features for the same images; leave chance out",
    "of_the_batch": "other features when it stood alone",
    "bad_logits": "gave logits of shape (8, 1, 8, 8)",
    "broken": "failed: ValueError: no such file",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_feature_network_is_refused(file, name):
    with pytest.raises(ConfigError) as caught:
        try_own_judge(f"{file}:{name}", factorial(51, 255))
    message = str(caught.value)
    assert f"the feature network {file}:{name} " in message
    assert REFUSED[name] in message
    assert "\n" not in message
    assert message.endswith("mend it and run again")


def test_other_features_than_those_tried_are_refused(file):
    judge = own_judge(f"{file}:quadrants", 5)
    with pytest.raises(ConfigError, match="features of 4 dimensions, before 5"):
        judge.features(factorial(51, 255))


def words_of(file, name, out, task="TinyGAN"):
    return [
        "find", f"{TOY}:{task}", "--data", "digits", "--steps", "4", "--rounds", "1", "--rate",
        "0.5", "--rewind", "1it", "--controls", "none", "--seeds", "1", "--workers", "1",
        "--threads", "1", "--device", "cpu", "--out", str(out),
        "--set", "judge.samples=40", "--set", "judge.sampling_seeds=1",
        "--set", f"judge.features={file}:{name}",
    ]  # fmt: skip


def test_a_search_is_judged_by_it(file, tmp_path, monkeypatch, capsys):
    in_process.use(monkeypatch)
    with in_process.Restored():
        assert cli.main(words_of(file, "quadrants", tmp_path / "out")) == 0, capsys.readouterr()
    name = f"quadrants-{file_sha256(file)[:8]}"
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert {f"fcd-{name}", f"kcd-{name}"} <= {row["metric"] for row in rows}
    assert not {row["metric"] for row in rows if row["metric"].startswith(("fid", "fcd-digits"))}
    assert {row["n"] for row in rows if row["metric"] == f"fcd-{name}"} == {"40"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["primary"] == f"fcd-{name}"
    assert summary["judge"]["sha256"] == file_sha256(file)
    assert f"fcd-{name}" in summary["floor"]
    assert name in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("infinite", "TinyGAN", "gave features that are not finite"),
        ("quadrant", "TinyGAN", "did you mean quadrants?"),
        ("quadrants", "TinyAE", "makes no samples that it could judge"),
    ],
)
def test_bad_ones_cost_no_training_and_leave_nothing(
    file, tmp_path, monkeypatch, capsys, name, task, words
):
    monkeypatch.setattr(search, "carry_out", None)
    assert cli.main(words_of(file, name, tmp_path / "out", task)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def graph(features):
    tables = {
        "task": {"name": f"{TOY}:TinyGAN"}, "judge": {"features": features},
        "search": {"rounds": 1, "seeds": 1, "rewind": "2it"},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }  # fmt: skip
    return recipes.search(resolve(config.build(tables), None)).graph


def hashes(found, *kinds):
    return {node.hash for node in found if node.kind in kinds}


def test_the_file_is_in_the_names_of_judgements_alone(file):
    without, with_it, other = graph(""), graph(f"{file}:quadrants"), graph(f"{file}:ready")
    file.write_text(QUADRANTS + "# another line\n")
    edited = graph(f"{file}:quadrants")
    several = (without, with_it, other, edited)
    assert len({frozenset(hashes(each, "train", "mask", "rewind")) for each in several}) == 1
    judged = [hashes(each, "evaluate", "floor") for each in several]
    for one, two in itertools.combinations(judged, 2):
        assert one.isdisjoint(two)
    # What no option asks for is in no name: the judge's part is as it always was.
    spec = next(node.config["judge"] for node in without if node.kind == "evaluate")
    assert spec == {
        "source": "shipped", "data": "digits",
        "sha256": file_sha256(Path(judging.shipped_judge("digits"))),
    }  # fmt: skip


def test_a_ticket_never_leads_to_a_file(file, tmp_path):
    """Its config may name one, as that of the search did; only the caller's word is followed."""
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + QUADRANTS)
    manifest = {
        "task": "vae", "data_hash": "0", "method": "imp", "seed": 0, "round": 1, "rewind_step": 1,
        "config": {"judge": {"features": f"{file}:quadrants", "samples": 50}},
    }  # fmt: skip
    tables = {"task": {"name": "vae"}, "data": {"name": "digits"}}
    made = ticket_config(tmp_path / "t", manifest, tables)
    assert (made.judge.features, made.judge.samples) == ("", 50)
    own = ticket_config(
        tmp_path / "t", manifest, {**tables, "judge": {"features": f"{file}:ready"}}
    )
    assert own.judge.features == f"{file}:ready"
    assert not (tmp_path / "ran").exists()
