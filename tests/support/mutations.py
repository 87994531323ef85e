"""Mutated JSON documents and bytes, for fuzz targets; and a deadline for each example."""

import copy
import faulthandler
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLE_S = 30  # far more than any example takes: only a hang exceeds it
ODD = [None, True, -1, 0, 1, 3, 2**31, 10**15, 10**30, -(10**18), 0.5, 1e308, "", "x", "9", "\0", "../x", "\ud83d"]
ODD += [[], [1], ["x"], [[]], {}, {"a": 1}, {"name": "x"}, "float64", "nan"]


def _places(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value of a document but the whole, by its keys and indices."""
    children = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, child in children:
        yield (*place, key)
        yield from _places(child, (*place, key))


@st.composite
def json_mutations(draw: st.DrawFn, document: Any) -> Any:
    """A document with up to three values replaced, deleted or added."""
    mutated = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(mutated))
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        parent = mutated
        for step in above:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "replace", "delete", "add"])):
            case "replace":
                parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "delete":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[f"{key}x"] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case _:
                parent.append(copy.deepcopy(draw(st.sampled_from(ODD))))
    return mutated


@st.composite
def byte_mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few of them changed, and perhaps cut or lengthened."""
    mutated = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(
            st.integers(0, len(mutated)) | st.integers(0, 64) | st.integers(max(0, len(mutated) - 64), len(mutated))
        )
        mutated[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    end = draw(st.none() | st.integers(0, len(mutated)))
    return bytes(mutated[:end])


def search(strategy: st.SearchStrategy[Any], check: Callable[[Any], object], num: int) -> int:
    """Call a check with `num` examples, always the same ones; one that fails is shrunk and raised."""
    tried = 0

    @settings(max_examples=num, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def target(example: Any) -> None:
        nonlocal tried
        tried += 1
        faulthandler.dump_traceback_later(EXAMPLE_S, exit=True)
        try:
            check(example)
        finally:
            faulthandler.cancel_dump_traceback_later()  # else it ends whatever test the process runs by then

    target()
    return tried
