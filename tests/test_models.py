"""Are the networks exactly those of the paper's tables: counts, sizes, ranges, layers?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tombola.errors import ConfigError
from tombola.models.autoencoders import ConvDecoder, ConvEncoder, LinearDecoder, LinearEncoder
from tombola.models.blocks import check_at_least, check_multiple, check_one_of
from tombola.models.gans import Discriminator, Generator, SpectralDiscriminator
from tombola.models.residual import (
    ResidualDecoder,
    ResidualDiscriminator,
    ResidualEncoder,
    ResidualGenerator,
)
from tombola.models.vaes import VariationalDecoder, VariationalEncoder

COLOUR = (3, 32, 32)
GREY = (1, 32, 32)


def _parameters(*networks: nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


def _weights(*networks: nn.Module) -> int:
    return sum(p.numel() for net in networks for p in net.parameters() if p.dim() > 1)


def _outputs(network: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Shapes behind each layer that can change a shape."""
    shapes = []
    for layer in network.main:
        images = layer(images)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.MaxPool2d):
            shapes.append(tuple(images.shape[1:]))
    return shapes


def test_linear_autoencoder_has_the_paper_s_count() -> None:
    shape = (1, 28, 28)
    encoder, decoder = LinearEncoder(shape), LinearDecoder(shape)
    # 784-128-64-12-3: weights 784*128 + 128*64 + 64*12 + 12*3 = 109,348, twice; biases 207 + 988
    assert _weights(encoder, decoder) == 218_696
    assert _parameters(encoder, decoder) == 219_891
    assert _outputs(encoder, torch.zeros(1, 784)) == [(128,), (64,), (12,), (3,)]
    assert _outputs(decoder, torch.zeros(1, 3)) == [(12,), (64,), (128,), (784,)]


def test_linear_autoencoder_shrinks_with_its_width() -> None:
    shape = (1, 28, 28)
    encoder, decoder = LinearEncoder(shape, width=64), LinearDecoder(shape, width=64)
    assert _outputs(encoder, torch.zeros(1, 784)) == [(64,), (32,), (12,), (3,)]
    # 2 * (784*64 + 64*32 + 32*12 + 12*3) weights; biases 64+32+12+3 and 12+32+64+784
    assert _parameters(encoder, decoder) == 2 * 52_644 + 111 + 892


def test_linear_autoencoder_has_no_activation_on_the_code() -> None:
    torch.manual_seed(0)
    encoder = LinearEncoder((1, 28, 28))
    assert isinstance(encoder.main[-1], nn.Linear)
    assert (encoder(torch.rand(64, 1, 28, 28) * 2 - 1) < 0).any()


def test_conv_autoencoder_has_the_authors_count_and_sizes() -> None:
    encoder, decoder = ConvEncoder(COLOUR), ConvDecoder(COLOUR)
    assert _parameters(encoder, decoder) == 2_937_507
    assert _parameters(ConvEncoder(GREY), ConvDecoder(GREY)) == 2_936_673  # as in their log
    heights = [shape[1] for shape in _outputs(encoder, torch.zeros(1, 3, 32, 32))]
    assert heights == [32, 16, 10, 10, 5, 3, 2]
    heights = [shape[1] for shape in _outputs(decoder, torch.zeros(1, 512, 2, 2))]
    assert heights == [5, 10, 18, 20, 32]


def test_conv_autoencoder_keeps_the_signal_s_size() -> None:
    """He's variance 2 / inputs; an output of a stride-2 transposed layer sums 1/4 of its kernel."""
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder(COLOUR), ConvDecoder(COLOUR)
    assert encoder.main[6].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert decoder.main[2].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert decoder.main[6].weight.std().item() == pytest.approx((2 / (64 * 25)) ** 0.5, rel=0.02)
    assert not encoder.main[0].bias.any()
    assert decoder(encoder(torch.rand(16, 3, 32, 32) * 2 - 1)).std() > 0.1


def test_vae_has_the_paper_s_5_6_million() -> None:
    encoder, decoder = VariationalEncoder(COLOUR), VariationalDecoder(COLOUR)
    # weights 1344 d^2 + 32 c d + 96 d z at d = 64, c = 3, z = 16 (official-code.md, 0.2)
    assert _weights(encoder, decoder) == 1344 * 64**2 + 32 * 3 * 64 + 96 * 64 * 16 == 5_609_472
    # BatchNorm 2 * 15d in each network, biases 2z of the heads and c of the last layer
    assert _parameters(encoder, decoder) == 5_609_472 + 4 * 15 * 64 + 32 + 3 == 5_613_347


