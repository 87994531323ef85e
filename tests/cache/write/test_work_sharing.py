"""Work sharing: no chunk is left out, none taken twice while all workers live, and clocks of others do not matter."""

import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.storage.open import store_at
from clipglot.cache.write import work_sharing
from clipglot.cache.write.work_sharing import (
    ALONE,
    Heartbeat,
    Liveness,
    Worker,
    WorkerLease,
    next_chunk,
    read_signs,
    sharing,
)
from clipglot.distill.errors import DistillError
from clipglot.jobs.settings.cache import CacheSettings
from hypothesis import given
from hypothesis import strategies as st


@given(missing=st.sets(st.integers(0, 200)), num=st.integers(1, 9), data=st.data())
def test_some_worker_takes_each_chunk_and_no_two_take_the_same(
    missing: set[int], num: int, data: st.DataObject
) -> None:
    """In any order of turns."""
    left, at = set(missing), dict[int, int]()
    taken: list[int] = []
    while left:
        index = data.draw(st.integers(0, num - 1))
        left.discard(at.pop(index, -1))
        chunk = next_chunk(left, Worker(index, num), at.values())
        if chunk is not None:
            own = [c for c in left - set(at.values()) if c % num == index]
            assert chunk == (min(own) if own else chunk)
            at[index] = chunk
            taken.append(chunk)
    assert sorted(taken) == sorted(missing)


@given(
    num_chunks=st.integers(1, 40),
    num=st.integers(1, 6),
    killed=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=8),
    data=st.data(),
)
def test_everything_is_finished_whoever_dies_as_long_as_one_lives(
    num_chunks: int, num: int, killed: list[tuple[int, int]], data: st.DataObject
) -> None:
    """The chunks of dead workers are free again, once the others count them as dead."""
    survivor = data.draw(st.integers(0, num - 1))
    missing, at, living = set(range(num_chunks)), dict[int, int](), set(range(num))
    for turn in range(10 * num_chunks * num + 100):
        for _, index in (k for k in killed if k[0] == turn and k[1] != survivor):
            living.discard(index)
            at.pop(index, None)
        index = data.draw(st.sampled_from(sorted(living))) if turn % 2 else survivor
        missing.discard(at.pop(index, -1))
        chunk = next_chunk(missing, Worker(index, num), at.values())
        if chunk is not None:
            at[index] = chunk
        if not missing:
            break
    for index in living:
        missing.discard(at.pop(index, -1))
    assert not missing


@given(before=st.integers(1, 8), after=st.integers(1, 8), done=st.sets(st.integers(0, 49)))
def test_another_number_of_workers_shares_what_is_left(before: int, after: int, done: set[int]) -> None:
    left = set(range(50)) - done
    shares = [{chunk for chunk in left if chunk % after == i} for i in range(after)]
    firsts = {next_chunk(left, Worker(i, after)) for i in range(after)} - {None}
    assert firsts <= left
    assert all(min(share) in firsts for share in shares if share)


def test_a_worker_takes_over_from_the_end_of_its_neighbours_list() -> None:
    assert next_chunk({1, 5, 9, 2, 6}, Worker(0, 4)) == 9
    assert next_chunk({1, 5, 9, 2, 6}, Worker(0, 4), busy={9}) == 5
    assert next_chunk({2, 6}, Worker(3, 4), busy={6}) == 2
    assert next_chunk({2}, Worker(3, 4), busy={2}) is None


def test_a_worker_is_dead_after_a_minute_without_a_heartbeat_by_the_observers_clock() -> None:
    watch = Liveness(silent_s=60)
    watch.look({"a": 1, "b": 1}, now=1000)
    watch.look({"a": 2, "b": 1}, now=1059)
    assert watch.living(now=1059) == {"a", "b"}
    assert (watch.was_seen_to_change("a"), watch.was_seen_to_change("b")) == (True, False)
    assert watch.living(now=1061) == {"a"}
    watch.look({"a": 2, "b": 0}, now=1062)  # started again, so its counter did too
    assert watch.living(now=1062) == {"a", "b"}
    watch.look({"b": 0}, now=1063)
    assert watch.living(now=1063) == {"b"}


