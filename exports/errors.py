"""Errors of exports in other formats."""


class ExportError(ValueError):
    """A CLIP that a format cannot hold, or that its library loads to other features; the message says what to do."""
