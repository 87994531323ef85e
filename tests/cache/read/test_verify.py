"""`clipglot verify`: invalid values, a sample of images embedded again, and a report of what was not checked."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from clipglot.cache.read import verify as contents
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from PIL import Image
from support.damage import rewrite
from support.drawings import draw_images
from support.metadata_edits import edit


def verify(cache: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", str(cache), "--device", "cpu", *map(str, arguments)])


def verify_json(cache: Path, *arguments: object) -> dict[str, Any]:
    result = verify(cache, "--json", *arguments)
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    document: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (1 if document["faults"] or (arguments and document["probes"]["not_checked"]) else 0)
    return document


def make_own(folder: Path, make_cache: Callable[..., Any]) -> Path:
    manifest = draw_images(folder / "pictures", 24)
    (folder / "pictures/images/0003.png").write_bytes(b"broken")
    make_cache(manifest, folder / "c.zarr", views=2)
    return folder / "c.zarr"


@pytest.fixture
def own(tmp_path: Path, make_cache: Callable[..., Any]) -> Path:
    """Cache of two views and its images, one of them broken, for tests that damage either."""
    return make_own(tmp_path, make_cache)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Any]) -> Path:
    """The same. Read only."""
    return make_own(tmp_path_factory.mktemp("intact"), make_cache)


@pytest.fixture(params=[64, None], ids=["in small parts", "at once"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify arrays part by part, as those of large caches, or each at once."""
    if request.param:
        monkeypatch.setattr(contents, "CHUNK_BYTES", request.param)
        monkeypatch.setattr(contents, "ROWS_AT_A_TIME", 5)


def replace_array(cache: Path, name: str, values: Any) -> None:
    array = zarr.open_group(cache, mode="r+")[name]
    array.resize(values.shape)
    array[:] = values


ROW, AT = (0, 9), "images/emb/c/0/1/0: row 9"
CONTENTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half a vector": (lambda c: rewrite(c, "images/emb", (*ROW, slice(8)), 0), f"{AT}: embedded, but"),
    "NaN": (lambda c: rewrite(c, "images/emb", (*ROW, 0), np.nan), f"{AT}: embedded, but"),
    "a vector of a failed image": (
        lambda c: rewrite(c, "images/emb", (0, 3, 0), 1),
        "images/emb/c/0/0/0: row 3: not embedded, but not zeros",
    ),
    "a vector of a view": (lambda c: rewrite(c, "images/emb", (1, 9, 0), 9), "images/emb/c/1/1/0: row 9: embedded"),
    "no norm": (lambda c: rewrite(c, "images/norm", ROW, 0), "images/norm/c/0/1: row 9: not a positive number"),
    "no finite norms": (
        lambda c: rewrite(c, "images/norm", (0, slice(9, 12)), np.nan),
        "images/norm/c/0/1: row 9 and 2 more: not a positive number",
    ),
    "a norm of a failed image": (lambda c: rewrite(c, "images/norm", (1, 3), 2), "images/norm/c/1/0: row 3: not a"),
    "a repeat that is none": (
        lambda c: rewrite(c, "images/norm", (1, 9), 0),
        "images/emb/c/1/1/0: row 9: norm 0, but not the plain view's embedding",
    ),
    "a swapped image's owner": (
        lambda c: rewrite(c, "captions/image", 4, 23),
        "captions/image: not ascending rows of 24 images",
    ),
    "offsets that begin late": (lambda c: rewrite(c, "images/key/offsets", 0, 1), "images/key/offsets: not ascending"),
    "offsets that go back": (lambda c: rewrite(c, "captions/text/offsets", 5, 0), "captions/text/offsets: not"),
    "bytes that no text has": (
        lambda c: replace_array(c, "captions/text/bytes", np.full(5000, 65, np.uint8)),
        "captions/text/offsets: end at ",
    ),
    "a key twice": (
        lambda c: rewrite(c, "images/key/bytes", slice(15 * 7, 15 * 8), np.frombuffer(b"images/0002.png", np.uint8)),
        "images/key: row 7 has the key of row 2, 'images/0002.png'",
    ),
    "no UTF-8": (lambda c: rewrite(c, "images/key/bytes", 15 * 7 + 3, 0xFF), "images/key/bytes: row 7 is no UTF-8"),
    "a text cut in a character": (
        lambda c: rewrite(c, "captions/text/offsets", 3, int(zarr.open_group(c)["captions/text/offsets"][3]) + 1),
        "captions/text/bytes: row 2 is no UTF-8",
    ),
}


@pytest.mark.usefixtures("parts")
def test_verify_finds_nothing_in_an_intact_cache(intact: Path) -> None:
    assert verify_json(intact)["faults"] == []


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("what", CONTENTS)
def test_verify_names_invalid_values_with_a_valid_checksum(what: str, intact: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(intact, tmp_path / "c.zarr"))
    damage, message = CONTENTS[what]
    damage(cache)
    (fault,) = verify_json(cache)["faults"]
    assert fault.startswith(message), fault
    assert fault.endswith(("embed these rows anew", "run its `clipglot cache` command again"))


