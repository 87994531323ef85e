"""Formats of an exported CLIP beside open_clip's: one module a format, each written from a `MergedClip`."""
