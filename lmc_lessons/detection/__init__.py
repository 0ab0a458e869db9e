"""Anomalies: how they are scored, with and without labels, and what hides them in training data."""
