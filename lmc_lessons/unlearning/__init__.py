"""Unlearning: taking a class or a fact out of a trained network, and what is left inside."""
