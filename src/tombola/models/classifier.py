"""What do the judges see: a small convolutional classifier whose features are compared.

It stands in for Inception where that file is absent or means little (digits, MNIST): 32x32 images,
64 features after a ReLU and a mean over positions, as in Inception's last pooling, and logits that
are linear in them. At width 16 on grey images it takes 3.1 MMAC an image. The paper's ResNet-18 can
be had instead for downstream accuracy: 37 MMAC an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.models.residual import basic_block

FEATURES = 64
"""Length of a feature vector of the small classifier."""
RESNET18 = "resnet18"
"""Name of the other network."""
IMAGE_SIZE = 32
"""Height and width of the judge's input, in pixels."""
ROTATIONS = 4
"""Classes of the pretext task of data without labels: turns by 0, 90, 180 and 270 degrees."""


class Classifier(nn.Module):
    """Convolutional classifier of 32x32 images with 64 features."""

    network = "small"

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.channels, self.classes, self.width = channels, classes, width
        self.dimensions = FEATURES
        self.main = nn.Sequential(
            *_block(channels, width, 5, 2),  # 16x16
            *_block(width, 2 * width, 3, 1),
            nn.MaxPool2d(2),  # 8x8
            *_block(2 * width, 4 * width, 3, 1),
            nn.MaxPool2d(2),  # 4x4
            *_block(4 * width, FEATURES, 3, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, 32, 32) in [-1, 1] -> features (N, dimensions), not negative."""
        features: Tensor = self.main(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, 32, 32) in [-1, 1] -> logits (N, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class ResNet18(Classifier):
    """ResNet-18 with 512 features (11.2M parameters): He et al. 2016, table 1, "18-layer"."""

    network = RESNET18

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        nn.Module.__init__(self)
        self.channels, self.classes, self.width = channels, classes, width
        self.dimensions = 8 * width
        layers = [*_block(channels, width, 7, 2), nn.MaxPool2d(3, 2, 1)]  # 16x16, 8x8
        inputs = width
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            layers += [basic_block(inputs, outputs, stride), basic_block(outputs, outputs, 1)]
            inputs = outputs
        self.main = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(self.dimensions, classes)


NETWORKS: dict[str, type[Classifier]] = {kind.network: kind for kind in (Classifier, ResNet18)}


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe:
    """How a judge is trained; the shipped ones were made with these values."""

    network: str = "small"
    width: int = 16
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate, which falls to 0 along a half cosine."""
    flip: bool = False
    """Whether training images are mirrored at random."""
    shrink: bool = True
    """Whether half of the batches are scaled to 28x28 and padded, as a task of that size gives."""


def classifier_recipe(data: str, channels: int, network: str = "small") -> ClassifierRecipe:
    """The recipe for a data source: more epochs for few images, more width for colour."""
    if network == RESNET18:
        return ClassifierRecipe(
            network=RESNET18,
            width=64,
            epochs=4 if data == "mnist" else 30 if channels == 3 else 10,
            learning_rate=1e-3,
            flip=channels == 3,
            shrink=data != "mnist",
        )
    if data == "digits":
        return ClassifierRecipe(epochs=60, batch_size=64)
    if data == "mnist":  # 28x28 by nature: padding is all it ever gets
        return ClassifierRecipe(epochs=4, shrink=False)
    if channels == 3:  # width 32 and 16 epochs reach 79.1% on CIFAR-10, below its gate of 80%
        return ClassifierRecipe(width=40, epochs=20, flip=True)
    return ClassifierRecipe(epochs=16)


def classification_loss(
    model: Classifier,
    images: Tensor,
    labels: Tensor | None,
    *,
    flip: bool = False,
    shrink: bool = False,
) -> Tensor:
    """Cross-entropy on shifted images; without labels, of the pretext task of four rotations.

    Images (N, C, 32, 32) in [-1, 1], labels int64 (N,); flip and shrink as in the recipe. Draws
    come from torch's global generator. Rotations: Gidaris et al. 2018, "Unsupervised representation
    learning by predicting image rotations".
    """
    if labels is None:
        labels = torch.randint(ROTATIONS, (len(images),)).to(images.device)
        images = rotated(images, labels)
    elif flip:
        mirror = torch.rand(len(images), 1, 1, 1).to(images.device) < 0.5
        images = torch.where(mirror, images.flip(3), images)
    if shrink and torch.rand(()) < 0.5:
        small = F.interpolate(images, (28, 28), mode="bilinear", antialias=True)
        images = F.pad(small, (2, 2, 2, 2), value=-1)
    return F.cross_entropy(model(shifted(images)), labels)


def shifted(images: Tensor, pixels: int = 2) -> Tensor:
    """Each image (N, C, H, W) moved by up to ``pixels`` in both directions, its border repeated."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    top, left = torch.randint(2 * pixels + 1, (2, n, 1)).to(images.device)
    rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[image, channel, rows, columns]


def rotated(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Square images (N, C, H, H) turned by 90 degrees times ``quarter_turns`` (N,)."""
    turned = images.clone()
    for turns in range(1, ROTATIONS):
        chosen = quarter_turns == turns
        turned[chosen] = torch.rot90(images[chosen], turns, (2, 3))
    return turned


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
