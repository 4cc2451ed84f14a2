"""Which files decide what a user's file does: itself, and the own modules that it imports."""

from __future__ import annotations

import csv
import hashlib
import json

import pytest

import in_process
from tombola.cli import command_line as cli
from tombola.config.registry import CRITERIA, code_files, code_sha256, file_sha256, is_library
from tombola.config.sections import build
from tombola.errors import ConfigError
from tombola.loops.earlier import meaning_of
from tombola.plan.setting import make_task


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    for name, text in {
        "task.py": "import torch, json, tombola\nfrom layers import encoder\nimport gone\n",
        "layers.py": "def encoder():\n    from pack import blocks\n",
        "pack/__init__.py": "",
        "pack/blocks.py": "from .deep.end import END\nfrom . import other\nimport layers\n",
        "pack/other.py": "this is no Python (",
        "pack/deep/end.py": "END = 1\n",
        "pack/unused.py": "",
        "plain.py": "import torch\n",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_own_modules_are_found_through_each_other(folder):
    found = code_files(folder / "task.py")
    assert {name: path.relative_to(folder).as_posix() for name, path in found.items()} == {
        "layers": "layers.py", "pack": "pack/__init__.py", "pack.blocks": "pack/blocks.py",
        "pack.deep.end": "pack/deep/end.py", "pack.other": "pack/other.py",
    }  # fmt: skip
    assert is_library(hashlib.__file__)
    assert is_library(pytest.__file__)
    assert not is_library(folder / "task.py")


def test_the_hash_is_of_all_of_them_and_of_a_file_alone_what_it_was(folder):
    assert code_sha256(folder / "plain.py") == file_sha256(folder / "plain.py")
    before = code_sha256(folder / "task.py")
    lines = [file_sha256(folder / "task.py")]
    lines += [f"{n} {file_sha256(p)}" for n, p in code_files(folder / "task.py").items()]
    assert before == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    (folder / "pack/unused.py").write_text("1")
    assert code_sha256(folder / "task.py") == before
    (folder / "pack/deep/end.py").write_text("END = 2\n")
    assert code_sha256(folder / "task.py") != before


def test_modules_on_the_path_that_are_no_librarys_count_too(folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    (other / "gone.py").write_text("")
    monkeypatch.syspath_prepend(other)
    assert code_files(folder / "task.py")["gone"] == other / "gone.py"


def test_a_copy_of_a_file_elsewhere_is_another_module(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text("def score(): return __file__\n")
        found.append(CRITERIA.load(f"{tmp_path / name / 'own.py'}:score"))
        assert CRITERIA.load(f"{tmp_path / name / 'own.py'}:score") is found[-1]
    assert [made() for made in found] == [str(tmp_path / n / "own.py") for n in ("a", "b")]


def test_what_a_file_means_leaves_comments_and_descriptions_out(tmp_path):
    texts = (
        '"""Old."""\n\ndef f(x):\n    """What."""\n    return x  # why\n',
        "def f( x ) :\n    return x\n",
        "def f(x):\n    return -x\n",
        "def f(x:\n",
    )
    found = []
    for text in texts:
        (tmp_path / "a.py").write_text(text)
        found.append(meaning_of(tmp_path / "a.py"))
    assert found[0] == found[1]
    assert len(set(found)) == 3


TASK = """
import torch, tombola
from {helper} import encoder
class AE(tombola.Task):
    family, size, channels, batch_size = "autoencoder", 8, 1, 8
    presets = {{"quick": {{"steps": 4}}}}
    def networks(self, shape):
        decoder = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Unflatten(1, shape))
        return {{"encoder": encoder(), "decoder": decoder}}
    def loss(self, turn, nets, images):
        {late}
        return (self.reconstruct(nets, images) - images).square().mean()
    def reconstruct(self, nets, images):
        return nets["decoder"](nets["encoder"](images))
"""
HELPER = """
from torch import nn
def encoder(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.{}())
"""


def find(out):
    words = "--rounds 1 --rate 0.5 --seeds 1 --rewind 1it --controls none --workers 1 --threads 1"
    words += " --set judge.downstream=none"
    code = cli.main(["find", "task.py:AE", "--data", "digits", *words.split(), "--out", out])
    if code:
        return code
    with open(f"{out}/results.csv") as file:
        return [row["value"] for row in csv.DictReader(file)]


def test_an_edited_neighbour_of_a_task_is_another_task(tmp_path, monkeypatch):
    in_process.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "helper_of_task.py"
    (tmp_path / "task.py").write_text(TASK.format(helper="helper_of_task", late="pass"))
    with in_process.Restored():
        helper.write_text(HELPER.format("ReLU"))
        first = find("out")
        helper.write_text(HELPER.format("Tanh"))
        again, fresh = find("out"), find("fresh")
    assert again == fresh
    assert again != first
    told = json.loads((tmp_path / "out/config.json").read_text())["resolved"]["files"]
    assert told == {"task.py": {"helper_of_task": file_sha256(helper)}}


def test_a_task_whose_loss_begins_anew_is_told_so(tmp_path, monkeypatch, capsys):
    in_process.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    late = 'torch.nn.init.ones_(nets["decoder"][0].weight)'
    (tmp_path / "anew_of_task.py").write_text(HELPER.format("ReLU"))
    (tmp_path / "task.py").write_text(TASK.format(helper="anew_of_task", late=late))
    with in_process.Restored():
        assert find("out") == 2
    assert "the weights were changed (decoder.0.weight)" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_task_that_is_sampled_needs_the_length_of_its_latent(tmp_path, family):
    text = f"import tombola\nclass Mine(tombola.Task):\n    family, nz = {family!r}, 8\n"
    (tmp_path / "own.py").write_text(text)
    config = build({"task": {"name": f"{tmp_path}/own.py:Mine"}})
    with pytest.raises(ConfigError, match="its latent is 0; set latent, the length of what sam"):
        make_task(config)
