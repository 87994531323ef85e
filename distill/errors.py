"""Errors of training: mistakes of a user, or damage to a run."""


class DistillError(Exception):
    """A run cannot start, resume or be exported; the message says what is wrong and what to do."""


class DivergedError(DistillError):
    """A loss or gradient is NaN or infinite.

    Attributes:
        step: at which.
        measured: what is not finite.
        advice: what to change.
    """

    def __init__(self, step: int, measured: str, advice: str) -> None:
        super().__init__(f"{measured} at step {step}: {advice}")
        self.step, self.measured, self.advice = step, measured, advice


class LoneError(DistillError):
    """Error that one of several processes may be alone in meeting, so that it prints the message itself."""
