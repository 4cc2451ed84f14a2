"""Where images come from, and the batch of every step."""
