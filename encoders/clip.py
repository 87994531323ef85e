"""Old place of `load_merged`, which the model cards of earlier exports import from here."""

from .merged_clip import MergedClip, load_merged

__all__ = ["MergedClip", "load_merged"]
