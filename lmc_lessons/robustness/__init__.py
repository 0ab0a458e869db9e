"""Adversarial examples: how they are found, trained against, and what they say about sharpness."""
