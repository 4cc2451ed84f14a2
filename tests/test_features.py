"""Judges: adaptation, files, Inception's stand-in, the shipped classifiers and the ladder."""

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
from torch.utils.flop_counter import FlopCounterMode

from tombola.data.adapt import fit
from tombola.data.sources import load_images
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
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.judge_files import (
    ACCURACY_GATES,
    INCEPTION_SHA256,
    find_inception,
    metric_names,
    read_judge_file,
    shipped_judge,
    weights_sha256,
)
from tombola.models.classifier import Classifier, classification_loss, rotated, shifted
from tombola.runtime import rng

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


def macs(module: nn.Module, channels: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module.to("meta")(torch.empty(1, channels, 32, 32))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("channels", "width"), [(1, 16), (3, 32)])
def test_the_classifier_stays_within_20_mmac_and_64_features(channels, width):
    assert Classifier(channels, 10, width).features(torch.zeros(2, channels, 32, 32)).shape[1] <= 64
    assert macs(Classifier(channels, 10, width), channels) <= 20_000_000


def test_the_grey_judge_takes_three_million_macs():
    # 16x16x25x16 + 16x16x9x16x32 + 8x8x9x32x64 + 4x4x9x64x64 + 64x10
    assert macs(Classifier(1, 10, 16), 1) == 102_400 + 1_179_648 + 1_179_648 + 589_824 + 640


def test_logits_are_linear_in_the_features(model):
    inputs = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(model(inputs), model.head(model.features(inputs)))
    assert isinstance(model.head, nn.Linear)


def test_shifts_move_each_image_by_at_most_two_pixels():
    torch.manual_seed(1)
    dots = torch.full((64, 1, 9, 9), -1.0)
    dots[:, :, 4, 4] = 1
    places = shifted(dots)[:, 0].flatten(1).argmax(1)
    rows, columns = places // 9 - 4, places % 9 - 4
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_shifts_repeat_the_border():
    torch.testing.assert_close(
        shifted(torch.full((4, 2, 5, 5), 0.3)), torch.full((4, 2, 5, 5), 0.3)
    )


def test_rotations_turn_each_image_by_its_own_quarter_turns():
    square = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(4, 1, 1, 1)
    found = rotated(square, torch.arange(4)).reshape(4, 4).tolist()
    assert found == [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]


def test_the_loss_without_labels_is_that_of_telling_rotations_apart():
    torch.manual_seed(0)
    model = Classifier(1, 4, 2)
    torch.manual_seed(5)
    loss = classification_loss(model, torch.rand(6, 1, 32, 32), None)
    loss.backward()
    assert loss.shape == ()
    assert model.head.weight.grad is not None
    assert loss.item() == pytest.approx(np.log(4), abs=1)


def test_shrunk_batches_have_the_border_of_padded_ones(monkeypatch):
    seen = []
    monkeypatch.setattr("tombola.models.classifier.shifted", lambda x: seen.append(x) or x)
    model = Classifier(1, 2, 2)
    for seed in range(12):
        torch.manual_seed(seed)
        classification_loss(model, torch.ones(2, 1, 32, 32), torch.zeros(2).long(), shrink=True)
    borders = {float(batch[0, 0, 0, 0]) for batch in seen}
    assert borders == {-1.0, 1.0}
    assert all(float(batch[0, 0, 16, 16]) == pytest.approx(1) for batch in seen)


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
    assert judge.metrics == {"frechet": "fid", "kernel": "kid", "score": "is"}


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


def _digits(size: int, split: str) -> tuple[Tensor, Tensor]:
    loaded = load_images("digits", (1, size, size))
    return loaded.splits[split], loaded.labels[split]


@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_shipped_digits_judge_knows_digits_of_every_size(size):
    judge = load_judge(shipped_judge("digits"))
    assert ladder.accuracy(judge, *_digits(size, "judge")) >= ACCURACY_GATES["digits"]


