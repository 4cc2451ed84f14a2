"""Networks, losses and optimizers put together as trainable generative models."""
