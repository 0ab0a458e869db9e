"""Unlearning: taking a class or a fact out of a trained network, and looking what is left inside."""
