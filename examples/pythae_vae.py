"""A VAE of the library pythae, trained by its own pipeline: its tickets by `tombola run`.

tombola run --rounds 5 --rewind 50it -- python examples/pythae_vae.py

The lines that end with `# tombola` are what was added to the script.
"""

import argparse
import tempfile

import torch
from pythae.models import VAE, VAEConfig
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig

import tombola  # tombola

parser = argparse.ArgumentParser()
parser.add_argument("--images", type=int, default=4096)
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()
SIDE = 16


def bars(count):
    """Images of one white row each, (count, 1, 16, 16) in [0, 1]."""
    images = torch.zeros(count, 1, SIDE, SIDE)
    images[torch.arange(count), 0, torch.randint(SIDE, (count,))] = 1
    return images


torch.manual_seed(0)
images, held_out = bars(options.images), bars(256)
model = VAE(VAEConfig(input_dim=(1, SIDE, SIDE), latent_dim=8))


def reconstruction_error():  # tombola
    with torch.no_grad():  # tombola
        again = model.decoder(model.encoder(held_out).embedding).reconstruction  # tombola
    return {"reconstruction_error": (again - held_out).square().mean()}  # tombola


networks = {"encoder": model.encoder, "decoder": model.decoder}  # tombola
tombola.attach(networks, judge=reconstruction_error)  # tombola

with tempfile.TemporaryDirectory() as folder:
    training = BaseTrainerConfig(
        output_dir=folder, num_epochs=options.epochs, per_device_train_batch_size=64
    )
    TrainingPipeline(model=model, training_config=training)(train_data=images)