def test_the_shipped_digits_judge_climbs_its_ladder_again():
    judge = load_judge(shipped_judge("digits"))
    train, _ = _digits(32, "train")
    judged, labels = _digits(32, "judge")
    result = ladder.gate(judge, {"train": train, "judge": judged}, {"judge": labels})
    assert result["reasons"] == []
    assert result["passed"]
    assert result["floor"] == pytest.approx(judge.metadata["gate"]["floor"], rel=1e-3)
    json.dumps(result)
    unlabelled = ladder.climb(judge, train, judged[:99], None)
    assert unlabelled["dropped"] == {}


def _result(**changes):
    good = {
        "floor": 1.0,
        "rungs": {"noise": [2.0, 30.0], "blur": [3.0, 40.0]},
        "dropped": {"0": 4.0, "1": 5.0},
        "thinned": {"0": 1.5, "1": 1.5},
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rungs": {"noise": [2.0, 2.0], "blur": [2, 90]}}, "does not grow with noise: 1, 2, 2"),
        ({"rungs": {"noise": [0.9, 20], "blur": [2, 90]}}, "does not grow with noise"),
        ({"floor": float("nan")}, "clean judge images"),
        ({"rungs": {"noise": [2, 9.9], "blur": [2, 90]}}, "clean judge images are 1 from"),
        ({"dropped": {"0": 4.0, "1": 1.5}}, "a class is gone: 1"),
    ],
)
def test_every_fault_of_a_ladder_has_its_reason(changes, reason):
    assert ladder.ladder_faults(_result()) == []
    assert any(reason in text for text in ladder.ladder_faults(_result(**changes)))


def test_a_gate_stays_shut_for_a_judge_that_knows_nothing(model):
    judge = classifier_judge(model, {"data": "digits"})
    labels = torch.arange(40) % 10
    result = ladder.gate(judge, {"train": images(80), "judge": images(40)}, {"judge": labels})
    assert not result["passed"]
    assert f"accuracy {result['accuracy']:.4f} is below 0.95" in result["reasons"]


def test_corruptions_do_what_their_strength_says():
    grey = torch.full((4, 1, 64, 64), 128, dtype=torch.uint8)
    noisy = ladder.noise(grey, 0.1).float()
    assert float(noisy.std()) == pytest.approx(25.5, rel=0.03)
    dot = torch.zeros(1, 1, 65, 65, dtype=torch.uint8)
    dot[0, 0, 32, 32] = 255
    blurred = ladder.blur(dot, 1 / 65)[0, 0].float()
    # the peak of a Gaussian of one pixel is 1 / (2 pi); its kernel ends at three pixels
    assert float(blurred.max()) == pytest.approx(255 / (2 * np.pi), abs=1)
    assert torch.equal(blurred, blurred.T)
    ramp = torch.arange(64, dtype=torch.uint8).repeat(1, 1, 64, 1)
    cropped = ladder.crop(ramp, 0.5)
    assert (int(cropped.min()), int(cropped.max())) == (16, 47)
    assert torch.equal(ladder.crop(ramp, 1.0), ramp)


def test_noise_is_the_same_at_every_call():
    assert torch.equal(ladder.noise(images(), 0.2), ladder.noise(images(), 0.2))


def test_a_dropped_class_is_compared_with_as_many_images_left_out_at_random():
    judge = load_judge(shipped_judge("digits"))
    train, _ = _digits(32, "train")
    judged, labels = _digits(32, "judge")
    result = ladder.climb(judge, train[:300], judged[:100], labels[:100])
    clean = judge.features(judged[:100])[0]
    reference = Gaussian.of(judge.features(train[:300])[0])
    without = labels[:100].numpy() != 3
    order = torch.randperm(100, generator=rng(0, "ladder-thinned")).numpy()
    expected = frechet_distance(reference, Gaussian.of(clean[without]))
    assert result["dropped"]["3"] == pytest.approx(expected, rel=1e-6)
    thinned = frechet_distance(reference, Gaussian.of(clean[order[: without.sum()]]))
    assert result["thinned"]["3"] == pytest.approx(thinned, rel=1e-6)
