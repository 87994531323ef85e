"""Teach a frozen CLIP a new language or domain on cached image embeddings."""

__version__ = "0.1.0"
