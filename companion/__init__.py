"""The package that the book *Identity & Flow: learning sparse neural networks from their features* teaches with."""

from __future__ import annotations

__version__ = "0.1.0"  # the only place: packaging reads it from here
