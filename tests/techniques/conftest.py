"""Tiny nets train on one thread."""

from single_thread import one_thread

__all__ = ["one_thread"]
