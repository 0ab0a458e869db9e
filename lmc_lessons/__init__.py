"""Executable lessons on the loss landscape, from a laptop CPU to a GPU."""

__version__ = "0.1.0"
