"""Towers: frozen image towers, trained text towers, their tokenizers, and merging two towers into one CLIP."""
