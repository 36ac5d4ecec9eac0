"""Anytime reasoning: train, evaluate and look at models that can be stopped at any budget."""

__version__ = "0.1.0"
