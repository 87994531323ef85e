"""Caching pass over 10,000 images, every fiftieth broken: reasons of the failed rows, and memory over time.

    scripts/bench broken --data FOLDER --model timm/… --pretrained FILE [--pictures 10000]

FOLDER holds train.jsonl and images/. Where it has fewer images, crops of them fill up the number, so that no two are
alike. Runs the real `clipglot cache` and samples the memory of its processes from /proc (Linux) every half second.
Exits with 1 if any row differs from what is expected.
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
STEADY = (0.25, 0.9)  # fractions of the run: before, processes start and fill their pools; after, they end


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
    """A valid PNG of 60 kB that decodes to 400 million pixels of one colour."""
    Image.new("1", (20_000, 20_000)).save(path, "PNG", optimize=True)


def garbled_cmyk(path: Path) -> None:
    """A CMYK JPEG without its second half."""
    Image.open(path).convert("CMYK").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def endless(path: Path) -> None:
    """A JPEG without its end marker, as some cameras and servers leave it: its pixels are whole."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\xff\xd9")])


def many_scans(path: Path) -> None:
    """A progressive JPEG of 4 MB that takes minutes to decode: its first scan comes 900 times again."""
    Image.open(path).resize((1200, 1200)).quantize(2).convert("L").save(path, "JPEG", progressive=True, quality=5)
    content = path.read_bytes()
    start = content.index(b"\xff\xda")
    end = content.index(b"\xff\xda", start + 2)
    path.write_bytes(content[:end] + content[start:end] * 900 + content[end:])


def huge_text(path: Path) -> None:
    """A PNG beside a text that inflates to 64 MiB."""
    Image.open(path).save(path, "PNG", compress_level=1)
    content, body = path.read_bytes(), b"zTXtparameters\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content[:33] + chunk + content[33:])


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in the middle": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged"),
    "first 16 bytes flipped": (flipped_header, "not a picture"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "not a picture"),
    "a text": (lambda path: path.write_text("<html>404 Not Found</html>"), "not a picture"),
    "empty": (lambda path: path.write_bytes(b""), "not a picture"),
    "a folder": (folder, "unreadable"),
    "missing": (gone, "missing"),
    "a link to outside the root": (link_out, "outside root"),
    "a link to itself": (loop, "missing"),
    "a FIFO without a writer": (fifo, "unreadable"),
    "a header of 3.6 billion pixels": (lambda path: png_header(path, 60_000, 60_000), "too large"),
    "400 million pixels in 60 kB": (bomb, "too large"),
    "CMYK, second half missing": (garbled_cmyk, "damaged"),
    "a JPEG without its end": (endless, "embedded"),
    "a PNG beside 64 MiB of text": (huge_text, "embedded"),
    "900 scans": (many_scans, "too slow"),
    "floats": (lambda path: Image.open(path).convert("F").save(path, "TIFF"), "unsupported"),
    "1 by 100,000 pixels": (lambda path: Image.new("RGB", (1, 100_000)).save(path, "PNG"), "too large"),
}


def main() -> None:
    """Write the images, break some, cache them, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl and images/")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--pictures", dest="images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        broken = write_images(args.data, Path(name) / "root", args.images, args.text_field)
        command = [sys.executable, "-m", "clipglot", "cache", f"{name}/root/pairs.jsonl", "-o", f"{name}/c.zarr"]
        command += ["--model", args.model, "--text-field", args.text_field, "--num-workers", str(args.workers)]
        command += ["--pretrained", args.pretrained] if args.pretrained else []
        started = time.monotonic()
        exit_code, memory = run_and_sample_memory(command)
        wall_s = time.monotonic() - started
        inspect = [sys.executable, "-m", "clipglot", "inspect", f"{name}/c.zarr", "--failures", "-1", "--json"]
        contents = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)
    reasons = {failure["key"]: failure["status"] for failure in contents["failures"]}
    correct = {key: BREAK[damage][1] == reasons.get(key, "embedded") for key, damage in broken.items()}
    print("| damage | images | expected | reported |")
    print("|---|--:|---|---|")
    for damage, (_, expected) in BREAK.items():
        keys = [key for key in broken if broken[key] == damage]
        counts = Counter(reasons.get(key, "embedded") for key in keys)
        reported = ", ".join(f"{num} {reason}" for reason, num in counts.items())
        print(f"| {damage} | {len(keys)} | {expected} | {reported} |")
    refused = {key for key, damage in broken.items() if BREAK[damage][1] != "embedded"}
    num_good = args.images - len(refused)
    embedded = contents["status"].get("embedded", 0)
    print(f"\n{embedded:,} of {num_good:,} good images embedded, {len(reasons.keys() - refused)} of them refused;")
    print(
        f"{sum(correct.values())} of {len(broken)} broken images have the expected reason; "
        f"exit code {exit_code}, {wall_s:.0f} s."
    )
    ok = exit_code == 0 and embedded == num_good and all(correct.values()) and reasons.keys() == refused
    print_memory(memory)
    sys.exit(0 if ok else 1)


def write_images(data: Path, root: Path, num: int, text_field: str) -> dict[str, str]:
    """Write images and their manifest, and break every fiftieth; returns the damage by key."""
    (root / "images").mkdir(parents=True)
    rows = [json.loads(line) for line in (data / "train.jsonl").open(encoding="utf-8")]
    lines, broken = [], {}
    for i in range(num):
        row, key = rows[i % len(rows)], f"images/{i:06}.jpg"
        source = data / row["image"]
        if i < len(rows):
            (root / key).write_bytes(source.read_bytes())
        else:  # a crop, larger in each round
            image, cut = Image.open(source), 8 * (i // len(rows))
            image.crop((cut, cut, image.width, image.height)).save(root / key, "JPEG", quality=90)
        if i % EVERY == EVERY - 1:
            broken[key] = list(BREAK)[i // EVERY % len(BREAK)]
            BREAK[broken[key]][0](root / key)
        lines.append(json.dumps({"image": key, text_field: row[text_field]}, ensure_ascii=False))
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return broken


def run_and_sample_memory(command: list[str]) -> tuple[int, dict[str, list[tuple[float, float]]]]:
    """Run a command; returns its exit code and samples (second, MB) of the memory of parent and children."""
    memory: dict[str, list[tuple[float, float]]] = {"parent": [], "children": []}
    started = time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None:
        tree = descendants(process.pid)
        at = time.monotonic() - started
        memory["parent"].append((at, unshared_mb(process.pid)))
        memory["children"].append((at, sum(unshared_mb(pid) for pid in tree)))
        time.sleep(0.5)
    return process.returncode, memory


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
    pids, generation = [], [pid]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        pids += generation
    return pids


def unshared_mb(pid: int) -> float:
    """Anonymous memory: libraries, decoded images and the page cache are shared and would count in each process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def print_memory(memory: dict[str, list[tuple[float, float]]]) -> None:
    """Print median, maximum and slope of the samples."""
    print("\n| unshared memory | samples | median | maximum | slope |")
    print("|---|--:|--:|--:|--:|")
    for name, samples in memory.items():
        at, mb = np.array(samples).T
        steady = (at >= STEADY[0] * at[-1]) & (at <= STEADY[1] * at[-1])
        slope = np.polyfit(at[steady] / 60, mb[steady], 1)[0]
        print(f"| {name} | {steady.sum()} | {np.median(mb[steady]):.0f} MB | {mb.max():.0f} MB | {slope:+.1f} MB/min |")


if __name__ == "__main__":
    main()
