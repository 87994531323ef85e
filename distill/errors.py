"""Errors of training: mistakes of a user, or damage to a run."""


class DistillError(Exception):
    """A run cannot start, resume or be exported; the message says what is wrong and what to do."""


class LoneError(DistillError):
    """Error that one of several processes may be alone in meeting, so that it prints the message itself."""
