"""Tar headers are read as by tarfile; forged, truncated and enormous ones are refused by place and name."""

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.sources.tar_index import BLOCK, MAX_EXTENDED_BYTES, DamagedTarError, Member, members
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fresh_files import write_fresh
from support.tars import write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
END = bytes(2 * BLOCK)


def members_of(path: Path) -> list[Member]:
    with open(path, "rb") as file:
        return list(members(file.fileno(), str(path)))


def by_tarfile(path: Path) -> list[Member]:
    with tarfile.open(path, "r:", ignore_zeros=True, errors="surrogateescape") as tar:
        return [
            Member(info.name, info.offset_data, info.size if info.isreg() else 0, info.isreg() and not info.issparse())
            for info in tar
            if not info.isdir()
        ]


def header(name: str = "a.jpg", size: int = 0, type: bytes = b"0", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(records: bytes) -> bytes:
    return header("pax", len(records), b"x") + padded(records)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300).map(
    lambda name: name.strip("/") or "a"
)


@settings(deadline=None, max_examples=150)
@given(
    contents=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    format=st.sampled_from(FORMATS[1:]),  # ustar cannot hold every name
)
def test_any_name_and_size_is_read_as_tarfile_reads_it(
    contents: list[tuple[str, bytes]], format: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_tar(tmp_path_factory.getbasetemp() / "any.tar", contents, format)
    assert members_of(path) == by_tarfile(path)
    with open(path, "rb") as file:
        for (name, data), member in zip(contents, members_of(path), strict=True):
            assert (member.name, member.is_file) == (name, True)
            assert os.pread(file.fileno(), member.size, member.start) == data


def test_names_of_other_encodings_keep_their_bytes(tmp_path: Path) -> None:
    for i, format in enumerate(FORMATS):
        path = tmp_path / f"{i}.tar"
        with tarfile.open(path, "w", format=format, encoding="latin-1") as tar:
            for name in ("café.jpg", "é" * 90 + ".jpg"):
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
        assert members_of(path) == by_tarfile(path)
    assert "café.jpg" in [member.name for member in members_of(tmp_path / "2.tar")]
    assert "caf\udce9.jpg" in [member.name for member in members_of(tmp_path / "0.tar")]


@pytest.mark.parametrize("format", ["v7", "ustar", "gnu", "oldgnu", "posix"])
def test_tars_of_gnu_tar(format: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "0001.jpg").write_bytes(b"x" * 700)
    (folder / "0001.txt").write_bytes("кот".encode())
    (folder / "empty.jpg").touch()
    (folder / "hard.jpg").hardlink_to(folder / "0001.jpg")
    (folder / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.jpg")
    if format != "v7":
        (folder / ("n" * 95 + ".jpg")).write_bytes(b"y")
    with open(folder / "holes.jpg", "wb") as file:
        for place in range(20):  # more holes than one header has room for
            file.seek(place * 2**17)
            file.write(b"z")
    path = tmp_path / "gnu.tar"
    sparse = ["--sparse"] if format in ("gnu", "oldgnu", "posix") else []
    exclude = ["--exclude=pipe.jpg"] if format == "v7" else []
    command = ["tar", "-cf", path, f"--format={format}", "--sort=name", *sparse, *exclude, "-C", folder, "."]
    subprocess.run(command, check=True)
    ours, theirs = members_of(path), by_tarfile(path)
    assert [member.name for member in ours] == [member.name for member in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.is_file == other.is_file, one
        if one.is_file:
            assert one == other
    assert {member.name for member in ours if not member.is_file} >= {"./hard.jpg", "./link.jpg"}
    assert ("./holes.jpg" in {member.name for member in ours if member.is_file}) == (not sparse)


def test_joined_tars_are_all_read(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "1.tar", [("a.jpg", b"a")]).read_bytes()
    two = write_tar(tmp_path / "2.tar", [("b.jpg", b"b" * 600)]).read_bytes()
    path = write_fresh(tmp_path / "both.tar", one + bytes(2**21) + two)
    assert [(member.name, member.size) for member in members_of(path)] == [("a.jpg", 1), ("b.jpg", 600)]
    assert members_of(path) == by_tarfile(path)
    assert len(members_of(write_fresh(tmp_path / "junk.tar", one + b"no header" * 200))) == 1


def huge(size: int) -> bytes:
    """A header with the size in base 256, as for files of more than 8 GB."""
    return header(size=size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"byte 0: ends at byte 0 without the mark of a tar's end"),
        (header(size=3) + padded(b"abc"), r"byte 1,024: ends at byte 1,024 without the mark .*`head -c 1024 /dev/zero"),
        (header(size=3) + padded(b"abc") + header()[:100], r"byte 1,024: ends at byte 1,124"),
        (header(size=5000) + b"x" * 1000, r"byte 0: ends at byte 1,512, within the 5,000 bytes of 'a.jpg'"),
        (huge(2**70) + END, r"within the 1,180,591,620,717,411,303,424 bytes of 'a.jpg'"),
        (header(size=-5) + END, r"within the -5 bytes of 'a.jpg'"),
        (header("x", 2**33, b"x") + END, r"an extended header of 8,589,934,592 bytes, at most 1,048,576"),
        (header("x", 2**33, b"g") + END, r"an extended header of 8,589,934,592 bytes"),
        (header("x", MAX_EXTENDED_BYTES + 1, b"L") + END, r"an extended header of 1,048,577 bytes"),
        (header("x", -1, b"L") + END, r"an extended header of -1 bytes"),
        (header("x", 800, b"x") + b"12 path=a.j", r"ends at byte 523, within an extended header"),
        (header("x", 3, b"L") + padded(b"abc"), r"ends at byte 1,024, after an extended header"),
        ((header("x", 3, b"L") + padded(b"abc")) * 9 + header() + END, r"more than 8 extended headers"),
        (pax(b"no records") + header() + END, r"a damaged PAX header"),
        (pax(b"999 path=a.jpg\n") + header() + END, r"a damaged PAX header"),
        (pax(b"0 path=a.jpg\n") + header() + END, r"a damaged PAX header"),
        (pax(b"11 size=-5\n") + header() + END, r"size is not a number"),
        (pax(b"15 size=999999\n") + header() + END, r"within the 999,999 bytes of 'a.jpg'"),
        (b"\x1f\x8b\x08" + bytes(2000), r"byte 0: compressed with gzip, .*: unpack the tar itself"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), r"compressed with zstd"),
        (b"<html>404</html>" * 100, r"byte 0: no header of a tar there: fetch or write it again"),
        (header(size=3) + padded(b"abc") + b"x" * 600 + END, r"byte 1,024: no header of a tar there"),
    ],
)
def test_forged_and_truncated_tars_are_refused_by_place(content: bytes, message: str, tmp_path: Path) -> None:
    path = write_fresh(tmp_path / "bad.tar", content)
    with pytest.raises(DamagedTarError, match=rf"bad\.tar, {message}" if message.startswith("byte") else message):
        members_of(path)


