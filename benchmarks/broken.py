"""A pass over images of which every fiftieth is broken: which cost their row, why, and what memory does.

    scripts/bench broken --data FOLDER --model timm/… --pretrained FILE [--pictures 10000]

FOLDER holds train.jsonl and images/. Images beyond its number are crops of them, so that no two are alike. Runs the
real `clipglot cache`, and looks at its processes in /proc (Linux) every half second. Exits with 1 if anything is not as
expected.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

EVERY = 50
STEADY = (0.25, 0.9)  # of the time: before, processes start and fill their pools; after, they end


def flipped_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes(255 - byte for byte in content[:16]) + content[16:])


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_out(path: Path) -> None:
    outside = path.parents[2] / "outside.jpg"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def png_header(path: Path, width: int, height: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


def bomb(path: Path) -> None:
    """60 kB that are 400 million pixels of one colour, a whole and valid PNG."""
    Image.new("1", (20_000, 20_000)).save(path, "PNG", optimize=True)


def garbled_cmyk(path: Path) -> None:
    """A CMYK JPEG whose second half is lost."""
    Image.open(path).convert("CMYK").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in the middle": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged"),
    "first 16 bytes flipped": (flipped_header, "not a picture"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "not a picture"),
    "a text": (lambda path: path.write_text("<html>404 Not Found</html>"), "not a picture"),
    "empty": (lambda path: path.write_bytes(b""), "not a picture"),
    "a folder": (folder, "unreadable"),
    "missing": (gone, "missing"),
    "a link that leads out of the root": (link_out, "outside root"),
    "a link to itself": (loop, "missing"),
    "a FIFO that nobody writes to": (fifo, "unreadable"),
    "a header of 3.6 billion pixels": (lambda path: png_header(path, 60_000, 60_000), "too large"),
    "400 million pixels in 60 kB": (bomb, "too large"),
    "CMYK, half of it lost": (garbled_cmyk, "damaged"),
    "1 by 100,000 pixels": (lambda path: Image.new("RGB", (1, 100_000)).save(path, "PNG"), "too large"),
}


def main() -> None:
    """Draw, break, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl and images/")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        broken = lay_out(given.data, Path(name) / "root", given.images, given.text_field)
        command = [sys.executable, "-m", "clipglot", "cache", f"{name}/root/pairs.jsonl", "-o", f"{name}/c.zarr"]
        command += ["--model", given.model, "--text-field", given.text_field, "--workers", str(given.workers)]
        command += ["--pretrained", given.pretrained] if given.pretrained else []
        started = time.monotonic()
        exit_code, resident = watch(command)
        wall_s = time.monotonic() - started
        inspect = [sys.executable, "-m", "clipglot", "inspect", f"{name}/c.zarr", "--failures", "-1", "--json"]
        found = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)
    said = {failure["key"]: failure["status"] for failure in found["failures"]}
    right = {key: BREAK[how][1] == said.get(key) for key, how in broken.items()}
    print("| broken how | images | expected | said |")
    print("|---|--:|---|---|")
    for how, (_, expected) in BREAK.items():
        keys = [key for key in broken if broken[key] == how]
        reasons = Counter(said.get(key, "embedded") for key in keys)
        print(f"| {how} | {len(keys)} | {expected} | {', '.join(f'{n} {reason}' for reason, n in reasons.items())} |")
    num_good = given.images - len(broken)
    embedded = found["status"].get("embedded", 0)
    print(f"\n{embedded:,} of {num_good:,} whole images embedded, {len(said.keys() - broken.keys())} of them refused;")
    print(
        f"{sum(right.values())} of {len(broken)} broken ones have the expected reason; "
        f"exit code {exit_code}, {wall_s:.0f} s."
    )
    ok = exit_code == 0 and embedded == num_good and all(right.values()) and said.keys() == broken.keys()
    print_memory(resident)
    sys.exit(0 if ok else 1)


def lay_out(data: Path, root: Path, num: int, text_field: str) -> dict[str, str]:
    """Make the images and their manifest, and break every fiftieth; returns how, by key."""
    (root / "images").mkdir(parents=True)
    rows = [json.loads(line) for line in (data / "train.jsonl").open(encoding="utf-8")]
    lines, broken = [], {}
    for i in range(num):
        row, key = rows[i % len(rows)], f"images/{i:06}.jpg"
        source = data / row["image"]
        if i < len(rows):
            (root / key).write_bytes(source.read_bytes())
        else:  # a crop, another in each round
            image, cut = Image.open(source), 8 * (i // len(rows))
            image.crop((cut, cut, image.width, image.height)).save(root / key, "JPEG", quality=90)
        if i % EVERY == EVERY - 1:
            broken[key] = list(BREAK)[i // EVERY % len(BREAK)]
            BREAK[broken[key]][0](root / key)
        lines.append(json.dumps({"image": key, text_field: row[text_field]}, ensure_ascii=False))
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return broken


def watch(command: list[str]) -> tuple[int, dict[str, list[tuple[float, float]]]]:
    """Run a command; returns its exit code and, for it and all its children, (second, MB resident) over time."""
    resident: dict[str, list[tuple[float, float]]] = {"parent": [], "others": []}
    started = time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None:
        tree = descendants(process.pid)
        at = time.monotonic() - started
        resident["parent"].append((at, unshared_mb(process.pid)))
        resident["others"].append((at, sum(unshared_mb(pid) for pid in tree)))
        time.sleep(0.5)
    return process.returncode, resident


def descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
    found, last = [], [pid]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found


def unshared_mb(pid: int) -> float:
    """Anonymous memory; what is shared (libraries, decoded images, the page cache) would count in each process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def print_memory(resident: dict[str, list[tuple[float, float]]]) -> None:
    print("\n| memory of its own | samples | median | highest ever | slope |")
    print("|---|--:|--:|--:|--:|")
    for who, samples in resident.items():
        at, held = np.array(samples).T
        steady = (at >= STEADY[0] * at[-1]) & (at <= STEADY[1] * at[-1])
        slope = np.polyfit(at[steady] / 60, held[steady], 1)[0]
        print(
            f"| {who} | {steady.sum()} | {np.median(held[steady]):.0f} MB | {held.max():.0f} MB | {slope:+.1f} MB/min |"
        )


if __name__ == "__main__":
    main()
