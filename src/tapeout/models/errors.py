"""The one error of this package."""

from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be found, read or exported; the message is one line for a user."""
