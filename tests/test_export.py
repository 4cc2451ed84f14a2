"""Does a network in another tool's format make the same images?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import helpers
import tombola
from tombola.cli import command_line as cli
from tombola.cli import doctor
from tombola.config.registry import TASKS, file_sha256
from tombola.config.runtime import rng
from tombola.engine import exporting
from tombola.errors import ConfigError
from tombola.sparsity.compact import Channels
from tombola.sparsity.cutting import shrink
from tombola.sparsity.names import plain_state
from tombola.store.container import read_manifest
from tombola.tickets import export_facts as facts
from tombola.tickets.export_facts import SUFFIXES
from tombola.tickets.ticket import Ticket, save_model, save_ticket
from tombola.training.scoring import inputs_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

OPTIONS = {
    "dcgan": {"width": 2, "latent": 4},
    "sngan": {"width": 2, "latent": 4},
    "resnet-dcgan": {"width": 4, "latent": 4},
    "vae": {"width": 2, "latent": 4},
    "resnet-vae": {"width": 2, "latent": 4},
    "linear-ae": {"width": 8},
    "conv-ae": {"width": 2},
}
"""Tiny networks, one of each family of layers."""
WITH_PRIOR = [name for name in OPTIONS if not name.endswith("-ae")]
OWN = '''
import torch
from torch import nn

import helpers


class Uniform(helpers.TinyGAN):
    """Draws and samples by rules of its own, of which one counts its latents in Python."""

    scale: float = 3.0

    def latents(self, n, generator):
        return self.scale * torch.rand(n, self.latent, generator=generator)

    def sample(self, networks, latents):
        return 0.5 * networks["generator"](latents).view(len(latents), 1, 8, 8)


class Fixed(helpers.TinyGAN):
    """Samples one after another, which no graph can do for any number of them."""

    def sample(self, networks, latents):
        return torch.cat([networks["generator"](one[None]) for one in latents])


class Rare(helpers.TinyGAN):
    """Ends in an operator that other tools have and ``sample`` does not run from a .pt2."""

    def sample(self, networks, latents):
        return torch.erf(networks["generator"](latents))


class Coded(helpers.TinyAE):
    """An autoencoder whose networks have other names and no roles."""

    def networks(self, shape):
        return dict(zip(("first", "second"), super().networks(shape).values()))
'''


def save(path, task, name, shape):
    """A model file of an untrained network whose images differ and whose BatchNorm has a past."""
    torch.manual_seed(0)
    networks = task.networks(shape)
    for network in networks.values():
        for parameter in network.parameters():
            scale = (4 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.5
            torch.nn.init.normal_(parameter, float(parameter.ndim == 1) / 2, scale)
        for key, buffer in network.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape) + 0.1)
    weights = {f"{n}.{k}": v for n, each in networks.items() for k, v in plain_state(each).items()}
    options = {key: getattr(task, key) for key in task.options()}
    manifest = {"task": name, "shape": list(shape), "data": "digits", "config": {"task": options}}
    save_model(path, weights, manifest)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def models(root):
    """Model files by task, those of a user's file among them."""
    found = {}
    for name, options in OPTIONS.items():
        task = TASKS.load(name)(**options)
        found[name] = save(root / f"{name}.safetensors", task, name, task.image_shape(1))
    (root / "own.py").write_text(OWN)
    for name in ("Uniform", "Fixed", "Rare", "Coded"):
        task = TASKS.load(f"{root / 'own.py'}:{name}")()
        found[name] = save(root / f"{name}.safetensors", task, name, (1, 8, 8))
    return found


@pytest.fixture(scope="module")
def export(root, models):
    """(task, format) -> what ``exporting.export`` made, once."""
    made = {}

    def once(name, to):
        if (name, to) not in made:
            task = None if name in OPTIONS else f"{root / 'own.py'}:{name}"
            made[name, to] = exporting.export(models[name], to, task=task)
        return made[name, to]

    return once


@pytest.fixture
def call(capfd):
    """(exit code, stdout, stderr) of the command, in this process; no error is more than a line."""

    def run(*words):
        capfd.readouterr()
        code = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert err.count("\n") == (code != 0), err
        return code, out, err

    return run


