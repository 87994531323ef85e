"""Token store: captions are tokenized once; stored tokens are complete or absent, with any number of writers."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.processes import worker_pool
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.storage import ragged
from clipglot.cache.storage.atomic import sweep_partial
from clipglot.cache.storage.token_arrays import write_tokens
from clipglot.cli.main import main
from clipglot.distill.data import tokens
from clipglot.distill.data.tokens import TokenTable, open_tokens
from clipglot.distill.errors import DistillError
from clipglot.distill.provenance import content_id
from clipglot.encoders.tokenizer import CaptionTokenizer, train_bpe

CONTEXT = 12

# Begins to write a group, says so, and hangs with half of it written.
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from clipglot.cache.storage import ragged
from clipglot.cache.storage import token_arrays as tokens
ragged.CHUNK_BYTES = 64
def blocks():
    for i in range(9):
        if i == 5 and sys.argv[2] == "hang":
            print("half", flush=True)
            time.sleep(60)
        yield np.full(40, i), np.array([30, 10])
    print("whole", flush=True)
tokens.write_tokens(Path(sys.argv[1]), "uint16", blocks())
"""


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Cache:
    """A cache without tokens."""
    path = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr", ignore=shutil.ignore_patterns("tokens")))
    return Cache(path)


@pytest.fixture(scope="module")
def tokenizer(tiny_cache: Path) -> CaptionTokenizer:
    return train_bpe(Cache(tiny_cache).captions(), 300)


def rows_of(table: TokenTable) -> list[list[int]]:
    return [row.tolist() for row in table.take(np.arange(len(table)))]


def group_of(cache: Cache, tokenizer: CaptionTokenizer) -> Path:
    return cache.path / "tokens" / tokenizer.fingerprint(CONTEXT)


def no_tokenizing(*_: Any) -> Any:
    raise AssertionError("tokenized again")


