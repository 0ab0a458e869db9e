"""Unlearning: taking a class or a fact out of a network, and looking what is left inside."""