def heartbeat_of_another(index: int, **fields: Any) -> bytes:
    return json.dumps(asdict(Heartbeat(worker=index, of=2, host="far", pid=7, stage="embed")) | fields).encode()


@pytest.mark.parametrize("modified", [0, 2**33])
def test_heartbeats_dated_years_away_count_as_fresh_ones(
    modified: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker has chunk 1, and the clock of its machine is at 1970, or at 2242."""
    store, now = store_at(tmp_path, read_only=False), [5e6]
    monkeypatch.setattr(work_sharing, "monotonic", lambda: now[0])
    monkeypatch.setattr(work_sharing, "BEGUN", 9)
    left: dict[int, None] = {0: None, 1: None, 3: None}

    def asked(counter: int) -> list[int]:
        store.write("workers/1.json", heartbeat_of_another(1, chunks=[1], counter=counter))
        os.utime(tmp_path / "workers/1.json", (modified, modified))
        return [chunk for chunk, _ in share.chunks(lambda: left)]

    with sharing(store, Worker(0, 2), "embed") as share:
        assert asked(counter=1) == [0, 3]
        for counter in (2, 3):
            share._sign.chunks.clear()
            now[0] += 59
            assert asked(counter) == [0, 3]
        share._sign.chunks.clear()
        now[0] += 59
        assert asked(3) == [0, 3]
        share._sign.chunks.clear()
        now[0] += 2
        assert asked(3) == [0, 3, 1]
    assert store.names("workers") == ["1.json"]


def test_chunks_of_others_are_taken_over_when_its_own_are_nearly_stored(tmp_path: Path) -> None:
    left = dict.fromkeys(range(6))
    with sharing(store_at(tmp_path, read_only=False), Worker(0, 2), "embed") as share:
        assert [chunk for chunk, _ in share.chunks(lambda: left)] == [0, 2, 4]  # read ahead of the tower
        assert [chunk for chunk, _ in share.chunks(lambda: left)] == []
        for stored in (0, 2):
            del left[stored]
        assert [chunk for chunk, _ in share.chunks(lambda: left)] == [5]
        for stored in (4, 5, 1):  # the other has come meanwhile
            del left[stored]
        assert share.has_more(lambda: left)
        assert [chunk for chunk, _ in share.chunks(lambda: left)] == [3]


def test_a_heartbeat_counts_each_chunk_and_is_deleted_when_the_worker_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_sharing, "BEGUN", 9)
    store, left = store_at(tmp_path, read_only=False), {0: None, 2: None, 1: None}
    with sharing(store, Worker(2, 3), "embed") as share:
        share.note(24, 2.0, "decoding")
        counters = []
        for chunk, _ in share.chunks(lambda: left):
            (sign,) = read_signs(store).values()
            counters.append(sign.counter)
            assert chunk in sign.chunks
        for chunk in (2, 0):
            del left[chunk]
        del left[1]
        assert not share.has_more(lambda: left)
        share.beat()
        (sign,) = read_signs(store).values()
    assert (len(counters), sorted(set(counters))) == (3, counters)
    assert (sign.chunks, sign.chunks_done, sign.pictures_done, sign.pictures_per_s) == ([], 3, 24, 12.0)
    assert (sign.bottleneck, sign.pid) == ("decoding", os.getpid())
    assert store.names("workers") == []


def test_a_lone_worker_reads_no_heartbeats(tmp_path: Path) -> None:
    store = store_at(tmp_path, read_only=False)
    store.write("workers/1.json", heartbeat_of_another(1, chunks=[0]))
    with sharing(store, ALONE, "embed") as share:
        assert [chunk for chunk, _ in share.chunks(lambda: {0: None, 1: None})] == [0, 1]


def test_a_damaged_heartbeat_is_named(tmp_path: Path) -> None:
    store = store_at(tmp_path, read_only=False)
    for content in (b"{", b'{"unknown": 1}'):
        store.write("workers/3.json", content)
        with pytest.raises(CacheError, match=r"workers/3\.json is no sign of a worker .*: delete it"):
            read_signs(store)


def test_of_two_processes_with_one_shard_the_later_continues(tmp_path: Path) -> None:
    store = store_at(tmp_path, read_only=False)
    store.write("workers/1.json", heartbeat_of_another(1, counter=5))  # of one that was killed: nobody minds it

    def begin_before(later: WorkerLease) -> None:
        with sharing(store, Worker(1, 2), "embed") as earlier:
            earlier.beat()
            earlier.beat()
            later.beat()
            earlier.beat()

    with sharing(store, Worker(1, 2), "embed") as later:
        with pytest.raises(CacheError, match=rf"\({os.getpid()}\) has begun as worker 1 of 2, too, .* its own --shard"):
            begin_before(later)
        assert list(read_signs(store)) == ["1.json"]
        with sharing(store, Worker(1, 3), "embed") as of_another_number:
            of_another_number.beat()
            later.beat()
            of_another_number.beat()
        later.beat()
    assert store.names("workers") == []


def test_a_worker_that_was_replaced_ends_within_its_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_sharing, "BEAT_S", 0.01)
    store = store_at(tmp_path, read_only=False)

    def work() -> None:
        with sharing(store, Worker(1, 2), "embed") as share:
            share.beat()
            while True:  # each time, because its own heartbeat may overwrite the other's
                store.write("workers/1.json", heartbeat_of_another(1, counter=1))
                time.sleep(0.01)
                share.note(8, 1.0, "decoding")

    with pytest.raises(CacheError, match=r"far \(7\) has begun as worker 1 of 2, too"):
        work()
    assert list(read_signs(store)) == ["1.json"]


def test_a_heartbeat_that_cannot_be_written_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_sharing, "BEAT_S", 0.01)
    store, written = store_at(tmp_path, read_only=False), threading.Event()

    def refuse(key: str, data: bytes) -> None:
        written.set()
        raise CacheError("no space")

    def work() -> None:
        with sharing(store, ALONE, "embed") as share:
            monkeypatch.setattr(store, "write", refuse)
            assert written.wait(20)
            while True:
                share.has_more(lambda: {0: None})

    with pytest.raises(CacheError, match="no space"):
        work()


@pytest.mark.parametrize(
    ("flag", "environment", "expected"),
    [
        (None, {}, Worker(0, 1)),
        ("1/4", {}, Worker(1, 4)),
        (None, {"RANK": "2", "WORLD_SIZE": "8"}, Worker(2, 8)),
        (None, {"RANK": "3"}, Worker(0, 1)),
        (None, {"RANK": "x", "WORLD_SIZE": "1"}, Worker(0, 1)),
        ("1/4", {"RANK": "1", "WORLD_SIZE": "2"}, Worker(3, 8)),
    ],
)
def test_the_worker_of_a_shard_and_a_rank(
    flag: str | None, environment: dict[str, str], expected: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert CacheSettings(source=tmp_path, output=tmp_path, model="m", shard=flag).worker == expected


@pytest.mark.parametrize(("rank", "world"), [("3", "2"), ("0", "0"), ("x", "2"), ("0", "two"), ("-1", "2")])
def test_an_impossible_rank_is_refused(rank: str, world: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(
        DistillError, match=f"RANK={rank} and WORLD_SIZE={world} in the environment, expected RANK below"
    ):
        CacheSettings(source=tmp_path, output=tmp_path, model="m")


@pytest.mark.parametrize("flag", ["4/4", "1", "a/b", "-1/4", "1/0", ""])
def test_a_malformed_shard_is_refused(flag: str, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=rf"--shard {flag}: expected I/N with I from 0 to N - 1"):
        CacheSettings(source=tmp_path, output=tmp_path, model="m", shard=flag)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("clipglot.jobs.settings.cache.num_usable_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    given = {"source": tmp_path, "output": tmp_path, "model": "m"}
    assert CacheSettings(**given).resolved_num_workers == 3
    assert CacheSettings(**given, num_workers=7).resolved_num_workers == 7
