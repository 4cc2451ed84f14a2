"""How good a model is: judges, distances, scores and the verdict over seeds."""
