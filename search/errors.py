"""What a user can do wrong when searching."""


class SearchError(Exception):
    """A cache cannot be searched; the message says what was found and what to do."""