def test_vae_heads_are_free() -> None:
    """Shifted heads' biases move the mean and log-variance: nothing normalises them away."""
    torch.manual_seed(0)
    encoder = VariationalEncoder(GREY, width=4, latent=2)
    images = torch.rand(8, 1, 32, 32) * 2 - 1
    mean, log_variance = encoder(images)
    assert mean.shape == log_variance.shape == (8, 2)
    head = encoder.main[-1]
    assert isinstance(head, nn.Conv2d)
    with torch.no_grad():
        head.bias += torch.tensor([3.0, 0.0, 0.0, -5.0])
    moved_mean, moved_log_variance = encoder(images)
    torch.testing.assert_close(moved_mean - mean, torch.tensor([[3.0, 0.0]]).expand(8, 2))
    torch.testing.assert_close(
        moved_log_variance - log_variance, torch.tensor([[0.0, -5.0]]).expand(8, 2)
    )


def test_dcgan_has_exactly_6560448_weights() -> None:
    generator, discriminator = Generator(COLOUR), Discriminator(COLOUR)
    assert _weights(generator) == 3_802_816
    assert _weights(discriminator) == 2_757_632
    # BatchNorm 2 * (8+4+2+1)w and 2 * (8+4+2)w; biases: G's last 3, D's first 64 and last 1
    assert _parameters(generator) == 3_802_816 + 1_920 + 3
    assert _parameters(discriminator) == 2_757_632 + 1_792 + 65
    assert _parameters(generator, discriminator) == 6_564_228


def test_dcgan_layers_are_radford_s() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(COLOUR), Discriminator(COLOUR)
    kinds = [type(layer).__name__ for layer in discriminator.main]
    assert kinds[:2] == ["Conv2d", "LeakyReLU"]  # no BatchNorm on the first layer
    assert kinds[2:5] == ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds[-1] == "Conv2d"  # logits
    slopes = {
        layer.negative_slope for layer in discriminator.main if hasattr(layer, "negative_slope")
    }
    assert slopes == {0.2}
    for network in (generator, discriminator):
        for layer in network.main:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 9_999:
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
                assert layer.bias is None
    assert isinstance(generator.main[-2], nn.Conv2d)
    assert generator.main[-2].kernel_size == (3, 3)


def _sides(network: nn.Module, images: Tensor) -> list[int]:
    """Heights behind each stage that still has positions."""
    sides = []
    for stage in network.main:
        images = stage(images)
        if images.dim() == 4:
            sides.append(images.shape[2])
    return sides


def test_sngan_has_the_6_741_572_of_the_paper_s_6_7_million() -> None:
    generator, discriminator = Generator(COLOUR, bias=True), SpectralDiscriminator(COLOUR)
    # convolutions 2,926,272 and 8192 of the last layer; biases 1,408 and 1
    assert _weights(discriminator) == 2_926_272 + 8_192
    assert _parameters(discriminator) == 2_934_464 + 1_409
    assert _parameters(generator) == _parameters(Generator(COLOUR)) + 512 + 256 + 128 + 64
    assert _parameters(generator, discriminator) == 6_741_572
    sides = _sides(discriminator, torch.zeros(1, 3, 32, 32))
    assert sides[::2] == [32, 16, 16, 8, 8, 4, 4]


def test_resnet_dcgan_has_2_208_772() -> None:
    generator, discriminator = ResidualGenerator(COLOUR), ResidualDiscriminator(COLOUR)
    assert _parameters(generator) == 1_154_947
    assert _parameters(discriminator) == 1_053_825
    assert _sides(generator, torch.zeros(1, 128)) == [4, 8, 16, 32, 32, 32, 32, 32]
    assert _sides(discriminator, torch.zeros(1, 3, 32, 32))[:4] == [16, 8, 8, 8]


def test_resnet_vae_has_the_authors_2_821_251() -> None:
    encoder, decoder = ResidualEncoder(COLOUR), ResidualDecoder(COLOUR)
    assert _parameters(encoder) == 1_242_848
    assert _parameters(decoder) == 1_578_403
    assert _sides(encoder, torch.zeros(1, 3, 32, 32))[2:7] == [16, 16, 8, 4, 2]
    assert _sides(decoder, torch.zeros(1, 32)) == [1, 4, 8, 16, 32, 32, 32, 32]


@pytest.mark.parametrize("build", [SpectralDiscriminator, ResidualDiscriminator])
def test_every_layer_of_a_spectral_discriminator_is_normed(build) -> None:
    torch.manual_seed(0)
    network = build(GREY, width=4)
    for _ in range(50):  # the power iterations
        network(torch.zeros(1, 1, 32, 32))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == {SpectralDiscriminator: 8, ResidualDiscriminator: 11}[build]
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert norm.item() == pytest.approx(1, rel=0.05)


