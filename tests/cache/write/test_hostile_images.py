"""Hostile image files: they cost their row, but neither memory nor time."""

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.format import RejectedImageError, Status
from clipglot.cache.write import image_render
from clipglot.cache.write.image_decode import ResizeCrop, decode
from clipglot.cache.write.image_render import to_rgb
from clipglot.cli.main import main
from PIL import Image
from support.drawings import draw_images
from support.image_bytes import of_many_scans

SQUARE = ResizeCrop(height=32, width=32, resize_mode="shortest", interpolation="bicubic", fill=0)


def stored(kind: str, **options: object) -> bytearray:
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, kind, **options)
    return bytearray(file.getvalue())


def patched(content: bytearray, before: bytes, layout: str, *values: int) -> bytes:
    """Write values right after some bytes."""
    at = content.index(before) + len(before)
    struct.pack_into(layout, content, at, *values)
    return bytes(content)


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff(width: int, height: int) -> bytes:
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(fields)) + entries + bytes(4)


def webp(width: int, height: int) -> bytes:
    """A lossless frame's header: 14 bits a side."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(8)
    return b"RIFF" + struct.pack("<I", len(body) + 13) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0"


def canvas(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is not that of its frame."""
    body = struct.pack("<I", 2) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(stored("WEBP")[12:])
    return b"RIFF" + struct.pack("<I", len(frame) + 22) + b"WEBPVP8X" + struct.pack("<I", 10) + body + frame


def gif(screen: int, frame: int) -> bytes:
    """A GIF with one frame; sides of its screen and of the frame."""
    begin = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return begin + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x4c\x01\x00;"


