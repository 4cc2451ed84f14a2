"""Experiments as functions that return a graph of runs."""
