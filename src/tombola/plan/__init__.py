"""Which runs make an experiment? A graph of them, from a resolved config."""
