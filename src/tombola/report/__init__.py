"""Tables, plots and pages read from a run directory, never recomputed."""
