"""What a user can do wrong with a run."""


class DistillError(Exception):
    """A run cannot start, resume or be exported; the message says what was found and what to do."""


class LoneError(DistillError):
    """What one of several processes may be alone in meeting, so that it speaks for itself."""
