"""What a user can do wrong when measuring."""


class EvalError(Exception):
    """A measurement cannot be made; the message says what was found and what to do."""