def foreign(path):
    """The network of a file as other tools read it: arrays to arrays."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])
    module = torch.export.load(path).module()
    return lambda inputs: module(inputs).detach()


def facts_of(path):
    """What a file says about itself."""
    if path.suffix == ".onnx":
        (text,) = (p.value for p in onnx.load(path).metadata_props if p.key == "tombola")
        return json.loads(text)
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("archive/extra/tombola.json"))


@pytest.mark.parametrize("to", SUFFIXES)
def test_sample_takes_model_files_only(to, call, tmp_path):
    path = tmp_path / f"g{SUFFIXES[to].upper()}"
    path.write_bytes(b"not looked at")
    code, _, err = call("sample", path, "--out", tmp_path / "x")
    assert code == 2
    assert f"{path} is an exported network, which other tools run; give tombola sample" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("to", SUFFIXES)
def test_every_reader_gets_the_images_of_the_model(name, to, models, export):
    made = export(name, to)
    assert made.path == models[name].with_suffix(SUFFIXES[to])
    assert made.bytes == made.path.stat().st_size
    assert made.largest_difference <= made.tolerance == 1e-4
    facts = facts_of(made.path)
    networks = tombola.load_model(models[name])
    network = networks["generator" if "generator" in networks else "decoder"]
    reader = foreign(made.path)
    for n in (1, 3, 8):
        inputs = torch.randn(n, *facts["input"], generator=rng(n, "test"))
        with torch.no_grad():
            expected = network(inputs)
        images = reader(inputs)
        assert images.shape == (n, *facts["shape"])
        assert images.dtype == torch.float32
        assert torch.allclose(images, expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.05
        assert n == 1 or (expected[0] - expected[1]).abs().max() > 0.05
    task = TASKS.load(name)(**OPTIONS[name])
    assert tuple(facts["shape"]) == task.image_shape(1)
    assert (facts["task"], facts["latent"]) == (name, task.latent)
    assert facts["role"] == ("generator" if "generator" in networks else "decoder")
    assert facts["source_sha256"] == file_sha256(models[name])
    for place in (Path(cli.__file__).parents[1], Path(torch.__file__).parents[1]):
        assert str(place).encode() not in made.path.read_bytes(), "no file of ours tells of a disk"


@pytest.mark.slow
@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("name", ["dcgan", "resnet-dcgan", "vae"])
def test_a_smaller_network_is_exported_at_its_own_size(name, to, models, call, tmp_path):
    """As a search saves the model of a ticket of channels: the file says the sizes."""
    networks = tombola.load_model(models[name])
    task = TASKS.load(name)(**OPTIONS[name])
    role = "generator" if "generator" in networks else "decoder"
    whole = sum(p.numel() for p in networks[role].parameters())
    inputs = inputs_of(task, networks, task.image_shape(1))
    channels = Channels.of(networks, inputs, [role])
    kept = {group.name: torch.arange(group.n) > 0 for group in channels.groups}
    shrink(networks, channels.cut(kept))
    path = tmp_path / "small.safetensors"
    weights = {f"{n}.{k}": v for n, each in networks.items() for k, v in plain_state(each).items()}
    save_model(path, weights, {**read_manifest(models[name]), "granularity": "channel"})
    network = tombola.load_model(path)[role]
    assert sum(p.numel() for p in network.parameters()) < whole

    code, _, err = call("export", path, "--to", to)
    assert code == 0, err
    made = path.with_suffix(SUFFIXES[to])
    reader = foreign(made)
    for n in (1, 5):
        latents = torch.randn(n, task.latent, generator=rng(n, "test"))
        with torch.no_grad():
            expected = network(latents)
        assert torch.allclose(reader(latents), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.02


def test_a_file_is_whole_in_itself_and_has_one_network(export, models):
    path = export("dcgan", "onnx").path
    names = {p.name for p in path.parent.iterdir() if p.name.startswith("dcgan")}
    assert names <= {"dcgan.safetensors", "dcgan.onnx", "dcgan.pt2"}
    model = onnx.load(path, load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    (given,), (images,) = model.graph.input, model.graph.output
    assert [given.name, images.name] == ["latents", "images"]
    for value, sizes in ((given, [4]), (images, [1, 32, 32])):
        free, *rest = value.type.tensor_type.shape.dim
        assert free.dim_param == "batch"
        assert [dim.dim_value for dim in rest] == sizes
    assert not model.graph.value_info, "shapes in between have other names for the batch"
    onnx.checker.check_model(model, full_check=True)
    with zipfile.ZipFile(export("dcgan", "torch-export").path) as archive:
        records = archive.read("archive/data/weights/model_weights_config.json")
    table = json.loads(records)["config"]
    assert table
    assert all(key.startswith("networks.generator.") for key in table)
    assert not any(entry["tensor_meta"]["requires_grad"] for entry in table.values())


def test_a_pt2_of_ours_holds_no_pickle(export):
    with zipfile.ZipFile(export("vae", "torch-export").path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert contents["archive/data/sample_inputs/model.pt"] == b""
    for name, content in contents.items():
        assert not content.startswith((b"PK", b"\x80")), name
        assert name.endswith(".json") is content.startswith(b"{"), name
        if name.endswith("_config.json"):
            entries = json.loads(content)["config"].values()
            assert not any(entry["use_pickle"] for entry in entries)


def test_the_command_prints_where_and_how_well(models, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["export", models["dcgan"], "--to", "torch-export"]
    code, out, err = call(*words, "--out", "new/place/g.pt2")
    size = Path("new/place/g.pt2").stat().st_size
    assert (code, err) == (0, "")
    assert out.startswith(f"new/place/g.pt2: {size:,} bytes; its images differ from PyTorch's by")
    assert out.endswith("(allowed: 0.0001)\n")
    code, out, _ = call(*words, "--out", "h.pt2", "--json")
    told = json.loads(out)
    assert told.pop("largest_difference") <= told["tolerance"]
    assert told == {"path": "h.pt2", "to": "torch-export", "bytes": size, "tolerance": 1e-4}
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["g.pt2", "h.pt2"]


@pytest.mark.slow
def test_torch_s_warnings_are_not_the_user_s(models, tmp_path):
    words = ["export", models["vae"], "--to", "onnx", "--out", tmp_path / "v.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "tombola", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'v.onnx'}: ")


@pytest.mark.parametrize("to", SUFFIXES)
def test_a_network_of_a_fixed_number_of_images_is_refused(to, root, models, tmp_path):
    out = tmp_path / f"f{SUFFIXES[to]}"
    with pytest.raises(ConfigError, match="for any number of images"):
        exporting.export(models["Fixed"], to, out, f"{root / 'own.py'}:Fixed")
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_without_roles_is_refused(root, models):
    with pytest.raises(ConfigError, match=r"networks first, second, .* the task's roles"):
        exporting.export(models["Coded"], "onnx", task=f"{root / 'own.py'}:Coded")


@pytest.mark.parametrize("fault", ["images", "shape", "number", "exception"])
def test_a_file_that_fails_its_check_is_not_written(fault, models, tmp_path, monkeypatch):
    whole = exporting._load

    def spoilt(to, blob):
        network = whole(to, blob)
        match fault:
            case "images":
                return lambda inputs: network(inputs) + 0.001 * (len(inputs) == 7)
            case "shape":
                return lambda inputs: network(inputs)[:1]
            case "number":
                return lambda inputs: network(inputs) / 0 - torch.inf
            case _:
                return lambda inputs: 1 / 0

    monkeypatch.setattr(exporting, "_load", spoilt)
    out = tmp_path / "new" / "g.pt2"
    words = {"images": "differs from PyTorch by 0.001 ", "exception": "ZeroDivisionError"}
    with pytest.raises(ConfigError, match=words.get(fault, "by nan ")):
        exporting.export(models["dcgan"], "torch-export", out)
    assert not list(tmp_path.iterdir())
    (tmp_path / "g.pt2").write_text("older")
    with pytest.raises(ConfigError, match="nothing was written"):
        exporting.export(models["dcgan"], "torch-export", tmp_path / "g.pt2")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("g.pt2", "older")]


def test_a_full_disk_leaves_nothing_half_written(models, call, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    words = ["--to", "torch-export", "--out", tmp_path / "g.pt2"]
    code, _, err = call("export", models["dcgan"], *words)
    assert code == 1
    assert "the disk is full" in err
    assert not list(tmp_path.iterdir())


REFUSED = {
    "unknown format": (["@vae.safetensors", "--to", "onx"], "'onx' did you mean onnx torch-export"),
    "no format": (["@vae.safetensors"], "--to required --help"),
    "no file": (["@no", "--to", "onnx"], "no such file give a ticket or model file"),
    "no name": ([".", "--to", "onnx"], "not a regular file"),
    "ticket": (
        ["@ticket.safetensors", "--to", "onnx"],
        "tombola.ticket/1 not beside it a run's models folder",
    ),
    "flipped": (["@flipped.safetensors", "--to", "onnx"], "checksum damaged get the file again"),
    "exported": (["@vae.pt2", "--to", "onnx"], "zip never opened"),
    "user's task": (["@Uniform.safetensors", "--to", "onnx"], "Uniform not registered --task"),
    "another task": (
        ["@vae.safetensors", "--to", "onnx", "--task", "dcgan"],
        "does not fit task DCGAN",
    ),
    "ending": (["@vae.safetensors", "--to", "onnx", "--out", "a.pt2"], "a.pt2 onnx ends in .onnx"),
    "no out": (["@vae.safetensors", "--to", "onnx", "--out", ""], "--out is empty .onnx"),
    "folder": (
        ["@vae.safetensors", "--to", "onnx", "--out", "@d.onnx"],
        "d.onnx folder; file name --out",
    ),
    "below a file": (["@vae.safetensors", "--to", "onnx", "--out", "@own.py/v.onnx"], "is a file"),
    "itself": (["@v.pt2", "--to", "torch-export"], "v.pt2 is the model file itself --out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_told_in_a_line(case, root, models, export, call):
    export("vae", "torch-export")
    (root / "d.onnx").mkdir(exist_ok=True)
    content = models["vae"].read_bytes()
    (root / "v.pt2").write_bytes(content)
    (root / "flipped.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    save_ticket(root / "ticket.safetensors", Ticket({}, {"n.w": torch.zeros(2)}, {"networks": []}))
    words, wanted = REFUSED[case]
    code, _, err = call("export", *(word.replace("@", f"{root}/") for word in words))
    assert code == 2
    assert [word for word in wanted.split() if word not in err] == [], err
    (root / "v.pt2").unlink()


@pytest.mark.parametrize(
    ("name", "error"),
    [("onnx", ImportError), ("onnxruntime", RuntimeError), ("onnxscript", ImportError)],
)
def test_without_the_extra_the_way_to_it_is_named(name, error, models, call, tmp_path, monkeypatch):
    real = facts.importlib.import_module

    def absent(module):
        if module == name:
            raise error(f"{module} is broken\nin two lines")
        return real(module)

    monkeypatch.setattr(facts.importlib, "import_module", absent)
    words = ["export", models["vae"], "--to", "onnx", "--out", tmp_path / "v.onnx"]
    code, _, err = call(*words)
    assert code == 2
    assert f"{error.__name__}: {name} is broken" in err
    assert 'pip install "tombola[onnx]"' in err
    assert not (tmp_path / "v.onnx").exists()
    found = doctor.examine(None)
    assert found["export"][name].startswith("not found: ")
    assert 'pip install "tombola[onnx]"' in found["export"][name]
    assert "not found" in doctor.lines(found)


def test_doctor_says_what_is_there():
    found = doctor.examine(None)["export"]
    assert found["torch-export"] == "found"
    assert found["onnxruntime"] == f"found: {onnxruntime.__version__}"


def test_the_tiny_tasks_of_other_tests_can_be_exported(tmp_path):
    path = save(tmp_path / "m.safetensors", helpers.TinyAE(), "TinyAE", (1, 8, 8))
    made = exporting.export(path, "torch-export", task=helpers.TinyAE)
    assert facts_of(made.path)["input"] == [12]
