"""Judges: adaptation, batches, files, Inception's stand-in and the shipped classifiers."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tombola.data.adapt import fit
from tombola.errors import ConfigError, DataError
from tombola.metrics import ladder
from tombola.metrics.features import (
    adapt,
    classifier_judge,
    load_judge,
    open_inception,
    open_judge,
    save_judge,
)
from tombola.metrics.judge_files import (
    ACCURACY_GATES,
    INCEPTION_SHA256,
    find_inception,
    metric_names,
    read_judge_file,
    shipped_judge,
    weights_sha256,
    write_judge_file,
)
from tombola.models.classifier import Classifier, ResNet18

SHIPPED = ("digits", "mnist")


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(1, 10, 4).eval()


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    monkeypatch.delenv("TOMBOLA_INCEPTION", raising=False)
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path / "cache"))


def images(n: int = 7, channels: int = 1, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, channels, size, size), generator=generator).to(torch.uint8)


def test_28_is_padded_with_black_to_32():
    given = images(size=28)
    found = adapt(given, 1)
    assert torch.equal(found[:, :, 2:30, 2:30], given)
    assert int(found.long().sum()) == int(given.long().sum())


def test_other_sizes_are_scaled_with_antialiasing_and_rounded():
    stripes = torch.zeros(1, 1, 96, 96, dtype=torch.uint8)
    stripes[..., ::3] = 255
    # weights 1, 2, 3, 2, 1 of 9 meet the stripe with 2 + 1; one sample in the middle would miss it
    found = adapt(stripes, 1)
    assert found.shape == (1, 1, 32, 32)
    assert found[..., 1:-1].unique().tolist() == [85]
    blocks = adapt(torch.full((1, 1, 8, 8), 77, dtype=torch.uint8), 1)
    assert blocks.unique().tolist() == [77]


def test_colour_is_averaged_and_rounded_and_grey_repeated():
    colour = torch.tensor([10, 20, 32], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert adapt(colour, 1).unique().tolist() == [21]  # 20.67, not truncated
    grey = images()
    assert torch.equal(adapt(grey, 3), grey.repeat(1, 3, 1, 1))


def test_adaptation_agrees_with_that_of_the_data_sources():
    for channels, size, wanted in [(1, 28, 1), (3, 28, 1), (3, 64, 1), (1, 8, 3), (3, 45, 3)]:
        given = images(3, channels, size)
        assert torch.equal(adapt(given, wanted), fit(given, (wanted, 32, 32)))


def test_features_come_in_batches_in_eval_mode(model, monkeypatch):
    judge = classifier_judge(model.train(), {"data": "toy"})
    given = images(11)
    features, probabilities = judge.features(given)
    assert features.dtype == np.float32
    assert features.shape == (11, judge.dimensions) == (11, 64)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    monkeypatch.setattr("tombola.metrics.features.BATCH_SIZE", 4)
    np.testing.assert_allclose(judge.features(given)[0], features, atol=1e-5)
    assert judge.features(given, probabilities=False)[1] is None
    expected = model.features(given.float() / 127.5 - 1)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_images_that_are_no_uint8_images_are_refused(model):
    judge = classifier_judge(model, {"data": "toy"})
    for given in (images().float(), images()[0], images(channels=2)):
        with pytest.raises(DataError, match="give uint8 ones"):
            judge.features(given)
    with pytest.raises(DataError, match="got no images"):
        judge.features(images()[:0])


def test_a_saved_judge_comes_back_the_same(model, tmp_path):
    path = tmp_path / "deep" / "judge.safetensors"
    sha256 = save_judge(path, model, {"data": "toy", "accuracy": 0.5})
    judge = load_judge(path)
    assert judge.sha256 == sha256
    assert judge.name == f"toy-{sha256[:8]}"
    assert judge.metrics["frechet"] == f"fcd-toy-{sha256[:8]}"
    assert judge.metadata["accuracy"] == 0.5
    np.testing.assert_array_equal(
        judge.features(images())[0], classifier_judge(model, {"data": "toy"}).features(images())[0]
    )
    content = path.read_bytes()
    save_judge(path, model, {"accuracy": 0.5, "data": "toy"})
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["judge.safetensors"]


def test_a_saved_resnet18_comes_back_as_one(tmp_path):
    torch.manual_seed(0)
    path, resnet = tmp_path / "judge.safetensors", ResNet18(1, 10, 4).eval()
    save_judge(path, resnet, {"data": "toy"})
    judge = load_judge(path)
    assert judge.dimensions == 32
    assert judge.metadata["network"] == "resnet18"
    features, _ = judge.features(images())
    own = classifier_judge(resnet, {"data": "toy"}).features(images())[0]
    np.testing.assert_array_equal(features, own)
    arrays, metadata = read_judge_file(path)
    for network in ("resnet19", 3):
        write_judge_file(path, arrays, {**metadata, "network": network})
        with pytest.raises(DataError, match="no sound judge file: its metadata"):
            load_judge(path)


def test_the_hash_is_of_the_weights_and_not_of_the_metadata(model, tmp_path):
    first = save_judge(tmp_path / "a", model, {"data": "toy"})
    assert save_judge(tmp_path / "b", model, {"data": "toy", "note": "other"}) == first
    with torch.no_grad():
        model.head.bias[0] += 1
    assert save_judge(tmp_path / "c", model, {"data": "toy"}) != first


def test_the_hash_literal():
    weights = {"b": np.array([1.0], np.float32), "a": np.array([2], np.int64)}
    text = b"a\0" + struct.pack("<q", 2) + b"b\0" + struct.pack("<f", 1)
    assert weights_sha256(weights) == hashlib.sha256(text).hexdigest()


def _edited(path: Path, edit) -> Path:
    """The judge file with its header changed by ``edit``."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


