"""Networks as plain modules: they know nothing of tasks, masks or data."""
