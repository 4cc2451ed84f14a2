"""One trainer for every task, and its checkpoints."""
