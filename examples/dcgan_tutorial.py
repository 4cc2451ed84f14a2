"""A DCGAN in the manner of PyTorch's tutorial, on a folder of images or on discs that it draws."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--dataroot", help="a folder of images; without one, discs are drawn")
parser.add_argument("--images", type=int, default=2000, help="how many discs are drawn")
parser.add_argument("--batchSize", type=int, default=64)
parser.add_argument("--nz", type=int, default=100, help="size of the latent vector")
parser.add_argument("--ngf", type=int, default=64)
parser.add_argument("--ndf", type=int, default=64)
parser.add_argument("--niter", type=int, default=25, help="epochs to train for")
parser.add_argument("--lr", type=float, default=0.0002)
parser.add_argument("--beta1", type=float, default=0.5)
parser.add_argument("--manualSeed", type=int, default=999)
opt = parser.parse_args()
print(opt)

random.seed(opt.manualSeed)
torch.manual_seed(opt.manualSeed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_images() -> torch.Tensor:
    """All images as (N, 1, 32, 32) in [-1, 1]."""
    if opt.dataroot:
        files = sorted(p for p in Path(opt.dataroot).rglob("*") if p.suffix in (".png", ".jpg"))
        grey = [np.asarray(Image.open(p).convert("L").resize((32, 32)), np.float32) for p in files]
        return torch.from_numpy(np.stack(grey)).unsqueeze(1) / 127.5 - 1
    rows = torch.arange(32.0).view(1, 32, 1)
    columns = torch.arange(32.0).view(1, 1, 32)
    middle = 8 + 16 * torch.rand(2, opt.images, 1, 1)
    radius = 3 + 4 * torch.rand(opt.images, 1, 1)
    distance = ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2).sqrt()
    return (2 * torch.sigmoid(radius - distance) - 1).unsqueeze(1)


dataset = TensorDataset(load_images())
dataloader = DataLoader(dataset, batch_size=opt.batchSize, shuffle=True, drop_last=True)


# custom weights initialization called on netG and netD
def weights_init(m: nn.Module) -> None:
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            # input is Z, going into a convolution
            nn.ConvTranspose2d(opt.nz, opt.ngf * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(opt.ngf * 4),
            nn.ReLU(True),
            # state size. (ngf*4) x 4 x 4
            nn.ConvTranspose2d(opt.ngf * 4, opt.ngf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(opt.ngf * 2),
            nn.ReLU(True),
            # state size. (ngf*2) x 8 x 8
            nn.ConvTranspose2d(opt.ngf * 2, opt.ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(opt.ngf),
            nn.ReLU(True),
            # state size. (ngf) x 16 x 16
            nn.ConvTranspose2d(opt.ngf, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
            # state size. 1 x 32 x 32
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.main(latents)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, opt.ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(opt.ndf, opt.ndf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(opt.ndf * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(opt.ndf * 2, opt.ndf * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(opt.ndf * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(opt.ndf * 4, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images).view(-1, 1).squeeze(1)


def sliced_wasserstein(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Mean distance of the sorted projections on 64 directions (Rabin et al. 2011)."""
    directions = nn.functional.normalize(fixed_directions, dim=0)
    sorted_real = (real.flatten(1) @ directions).sort(0).values
    sorted_fake = (fake.flatten(1) @ directions).sort(0).values
    return float((sorted_real - sorted_fake).abs().mean())


netG = Generator().to(device)
netG.apply(weights_init)
netD = Discriminator().to(device)
netD.apply(weights_init)

criterion = nn.BCELoss()
fixed_noise = torch.randn(256, opt.nz, 1, 1, device=device)
fixed_real = torch.stack([dataset[i][0] for i in range(min(256, len(dataset)))]).to(device)
fixed_directions = torch.randn(32 * 32, 64, device=device)
real_label, fake_label = 1.0, 0.0

# setup optimizer
optimizerD = optim.Adam(netD.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))

for epoch in range(opt.niter):
    for (data,) in dataloader:
        # (1) Update D network: maximize log(D(x)) + log(1 - D(G(z)))
        netD.zero_grad()
        real = data.to(device)
        label = torch.full((len(real),), real_label, device=device)
        errD_real = criterion(netD(real), label)
        errD_real.backward()
        noise = torch.randn(len(real), opt.nz, 1, 1, device=device)
        fake = netG(noise)
        label.fill_(fake_label)
        errD_fake = criterion(netD(fake.detach()), label)
        errD_fake.backward()
        optimizerD.step()

        # (2) Update G network: maximize log(D(G(z)))
        netG.zero_grad()
        label.fill_(real_label)  # fake labels are real for generator cost
        errG = criterion(netD(fake), label)
        errG.backward()
        optimizerG.step()

    with torch.no_grad():
        samples = netG(fixed_noise)[: len(fixed_real)]
    distance = sliced_wasserstein(fixed_real, samples)
    print(f"[{epoch}/{opt.niter}] D {errD_real + errD_fake:.4f} G {errG:.4f} SW {distance:.4f}")
