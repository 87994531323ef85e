"""Sources in parts, such as train and test: exactly one of them is read."""

from collections.abc import Iterable

from .errors import CacheError


def chosen_split(found: Iterable[str], wanted: str | None, where: object) -> str:
    """The part to read.

    Args:
        found: names of the parts; "" for what belongs to none.
        wanted: what was asked for; may be absent where there is one part alone.
        where: the source, for messages.

    Raises:
        CacheError: no such part, or several to choose from.

    >>> chosen_split(["train", "test"], "test", "pairs")
    'test'
    """
    names = sorted(set(found))
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is not None and wanted in names:
        return wanted
    listed = ", ".join(filter(None, names)) or "none"
    if wanted is not None:
        raise CacheError(f"{where}: no split {wanted!r} in it (found: {listed}): pass --split NAME")
    raise CacheError(f"{where}: has several splits ({listed}): pass --split NAME, one of them")