def test_members_before_the_damage_are_yielded(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [(f"{i}.jpg", b"x" * 1000) for i in range(4)])
    path = write_fresh(tmp_path / "cut.tar", whole.read_bytes()[: 3 * 1536 + 700])
    sound: list[Member] = []
    with open(path, "rb") as file, pytest.raises(DamagedTarError, match=r"within the 1,000 bytes of '3.jpg'"):
        sound.extend(members(file.fileno(), str(path)))
    with open(path, "rb") as file:
        scan = members(file.fileno(), str(path))
        assert [next(scan) for _ in range(3)] == members_of(whole)[:3]


@pytest.fixture(scope="module")
def real_tars(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    contents = [(f"{'d' * 120 * (i % 3 == 2)}/{i}.jpg", bytes([i]) * (i * 300)) for i in range(6)]
    folder = tmp_path_factory.mktemp("real")
    return [write_tar(folder / f"{format}.tar", contents, format).read_bytes()[:16384] for format in FORMATS[1:]]


def mutate(tar: bytes, rng: random.Random) -> bytes:
    """A tar with up to eight places changed, most of them in headers, and often an end cut off."""
    mutated = bytearray(tar)
    for _ in range(rng.randint(1, 8)):
        block = rng.randrange(len(mutated) // BLOCK) * BLOCK  # headers of small members follow each other closely
        place = block + rng.choice([0, 100, 124, 125, 135, 148, 154, 156, 257, 345, 482])
        new = rng.choice([rng.randbytes(rng.randint(0, 12)), b"%011o\0" % rng.randrange(8**11), b"\0" * 12])
        mutated[place : place + rng.choice([len(new), rng.randint(0, 12)])] = new
        if rng.random() < 0.5:  # with a checksum that fits, it goes further
            checked = bytearray(mutated[block : block + BLOCK])
            checked[148:156] = b" " * 8
            mutated[block + 148 : block + 156] = b"%06o\0 " % sum(checked)
    return bytes(mutated[: rng.randint(0, len(mutated)) if rng.random() < 0.5 else len(mutated)])


def test_a_mutated_tar_is_read_within_its_bounds_or_refused(real_tars: list[bytes], tmp_path: Path) -> None:
    rng, outcomes = random.Random(0), set()
    for _ in range(2000):
        path = write_fresh(tmp_path / "mutated.tar", mutate(rng.choice(real_tars), rng))
        size = path.stat().st_size
        try:
            for member in members_of(path):
                assert 0 <= member.start <= member.start + member.size <= size
            outcomes.add("read")
        except CacheError as error:
            assert str(error).startswith(f"{path}, byte ")  # noqa: PT017
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
