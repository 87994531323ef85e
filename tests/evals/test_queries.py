"""Submissions of MUGE's queries."""

import json
from pathlib import Path

import numpy as np
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.evals.errors import EvalError
from clipglot.evals.queries import Query, write_submission


def test_only_keys_that_are_numbers_become_numbers(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tiny_cache)
    names = ["0", "42", "007", "-1", "9" * 30, "a"]
    monkeypatch.setattr(Cache, "keys", lambda self, start=0, end=None: [names[start % len(names)]])
    query, emb = Query(query_id=1, text="x", keys=()), cache.image_emb()[:1].astype(np.float32)
    write_submission(tmp_path / "s.jsonl", [query], emb, cache)
    written = json.loads((tmp_path / "s.jsonl").read_text())["item_ids"]
    assert len(written) == 10
    assert set(written) <= {0, 42, "007", "-1", "9" * 30, "a"}
    with pytest.raises(EvalError, match="NaN"):
        write_submission(tmp_path / "s.jsonl", [query], emb * np.nan, cache)
