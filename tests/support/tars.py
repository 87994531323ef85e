"""Tars in the layout of webdataset and img2dataset."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar with members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members_of(key: str, image: bytes, captions: Sequence[str]) -> Iterable[tuple[str, bytes]]:
    """The members of a sample whose JSON has all captions."""
    yield f"{key}.png", image
    yield f"{key}.json", json.dumps({"caption": list(captions), "url": f"https://example.org/{key}"}).encode()


def write_shards(
    folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]], per_shard: int = 4
) -> list[Path]:
    """Write a folder of tars with captions in JSON; returns the tars."""
    shards = []
    for number, start in enumerate(range(0, max(len(images), 1), per_shard)):
        some = range(start, min(start + per_shard, len(images)))
        members = [member for i in some for member in members_of(f"{i:09}", images[i], captions[i])]
        shards.append(write_tar(folder / f"{number:05}.tar", members))
    return shards


def write_img2dataset(
    folder: Path,
    images: Sequence[bytes],
    captions: Sequence[str | None],
    per_shard: int = 4,
    **columns: Sequence[Any],
) -> list[Path]:
    """Write a folder as img2dataset leaves it; every second download has failed. Returns the tars."""
    shards = []
    for number, start in enumerate(range(0, len(images), per_shard)):
        members: list[tuple[str, bytes]] = []
        records: list[Mapping[str, Any]] = []
        for place in range(per_shard * 2):
            i, key = start + place // 2, f"{number:05}{place:04}"
            if i >= min(start + per_shard, len(images)):
                break
            record: dict[str, Any] = {name: values[i] for name, values in columns.items()}
            record |= {"url": f"https://example.org/{key}", "caption": captions[i], "key": key}
            if place % 2:
                records.append(record | {"status": "failed_to_download", "error_message": "404", "width": None})
                continue
            record |= {"status": "success", "error_message": None, "width": 48}
            records.append(record)
            members += [
                (f"{key}.json", json.dumps(record).encode()),
                (f"{key}.png", images[i]),
                (f"{key}.txt", (captions[i] or "").encode("utf-8", "surrogatepass")),
            ]
        shards.append(write_tar(folder / f"{number:05}.tar", members))
        pq.write_table(pa.Table.from_pylist(records), folder / f"{number:05}.parquet")
        (folder / f"{number:05}_stats.json").write_text("{}")
    return shards
