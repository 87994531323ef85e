"""Types of the fields of dataclasses that were read from JSON, which somebody else may have written."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require_types(instance: Any) -> None:
    """Raise unless each field of a dataclass has the type of its annotation.

    Raises:
        TypeError: names a field and its value.
    """
    for name, hint in get_type_hints(type(instance)).items():
        value = getattr(instance, name)
        if not has_type(value, hint):
            raise TypeError(f"{name} is {value!r:.100}")


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value as JSON gives it has the type of an annotation.

    >>> has_type({"a": [1]}, dict[str, list[int]]), has_type(True, int), has_type(1, float), has_type("b", Literal["a"])
    (True, False, True, False)
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (Union, UnionType):
        return any(has_type(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(has_type(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            has_type(key, args[0]) and has_type(item, args[1]) for key, item in value.items()
        )
    if hint in (int, float):
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, hint)