def test_a_sample_with_a_fixed_seed_is_embedded_again(own: Path) -> None:
    probes = verify_json(own)["probes"]
    assert (probes["num"], probes["not_checked"], probes["changed"]) == (16, None, [])
    assert probes["min_cosine"] > 0.9999
    assert verify_json(own, "--sample", 5)["probes"] == verify_json(own, "--sample", 5)["probes"]
    assert verify_json(own, "--sample", 0)["probes"] == {
        "num": 0,
        "min_cosine": None,
        "changed": [],
        "not_checked": None,
    }
    assert verify_json(own, "--sample", 1000)["probes"]["num"] == 23  # all that are embedded


def test_verify_names_a_changed_image(own: Path) -> None:
    Image.new("RGB", (48, 40), "magenta").save(own.parent / "pictures/images/0007.png")
    (fault,) = verify_json(own, "--sample", 24)["faults"]
    assert fault.startswith("images/0007.png embeds to another vector than ")


def test_unreadable_images_are_reported_and_an_error_only_on_request(own: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures/images/0007.png").unlink()
    assert verify_json(own, "--sample", 24)["probes"]["not_checked"] == (
        "1 of 23 could not be read again (images/0007.png: missing)"
    )
    (tmp_path / "pictures").rename(tmp_path / "moved")
    why = f"the images are not below {tmp_path / 'pictures'} any more"
    assert verify_json(own)["probes"]["not_checked"] == verify_json(own, "--sample", 3)["probes"]["not_checked"] == why
    printed = verify(own)
    assert (printed.exit_code, why in printed.stdout, "every checksum holds" in printed.stdout) == (0, True, True)
    assert verify_json(own, "--image-root", tmp_path / "moved")["probes"]["num"] > 14
    assert Cache(own).info.source.image_root == str(tmp_path / "pictures")


def test_images_moved_to_a_url_are_checked_there(own: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(own.parent / "pictures"), "/verified", recursive=True)
    shutil.rmtree(own.parent / "pictures")
    probes = verify_json(own, "--image-root", "memory://verified")["probes"]
    assert (probes["num"], probes["not_checked"], probes["changed"]) == (16, None, [])
    assert "memory://gone: nothing there" in verify_json(own, "--image-root", "memory://gone")["probes"]["not_checked"]
    store.rm("/verified", recursive=True)


def test_a_moved_image_tower_is_checked_only_with_model(
    manifest: Path, tiny_clip: Path, other_clip: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    before = Path(shutil.copytree(tiny_clip, tmp_path / "tower"))
    make_cache(manifest, tmp_path / "c.zarr", model=f"local-dir:{before}")
    before.rename(tmp_path / "there")
    probes = verify_json(tmp_path / "c.zarr")["probes"]
    assert probes["num"] == 0
    assert "the image tower is not at hand (" in probes["not_checked"]
    assert (
        verify_json(tmp_path / "c.zarr", "--model", f"local-dir:{tmp_path / 'there'}", "--sample", 4)["probes"]["num"]
        == 4
    )
    wrong = verify(tmp_path / "c.zarr", "--model", f"local-dir:{other_clip}")
    assert (wrong.exit_code, "is not the one that made the cache (weights_sha256 differs)" in wrong.stdout) == (1, True)


def test_the_embedded_part_of_an_incomplete_cache_is_checked(own: Path) -> None:
    Cache(own, read_only=False).arrays.invalidate([("images/status", (1,))])
    document = verify_json(own)
    assert (document["state"], document["faults"], document["probes"]["num"]) == ("planned", [], 15)
    rewrite(own, "images/norm", (0, 20), -1)
    assert [fault[:24] for fault in verify_json(own)["faults"]] == ["images/norm/c/0/2: row 2"]


def test_a_text_only_cache_reports_that_it_has_no_images(
    translated_manifests: dict[str, Path], make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    from support.translated_scenes import MODEL

    make_cache(
        translated_manifests["train"], tmp_path / "c", model=MODEL, teacher_field=("en",), images=False, limit=20
    )
    probes = verify_json(tmp_path / "c")["probes"]
    assert (probes["num"], probes["not_checked"]) == (0, f"{tmp_path / 'c'} holds texts, no images")


def test_verify_without_repair_writes_nothing(own: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in own.rglob("*")}

    (own / "images/emb/c/0/1/0").write_bytes(b"")
    before = stamps()
    verify_json(own)
    assert stamps() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("chunk_rows", 16, r"images/emb/zarr\.json: chunks \(1, \d+, 16\), expected \(1, 16, 16\).*: delete the cache"),
        ("num_captions", None, "damaged metadata .*num_captions is None"),
        ("batch_size", "8", "damaged metadata .*batch_size is '8'"),
    ],
)
def test_verify_names_impossible_metadata(
    tiny_cache: Path, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "c.zarr"))
    edit(cache, **{field: value})
    result = CliRunner().invoke(main, ["verify", str(cache), "--sample", "0"])
    assert result.exit_code == 1
    assert re.search(message, result.stdout + result.stderr)
