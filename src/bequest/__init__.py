"""Bequest: pre-train language models by inheriting from models that exist already."""

__version__ = "0.1.0"