DECODE_ALL = """
import resource, sys
from pathlib import Path
from clipglot.cache.write.image_decode import ResizeCrop, decode
from clipglot.cache.format import RejectedImageError
geometry = ResizeCrop(height=32, width=32, resize_mode="shortest", interpolation="bicubic", fill=0)
for path in sorted(Path(sys.argv[1]).iterdir(), key=lambda path: int(path.name)):
    before, outcome = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "EMBEDDED"
    try:
        decode(path, geometry)
    except RejectedImageError as rejected:
        outcome = rejected.status.name
    print(outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

FORGED: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: png(2**31 - 1, 2**31 - 1),
    "JPEG": lambda: patched(stored("JPEG"), b"\xff\xc0\x00\x11\x08", ">HH", 65_535, 65_535),
    "JPEG of another shape": lambda: patched(stored("JPEG"), b"\xff\xc0\x00\x11\x08", ">HH", 65_535, 2000),
    "TIFF": lambda: tiff(2**31 - 1, 2**31 - 1),
    "TIFF of one row": lambda: tiff(2**32 - 1, 1),
    "WebP": lambda: webp(16_383, 16_383),
    "WebP canvas": lambda: canvas(2**24, 2**24),
    "GIF": lambda: gif(65_535, 65_535),
    "GIF whose frame is larger than its screen": lambda: gif(1, 65_535),
    "BMP": lambda: patched(stored("BMP"), b"\x28\0\0\0", "<ii", 2**31 - 1, 2**31 - 1),
    "BMP of negative height": lambda: patched(stored("BMP"), b"\x28\0\0\0", "<ii", 2**31 - 1, -(2**31)),
    "PPM": lambda: b"P6 1000000 1000000 255\n" + bytes(100),
    "JPEG2000": lambda: patched(stored("JPEG2000"), b"ihdr", ">II", 2**32 - 1, 2**32 - 1),
    "AVIF": lambda: patched(stored("AVIF"), b"ispe\0\0\0\0", ">II", 60_000, 60_000),
    "PNG with a text of 256 MB": lambda: png(1, 1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 1))),
    "PNG with a profile of 256 MB": lambda: png(1, 1, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 1))),
    "PNG of no size": lambda: png(0, 0),
}


def test_forged_headers_take_no_memory(tmp_path: Path) -> None:
    """They are decoded in a process of their own, whose memory is measured after each."""
    for i, make in enumerate(FORGED.values()):
        (tmp_path / str(i)).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    for kind, line in zip(FORGED, done.stdout.splitlines(), strict=True):
        outcome, kilobytes = line.split()
        is_whole = "of 256 MB" in kind  # beside one whole pixel
        assert outcome in (("EMBEDDED",) if is_whole else ("TOO_LARGE", "DAMAGED", "NOT_A_PICTURE")), kind
        assert int(kilobytes) < 64_000, kind


def test_the_usual_forms_of_a_huge_header_are_too_large() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "WebP", "GIF", "GIF whose frame is larger than its screen", "PPM", "JPEG2000"):
        with pytest.raises(RejectedImageError) as rejected:
            decode(BytesIO(FORGED[kind]()), SQUARE)
        assert rejected.value.status is Status.TOO_LARGE, kind


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def a_socket(path: Path) -> None:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


def two_links(path: Path) -> None:
    other = path.with_name("back.png")
    path.symlink_to(other)
    other.symlink_to(path)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "unreadable"),
    "a device": (a_device, "unreadable"),
    "a socket": (a_socket, "unreadable"),
    "a folder": (Path.mkdir, "unreadable"),
    "a link to itself": (lambda path: path.symlink_to(path), "missing"),
    "two links to each other": (two_links, "missing"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere.png"), "missing"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "outside root"),
    "an empty file": (Path.touch, "not a picture"),
    "1 by 100,000": (lambda path: Image.new("RGB", (1, 100_000)).save(path), "too large"),
    "100,000 by 1": (lambda path: Image.new("L", (100_000, 1)).save(path), "too large"),
    "a bomb": (lambda path: Image.new("1", (20_000, 20_000)).save(path), "too large"),
    "900 scans": (lambda path: path.write_bytes(of_many_scans(1200, 900)), "too slow"),
    "one pixel": (lambda path: Image.new("RGB", (1, 1)).save(path), "embedded"),
}


def test_a_pass_over_odd_files_ends_and_records_why_each_failed(
    tmp_path: Path, tiny_clip: Path, start_command: Any
) -> None:
    """It runs in a process of its own, because the likely failure is to hang."""
    manifest = draw_images(tmp_path, 4)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    keys = {}
    for i, (make, status) in enumerate(ODD.values()):
        keys[f"images/odd{i}.png"] = status
        make(tmp_path / "images" / f"odd{i}.png")
    keys |= {"images/nul\0.png": "missing", "images/" + "x" * 300: "missing", "\n": "unreadable", "..": "outside root"}
    keys |= {"images/%s\\x00": "missing", "~": "missing", "/dev/zero": "outside root", "file:///etc/passwd": "missing"}
    lines += [json.dumps({"image": key, "text": "шум"}) for key in keys]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    options = ["--model", f"local-dir:{tiny_clip}", "--num-workers", 1, "--device", "cpu"]
    start_command("cache", manifest, "-o", tmp_path / "c.zarr", *options).succeed()
    inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "c.zarr"), "--failures", "-1", "--json"])
    document = json.loads(inspected.stdout)
    reasons = {failure["key"]: failure["status"] for failure in document["failures"]}
    assert {key: reasons.get(key, "embedded") for key in keys} == keys | {"\n": "missing"}
    assert document["status"]["embedded"] == 4 + 1


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_extreme_shapes_are_embedded_where_the_tower_squashes_them(mode: str) -> None:
    geometry = ResizeCrop(height=32, width=32, resize_mode=mode, interpolation="bicubic", fill=0)  # type: ignore[arg-type]
    for size in ((1, 100_000), (100_000, 1)):
        file = BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        if mode == "squash":
            assert decode(file, geometry).shape == (32, 32, 3)
        else:
            with pytest.raises(RejectedImageError) as rejected:
                decode(file, geometry, 1_000_000)
            assert rejected.value.status is Status.TOO_LARGE


def test_a_key_that_is_not_unicode_stops_the_plan_and_names_its_line(tmp_path: Path, tiny_clip: Path) -> None:
    manifest = draw_images(tmp_path, 2)
    manifest.write_text(manifest.read_text(encoding="utf-8") + '{"image": "\\ud800.png", "text": "шум"}\n', "utf-8")
    done = CliRunner().invoke(
        main, ["cache", str(manifest), "-o", str(tmp_path / "c.zarr"), "--model", f"local-dir:{tiny_clip}"]
    )
    assert done.exit_code == 1
    assert "pairs.jsonl:3: 'image' holds half of a surrogate pair" in done.stderr
    assert not (tmp_path / "c.zarr").exists()


SWAP = """
import os, sys
from pathlib import Path
from clipglot.cache.sources.image_root import open_below
from clipglot.cache.format import RejectedImageError
root = Path(sys.argv[1])
if os.fork() == 0:
    while True:
        for kind in ("pipe", "file"):
            os.link(root / kind, root / "next")
            os.replace(root / "next", root / "image")
            (root / "next").unlink(missing_ok=True)
opened = refused = 0
while min(opened, refused) < 300:
    try:
        with open_below(root, "image") as file:
            assert file.read() == b"x"
        opened += 1
    except RejectedImageError:
        refused += 1
print(opened, refused, flush=True)
os.killpg(0, 9)
"""


def test_a_file_that_becomes_a_fifo_while_it_is_opened_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "image"):
        (tmp_path / name).write_bytes(b"x")
    process = subprocess.Popen(
        [sys.executable, "-c", SWAP, str(tmp_path.resolve())], stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        try:
            assert process.communicate(timeout=60)[0]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


def of_form(form: str) -> Image.Image:
    rng = np.random.default_rng(0)
    if form == "sixteen bits":
        return Image.fromarray(rng.integers(0, 2**16, (20, 30), np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8))
    if form == "P":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = 3
    return image.convert(form)


@pytest.mark.parametrize("form", ["RGBA", "LA", "PA", "P", "sixteen bits"])
def test_large_images_are_converted_by_bands_to_the_same_pixels(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = of_form(form)
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr(image_render, "BAND_PIXELS", 7 * image.width)  # of 20 rows: the last band is lower
    by_bands = to_rgb(image)
    assert (by_bands.mode, by_bands.size) == ("RGB", image.size)
    assert np.array_equal(whole, np.asarray(by_bands))
    assert len(np.unique(whole)) > 5
