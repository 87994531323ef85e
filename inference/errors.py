"""Errors of inputs to a CLIP."""


class InputError(ValueError):
    """A text, image or cache that a CLIP cannot take; the message says which, and why."""