def test_residual_blocks_add_what_they_were_given() -> None:
    """No branch works in place on its input: the block is its main branch plus its skip."""
    torch.manual_seed(0)
    networks = (
        ResidualEncoder(GREY, width=4),
        ResidualDecoder(GREY, width=4),
        ResidualGenerator(GREY, width=4),
        ResidualDiscriminator(GREY, width=4),
    )
    blocks = [m for n in networks for m in n.modules() if type(m).__name__ == "_Sum"]
    assert len(blocks) == 4 + 4 + 3 + 4
    for block in blocks:
        block.eval()
        first = next(m for m in block.main.modules() if isinstance(m, nn.Conv2d))
        values = torch.randn(2, first.in_channels, 8, 8)
        expected = block.after(block.main(values.clone()) + block.skip(values.clone()))
        torch.testing.assert_close(block(values), expected)


def test_a_critic_without_norm_treats_each_image_alone() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 1, 32, 32)
    critic = Discriminator(GREY, width=4, norm=False)
    torch.testing.assert_close(critic(images)[:1], critic(images[:1]))
    assert _weights(critic) == _weights(Discriminator(GREY, width=4))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutional_networks_at_other_shapes(size: int, channels: int) -> None:
    shape = (channels, size, size)
    images = torch.rand(2, *shape) * 2 - 1
    code = ConvEncoder(shape, width=2)(images)
    assert code.shape == (2, 32, size // 16, size // 16)
    mean, _ = VariationalEncoder(shape, width=2, latent=5)(images)
    assert mean.shape == (2, 5)
    assert ResidualEncoder(shape, width=2, latent=5)(images)[1].shape == (2, 5)
    for critic in (Discriminator, SpectralDiscriminator, ResidualDiscriminator):
        assert critic(shape, width=2)(images).shape == (2,)
    for made in (
        ResidualDecoder(shape, width=2, latent=5)(mean),
        ResidualGenerator(shape, width=2, latent=7)(torch.randn(2, 7)),
        ConvDecoder(shape, width=2)(code),
        VariationalDecoder(shape, width=2, latent=5)(mean),
        Generator(shape, width=2, latent=7)(torch.randn(2, 7)),
    ):
        assert made.shape == (2, *shape)
        assert made.abs().max() <= 1


def test_linear_autoencoder_takes_any_shape() -> None:
    shape = (3, 8, 6)
    code = LinearEncoder(shape, width=4, code=2)(torch.zeros(5, *shape))
    assert code.shape == (5, 2)
    assert LinearDecoder(shape, width=4, code=2)(code).shape == (5, *shape)


def test_images_come_back_in_place() -> None:
    """The decoder's last layer writes pixels in C, H, W order."""
    decoder = LinearDecoder((2, 2, 2), width=2, code=1)
    last = decoder.main[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(8) / 8)
    images = decoder(torch.zeros(1, 1))
    assert images[0, 1, 0, 1].item() == pytest.approx(math.tanh(5 / 8))


def test_views_follow_a_narrower_layer() -> None:
    """Compaction cuts channels out of layers: no view may hard-code their number."""
    decoder = LinearDecoder((3, 4, 4), width=4, code=2)
    decoder.main[-1] = nn.Linear(4, 2 * 4 * 4)
    assert decoder(torch.zeros(5, 2)).shape == (5, 2, 4, 4)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: LinearEncoder((1, 28, 28), width=1), "width is 1; it must be 2 or more"),
        (lambda: LinearDecoder((1, 28, 28), code=0), "code is 0; it must be 1 or more"),
        (lambda: ConvEncoder((1, 28, 28)), "size is 28; .* multiple of 16; set size=32"),
        (lambda: ConvDecoder((1, 8, 8)), "set size=16"),
        (lambda: ConvEncoder(GREY, width=0), "width is 0"),
        (lambda: VariationalEncoder(GREY, latent=0), "latent is 0"),
        (lambda: VariationalDecoder((1, 40, 40)), "size is 40"),
        (lambda: Generator((1, 96, 96)), "size is 96; .* 32 or 64 pixels; set size=64"),
        (lambda: Discriminator((1, 28, 28)), "size is 28; .* set size=32"),
        (lambda: SpectralDiscriminator((1, 48, 48)), "size is 48"),
        (lambda: ResidualGenerator(GREY, latent=0), "latent is 0"),
        (lambda: ResidualDiscriminator((1, 16, 16)), "size is 16"),
        (lambda: ResidualEncoder((1, 16, 16)), "size is 16; .* multiple of 32"),
        (lambda: ResidualDecoder(GREY, width=0), "width is 0"),
        (lambda: check_at_least(beta=(math.nan, 0)), "beta is nan"),
        (lambda: check_multiple(-16, 16), "size is -16"),
        (lambda: check_one_of(0, (32, 64)), "size is 0"),
    ],
)
def test_impossible_sizes_are_refused(build, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build()
