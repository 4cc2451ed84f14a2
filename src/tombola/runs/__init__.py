"""The graph of runs, and the store that keeps them."""
