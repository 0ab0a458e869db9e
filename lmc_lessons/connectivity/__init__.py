"""Permutation symmetries of networks and the matching of two networks modulo those symmetries."""