def _metadata(**changes):
    def edit(header):
        judge = {**json.loads(header["__metadata__"]["judge"]), **changes}
        header["__metadata__"]["judge"] = json.dumps(judge)

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "cannot read the judge file"),
        (lambda p: p.write_bytes(b""), "no sound judge file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "no sound judge file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x01"), "checksum differs"),
        (lambda p: p.write_bytes(b"\x80\x04" + p.read_bytes()), "no sound judge file"),
        (lambda p: _edited(p, lambda h: h.pop("__metadata__")), "format is None"),
        (lambda p: _edited(p, lambda h: h["__metadata__"].pop("judge")), "no sound judge file"),
        (lambda p: _edited(p, lambda h: h["__metadata__"].update(judge="[]")), "no JSON object"),
        (lambda p: _edited(p, _metadata(width=5)), "size mismatch"),
        (lambda p: _edited(p, _metadata(classes=-1)), "metadata"),
        (lambda p: _edited(p, _metadata(width=10**9)), "metadata"),
        (lambda p: _edited(p, _metadata(data=None)), "metadata"),
    ],
)
def test_unsound_files_are_refused_in_one_line(model, tmp_path, spoil, message):
    path = tmp_path / "judge.safetensors"
    save_judge(path, model, {"data": "toy"})
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        load_judge(path)
    assert "\n" not in str(caught.value)


class StandIn(nn.Module):
    """The interface of Inception's file: uint8 colour images in, features or probabilities out."""

    def forward(
        self, images: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        features = images.float().flatten(1).mean(1, keepdim=True).repeat(1, 2048)
        if return_features:
            return features
        bias = 0.0 if no_output_bias else 9.0
        return torch.stack([features[:, 0] + bias, features[:, 1]], 1).softmax(1)


@pytest.fixture
def stand_in(tmp_path) -> tuple[Path, str]:
    path = tmp_path / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch.jit is deprecated; the published file is of its kind
        torch.jit.script(StandIn()).save(path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_is_opened_after_its_hash_is_verified(stand_in, recwarn):
    path, sha256 = stand_in
    recwarn.clear()
    judge = open_inception(path, sha256=sha256)
    assert not recwarn.list
    assert (judge.name, judge.dimensions, judge.sha256) == ("inception", 2048, sha256)
    given = images(5, size=28)
    features, probabilities = judge.features(given)
    assert features.shape == (5, 2048)
    np.testing.assert_allclose(features[:, 0], given.float().mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(probabilities, 0.5)  # without the bias
    assert judge.metrics == {
        "frechet": "fid",
        "kernel": "kid",
        "error": "kid-error",
        "score": "is",
    }


def test_another_file_than_the_published_one_is_never_opened(stand_in, monkeypatch):
    path, _ = stand_in
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(DataError, match=f"not {INCEPTION_SHA256}; it was not opened"):
        open_inception(path)
    with pytest.raises(DataError, match="cannot read the Inception file"):
        open_inception(path.with_name("absent.pt"))


def test_inception_is_found_by_variable_then_cache(stand_in, monkeypatch, tmp_path):
    path, _ = stand_in
    assert find_inception() is None
    cached = tmp_path / "cache" / "inception-2015-12-05.pt"
    cached.parent.mkdir()
    cached.write_bytes(b"")
    assert find_inception() == cached
    monkeypatch.setenv("TOMBOLA_INCEPTION", str(path))
    assert find_inception() == path
    monkeypatch.setenv("TOMBOLA_INCEPTION", str(tmp_path / "nowhere.pt"))
    with pytest.raises(ConfigError, match=r"names .*nowhere.pt, which is no file"):
        find_inception()


def test_open_judge_prefers_inception_then_the_given_file(model, stand_in, monkeypatch, tmp_path):
    path = tmp_path / "own.safetensors"
    save_judge(path, model, {"data": "digits"})
    assert open_judge("digits", path=path).sha256 == weights_sha256(read_judge_file(path)[0])
    with pytest.raises(DataError, match="no judge ships for 'celeba'"):
        open_judge("celeba")
    monkeypatch.setenv("TOMBOLA_INCEPTION", str(stand_in[0]))
    with pytest.raises(DataError, match="SHA-256"):  # it is tried first, and is no Inception
        open_judge("digits", path=path)


def test_metric_names_carry_the_judge():
    assert metric_names("mnist-01234567") == {
        "frechet": "fcd-mnist-01234567",
        "kernel": "kcd-mnist-01234567",
        "error": "kcd-mnist-01234567-error",
        "score": "cs-mnist-01234567",
    }


@pytest.mark.parametrize("data", SHIPPED)
def test_shipped_judges_are_small_gated_and_say_how_they_were_made(data):
    path = shipped_judge(data)
    assert path is not None
    assert path.stat().st_size < 500_000
    judge = load_judge(path)
    assert judge.name.startswith(f"{data}-")
    assert judge.metadata["accuracy"] >= ACCURACY_GATES[data]
    assert judge.metadata["gate"]["passed"]
    assert ladder.ladder_faults(judge.metadata["gate"]) == []
    assert judge.metadata["command"] == f"python benchmarks/make_judges.py {data}"