@pytest.mark.parametrize(("workers", "chunk_bytes"), [(1, 64), (1, 2**24), pytest.param(2, 64, marks=pytest.mark.slow)])
def test_stored_tokens_equal_the_tokenizers_and_are_reused(
    workers: int,
    chunk_bytes: int,
    cache: Cache,
    tokenizer: CaptionTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(tokens, "MANY_CAPTIONS", 0)
    monkeypatch.setattr(tokens, "CAPTIONS_PER_BLOCK", 7)
    calls: list[Progress] = []
    table = open_tokens(cache, tokenizer, CONTEXT, tmp_path / "beside", workers=workers, on_progress=calls.append)
    expected = tokenizer.encode(cache.captions(), CONTEXT)
    assert rows_of(table) == expected
    assert [call.done for call in calls] == [*range(7, len(table), 7), len(table)]
    assert {(call.stage, call.total) for call in calls} == {("tokenize", len(table))}

    stored = zarr.open_group(cache.path, mode="r")[f"tokens/{tokenizer.fingerprint(CONTEXT)}"]
    assert [name for name, _ in zarr.open_group(cache.path / "tokens", mode="r").members()] == [stored.basename]
    ids, offsets = np.asarray(stored["ids"][:]), np.asarray(stored["offsets"][:])
    assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == expected

    monkeypatch.setattr(CaptionTokenizer, "encode", no_tokenizing)
    assert rows_of(open_tokens(cache, tokenizer, CONTEXT, tmp_path / "beside")) == expected
    assert not (tmp_path / "beside").exists()
    assert verify(cache) == []


def test_another_tokenizer_or_context_length_has_its_own_group(
    cache: Cache, tokenizer: CaptionTokenizer, tmp_path: Path
) -> None:
    for made, context_length in [(tokenizer, CONTEXT), (tokenizer, 5), (train_bpe(cache.captions(), 290), CONTEXT)]:
        table = open_tokens(cache, made, context_length, tmp_path)
        assert rows_of(table) == made.encode(cache.captions(), context_length)
    assert len(list((cache.path / "tokens").glob("*/zarr.json"))) == 3


def test_captions_are_gathered_in_any_order() -> None:
    rows = [[1, 7, 2], [], [1, 2], [1, 8, 8, 2], []]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    table = TokenTable(np.array([i for row in rows for i in row], np.uint16), offsets)
    for wanted in ([3, 0, 3, 1], [4], [], [2, 1, 0]):
        ids, lengths = table.gather(np.array(wanted, np.int64))
        assert ids.dtype == lengths.dtype == np.int64
        assert ids.tolist() == [i for row in wanted for i in rows[row]]
        assert lengths.tolist() == [len(rows[row]) for row in wanted]
        assert [row.tolist() for row in table.take(np.array(wanted, np.int64))] == [rows[row] for row in wanted]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_tokens_of_a_read_only_cache_are_stored_in_the_run_folder(
    code: int,
    tiny_cache: Path,
    tokenizer: CaptionTokenizer,
    cache: Cache,
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary_file = tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:
        if cache.path in Path(dir).parents:
            raise OSError(code, os.strerror(code))
        return temporary_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    run = make_run(cache.path, tmp_path / "run", val=cache.path, epochs=1)
    (group,) = (run / "tokens" / content_id(cache)).glob("*/zarr.json")  # training and validation share it
    assert not list((cache.path / "tokens").glob("*/zarr.json"))
    monkeypatch.setattr(tokens, "_encode", no_tokenizing)
    learned = CaptionTokenizer.load(run / "tokenizer")
    assert len(open_tokens(cache, learned, 24, run / "tokens" / content_id(cache))) == cache.info.num_captions
    assert group.parent.name == learned.fingerprint(24)


def test_a_full_disk_is_reported_and_leaves_no_files(
    cache: Cache, tokenizer: CaptionTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            CacheError, match=r"/tokens/[0-9a-f]+: cannot be written \(No space left on device\): free some space"
        ):
            open_tokens(cache, tokenizer, CONTEXT, tmp_path / "beside")
    assert not group_of(cache, tokenizer).exists()
    assert sweep_partial(cache.path) == 0
    assert len(open_tokens(cache, tokenizer, CONTEXT, tmp_path / "beside")) == cache.info.num_captions


def test_a_killed_process_gives_one_clear_error(
    cache: Cache, tokenizer: CaptionTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MANY_CAPTIONS", 0)
    monkeypatch.setattr(
        tokens, "worker_pool", lambda workers, module, *start: worker_pool(workers, module, os._exit, 1)
    )
    with pytest.raises(DistillError, match=r"a tokenizing process died, .*: run the same command again"):
        open_tokens(cache, tokenizer, CONTEXT, tmp_path, workers=2)
    assert not group_of(cache, tokenizer).exists()


def start_writer(group: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(group), mode], stdout=subprocess.PIPE, text=True)


def test_incomplete_tokens_of_a_killed_writer_are_ignored_and_removed(tmp_path: Path) -> None:
    group = tmp_path / "tokens" / "a1"
    with start_writer(group, "hang") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        assert list(group.parent.glob(".a1.*.partial/ids/c/0"))
        writer.send_signal(signal.SIGKILL)
    assert not group.exists()
    write_tokens(group, "uint16", [(np.arange(4), np.array([4]))])
    assert sorted(entry.name for entry in group.parent.iterdir()) == ["a1", "zarr.json"]


def test_a_second_writer_waits_and_uses_the_tokens_of_the_first(tmp_path: Path) -> None:
    group = tmp_path / "tokens" / "a1"
    with start_writer(group, "hang") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "half\n"
        with start_writer(group, "write") as second:
            time.sleep(0.5)
            assert second.poll() is None
            assert first.poll() is None
            first.send_signal(signal.SIGKILL)
            assert second.wait(60) == 0
    before = (group / "ids/zarr.json").stat().st_mtime_ns
    write_tokens(group, "uint16", iter(no_tokenizing, None))
    assert (group / "ids/zarr.json").stat().st_mtime_ns == before


def test_without_locks_a_second_writer_keeps_the_tokens_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    group = tmp_path / "tokens" / "a1"

    def overtaken() -> Any:
        write_tokens(group, "uint16", [(np.arange(4), np.array([4]))])
        yield np.arange(9), np.array([9])

    write_tokens(group, "uint16", overtaken())
    assert zarr.open_group(group, mode="r")["ids"].shape == (4,)
    assert sorted(entry.name for entry in group.parent.iterdir()) == ["a1", "zarr.json"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["ids/c/0", "offsets/c/0", "ids/zarr.json", "offsets/zarr.json", "zarr.json"])
@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        Path.unlink,
    ],
    ids=["flipped", "emptied", "cut", "deleted"],
)
def test_damaged_tokens_are_named_by_training_and_verify_and_the_remedy_works(
    file: str, damage: Callable[[Path], None], cache: Cache, tokenizer: CaptionTokenizer, tmp_path: Path
) -> None:
    expected = rows_of(open_tokens(cache, tokenizer, CONTEXT, tmp_path))
    group = group_of(cache, tokenizer)
    damage(group / file)
    exit_code, faults = verified(cache)
    if file.endswith("zarr.json") and exit_code == 0:  # a byte of it that decides nothing
        return
    assert (exit_code, len(faults)) == (1, 1)
    with pytest.raises(CacheError) as raised:
        open_tokens(cache, tokenizer, CONTEXT, tmp_path)
    for message in (str(raised.value), faults[0]):
        assert str(group if file.endswith("zarr.json") else group / file) in message
        assert message.endswith(f": delete {group}: training writes it again")
    shutil.rmtree(group)
    assert rows_of(open_tokens(cache, tokenizer, CONTEXT, tmp_path)) == expected
    assert verified(cache) == (0, [])


@pytest.mark.parametrize(
    ("lengths", "fault"),
    [([5] * 3, "holds 3 captions, expected"), (None, "not ascending to")],
    ids=["of other captions", "descending"],
)
def test_verify_finds_inconsistent_tokens(lengths: list[int] | None, fault: str, cache: Cache) -> None:
    lengths = lengths or [1, -1] * (cache.info.num_captions // 2) + [0] * (cache.info.num_captions % 2)
    group = cache.path / "tokens" / ("ab" * 32)
    write_tokens(group, "uint16", [(np.zeros(sum(lengths), np.int64), np.array(lengths))])
    (found,) = verified(cache)[1]
    assert f"{group}" in found
    assert fault in found
    assert found.endswith(f": delete {group}: training writes it again")


def verified(cache: Cache) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, ["verify", str(cache.path), "--json"])
    return result.exit_code, json.loads(result.stdout)["faults"]
