"""Speed of planning from tars: our header reader against tarfile, rows from headers against img2dataset's tables.

scripts/bench tars [--samples 10000] [--rounds 7]
"""

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from clipglot.cache.format import SourceInfo
from clipglot.cache.sources.kinds import open_source
from clipglot.cache.sources.tar_index import members

EXTENSIONS = ("jpg", "json", "txt")


def write(folder: Path, name: str, samples: int, format: int, prefix: str) -> Path:
    """Write a tar as img2dataset does, with dummy images of 3 kB, and its table."""
    path, records = folder / f"{name}.tar", []
    with tarfile.open(path, "w", format=format) as tar:
        for i in range(samples):
            key = f"{prefix}{i:09}"
            record = {"key": key, "status": "success", "caption": f"caption {i}", "url": f"https://example.org/{i}"}
            records.append(record)
            contents = (b"x" * 3000, json.dumps(record).encode(), record["caption"].encode())
            for extension, data in zip(EXTENSIONS, contents, strict=True):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist(records), path.with_suffix(".parquet"))
    return path


def ours(path: Path) -> int:
    """Count the members with our header reader."""
    with open(path, "rb") as file:
        return sum(1 for _ in members(file.fileno(), str(path)))


def theirs(path: Path) -> int:
    """Count the members with tarfile, dropping the list of members that it would keep."""
    num = 0
    with tarfile.open(path, "r:") as tar:
        while tar.next() is not None:
            num += 1
            tar.members = []
    return num


def rows(path: Path) -> int:
    """Count the rows as planning reads them."""
    info = SourceInfo(path=str(path), sha256="", image_root="", image_field="", text_fields=[])
    return sum(1 for _ in open_source(info).rows())


def main() -> None:
    """Measure warm, in alternation; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print("| what | µs, median | min .. max | tarfile's / ours |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        plain = write(Path(folder), "plain", args.samples, tarfile.USTAR_FORMAT, "")
        long = write(Path(folder), "long", args.samples, tarfile.PAX_FORMAT, "d" * 120 + "/")
        for name, path in (("ordinary", plain), ("with a PAX header", long)):
            spent = _measure([ours, theirs], path, args.rounds)
            ratio = statistics.median(spent[theirs]) / statistics.median(spent[ours])
            _print(f"a header, {name}", spent[ours], f"{ratio:.1f}")
        _print("a sample of 3 members, planned from its table", _measure([rows], plain, args.rounds)[rows], "")
        plain.with_suffix(".parquet").unlink()
        _print("the same, planned from headers and texts", _measure([rows], plain, args.rounds)[rows], "")


def _measure(
    functions: list[Callable[[Path], int]], path: Path, rounds: int
) -> dict[Callable[[Path], int], list[float]]:
    """Microseconds per counted item, by function and round."""
    spent: dict[Callable[[Path], int], list[float]] = {function: [] for function in functions}
    for number in range(rounds + 1):
        for function in functions:
            started = time.perf_counter()
            count = function(path)
            if number:  # the first is a warm-up
                spent[function].append(1e6 * (time.perf_counter() - started) / count)
    return spent


def _print(name: str, spent: list[float], ratio: str) -> None:
    print(f"| {name} | {statistics.median(spent):.1f} | {min(spent):.1f} .. {max(spent):.1f} | {ratio} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
