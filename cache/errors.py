"""What a user can do wrong with a cache, its sources or its images."""


class CacheError(Exception):
    """A problem with a cache or its source; the message says what was found and what to do."""


class UnwritableError(CacheError):
    """A file or folder cannot be written; the cause is the OSError."""


class AbsentObjectError(CacheError):
    """An object that a cache must have is not in its store."""
