"""Contract of all writable stores of caches: small objects, and passes that write the bytes of a local cache."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.location import Location, to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.storage.open import CacheStore, store_at
from clipglot.cache.write.plan import is_planned
from clipglot.cli.main import main
from support.drawings import draw_images
from support.launcher import Process
from support.metadata_edits import edited
from support.s3_server import Bucket
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

VIEWS: dict[str, Any] = {"views": 3, "augment_scale": 0.3, "augment_flip": 0.5}


@pytest.fixture(scope="session")
def make_with_views(
    translated_manifests: dict[str, Path], make_cache: Callable[..., Any]
) -> Callable[[Location], Location]:
    """`make_with_views(at)`: a cache with a text teacher, then its views."""
    from support.translated_scenes import MODEL

    def make(at: Location) -> Location:
        for views in ({}, VIEWS):
            more = {"model": MODEL, "batch_size": 64, "limit": 100, "teacher_field": ("en",)} | views
            make_cache(translated_manifests["train"], at, **more)
        return at

    return make


@pytest.fixture(scope="module")
def near_with_views(
    make_with_views: Callable[[Location], Location], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Files of a local cache with a text teacher and views, by name."""
    return files(Path(make_with_views(tmp_path_factory.mktemp("near") / "near.zarr")))


class StoreContract:
    """Contract suite, inherited for each kind of store. `at` is the location of a cache, absent at first."""

    @pytest.fixture
    def at(self) -> Location:
        raise NotImplementedError

    @pytest.fixture
    def contents(self, at: Location) -> Callable[[], dict[str, bytes]]:
        """`contents()`: bytes of each file or object by name."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, at: Location) -> CacheStore:
        return store_at(at, read_only=False)

    def test_small_objects_are_written_replaced_listed_and_deleted(self, store: CacheStore) -> None:
        assert (store.names(""), store.names("a"), store.read("a/1.json")) == ([], [], None)
        for content in (b"one", b"another"):
            store.write("a/1.json", content)
            assert store.read("a/1.json") == content
        store.write("a/b/2.json", b"")
        store.write("c", b"x")
        assert (sorted(store.names("")), sorted(store.names("a")), store.read("a/b/2.json")) == (
            ["a", "c"],
            ["1.json", "b"],
            b"",
        )
        store.delete_below("a/b")
        store.delete_below("a/b")
        assert (store.names("a"), store.read("c")) == (["1.json"], b"x")
        store.delete_file("a/1.json")
        store.delete_file("a/1.json")
        assert store.names("") == ["c"]
        store.delete_below("")
        assert store.names("") == []

    def test_pattern_characters_in_names_are_literal(self, store: CacheStore) -> None:
        for key in ("a[1]/x", "a1/x", "b*/x", "bb/x"):
            store.write(key, b"x")
        store.delete_below("a[1]")
        sync(store.delete("b*/x"))
        assert sorted(store.names("")) in (["a1", "bb"], ["a1", "b*", "bb"])  # a local folder stays
        assert (store.names("a1"), store.names("b*"), store.names("bb")) == (["x"], [], ["x"])

    def test_zarr_methods_see_the_same_objects(self, store: CacheStore) -> None:
        prototype = default_buffer_prototype()

        async def there_and_back() -> Any:
            await asyncio.gather(*(store.set(f"x/{i}", prototype.buffer.from_bytes(b"%d" % i)) for i in range(20)))
            found = await store.get("x/7", prototype)
            await store.delete("x/7")
            return found.to_bytes() if found else None

        assert sync(there_and_back()) == b"7"
        assert len(store.names("x")) == 19
        assert store.read("x/19") == b"19"

    def test_a_writer_sees_later_writes_of_others(self, at: Location, store: CacheStore) -> None:
        other, prototype = store_at(at, read_only=False), default_buffer_prototype()
        for key in ("images/status/c/0", "images/key/zarr.json", "zarr.json"):
            for content in (b"before", b"after"):
                (other if content == b"after" and not key.startswith("images/key") else store).write(key, content)
                found = sync(store.get(key, prototype))
                assert found is not None
                assert found.to_bytes() == content
        assert store.names("images/status/c") == ["0"]
        other.write("images/status/c/1", b"")
        assert sorted(store.names("images/status/c")) == ["0", "1"]
        other.delete_below("images/status")
        assert store.names("images/status/c") == []

    def test_a_read_only_store_refuses_writes(self, at: Location) -> None:
        with pytest.raises(ValueError, match="read-only"):
            sync(store_at(at, read_only=True).set("x", default_buffer_prototype().buffer.from_bytes(b"x")))

    def test_other_files_than_a_cache_are_not_replaced(self, at: Location, store: CacheStore) -> None:
        assert not is_planned(at)
        store.write("thesis.pdf", b"years")
        with pytest.raises(CacheError, match="exists and is not a cache: choose another -o"):
            is_planned(at)
        assert store.read("thesis.pdf") == b"years"

    def test_a_pass_writes_the_bytes_of_a_local_one_and_resumes(
        self,
        at: Location,
        store: CacheStore,
        contents: Callable[[], dict[str, bytes]],
        tiny_cache: Path,
        manifest: Path,
        make_cache: Callable[..., Any],
    ) -> None:
        expected = {k: v for k, v in files(tiny_cache).items() if not k.startswith("tokens/")}
        result = make_cache(manifest, at)
        assert (result.resumed, contents()) == (False, expected)
        assert verify(Cache(at)) == []
        for chunk in (0, 3):
            for name in (f"images/emb/c/0/{chunk}/0", f"images/norm/c/0/{chunk}", f"images/status/c/{chunk}"):
                store.delete_file(name)
        store.write("zarr.json", edited(expected["zarr.json"], state="planned"))
        result = make_cache(manifest, at)
        assert (result.resumed, result.report.num_pictures, contents()) == (True, 16, expected)
        assert make_cache(manifest, at).report.num_pictures == 0

    def test_views_and_a_text_teacher_equal_those_of_a_local_cache(
        self,
        at: Location,
        contents: Callable[[], dict[str, bytes]],
        make_with_views: Callable[[Location], Location],
        near_with_views: dict[str, bytes],
    ) -> None:
        make_with_views(at)
        assert contents() == near_with_views
        assert Cache(at).info.num_views == 3

    def test_an_interrupted_plan_is_replaced(
        self,
        at: Location,
        store: CacheStore,
        contents: Callable[[], dict[str, bytes]],
        tiny_cache: Path,
        manifest: Path,
        make_cache: Callable[..., Any],
    ) -> None:
        expected = {k: v for k, v in files(tiny_cache).items() if not k.startswith("tokens/")}
        store.write("zarr.json", edited(expected["zarr.json"], state="planning"))
        store.write("images/status/c/0", b"of another plan")
        store.write("images/emb/c/0/99/0", b"of another plan")
        assert not is_planned(at)
        make_cache(manifest, at)
        assert contents() == expected

    def test_a_failed_plan_leaves_nothing(
        self, at: Location, store: CacheStore, make_cache: Callable[..., Any], tmp_path: Path
    ) -> None:
        source = draw_images(tmp_path / "pictures", 3)
        source.write_text(source.read_text() + "no JSON\n")
        with pytest.raises(CacheError, match="not a line of JSON"):
            make_cache(source, at)
        assert store.names("") == []

    def test_a_pass_with_a_wrong_image_root_can_be_repeated_with_the_right_one(
        self, at: Location, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
    ) -> None:
        with pytest.raises(CacheError, match="not one image could be embedded"):
            make_cache(manifest, at, image_root=tmp_path)
        assert make_cache(manifest, at).cache.info.counts == {"embedded": 40}

    def test_a_retry_embeds_failed_images_to_the_bytes_of_an_undisturbed_pass(
        self, at: Location, contents: Callable[[], dict[str, bytes]], make_cache: Callable[..., Any], tmp_path: Path
    ) -> None:
        manifest = draw_images(tmp_path / "images", 16)
        make_cache(manifest, tmp_path / "undisturbed.zarr")
        image = tmp_path / "images" / "images" / "0003.png"
        image.rename(image.with_suffix(".away"))
        assert make_cache(manifest, at).cache.info.counts == {"embedded": 15, "missing": 1}
        image.with_suffix(".away").rename(image)
        make_cache(manifest, at, retry=True)
        assert contents() == files(tmp_path / "undisturbed.zarr")

    def test_verify_names_truncated_objects_and_a_pass_restores_what_it_can(
        self, at: Location, store: CacheStore, manifest: Path, make_cache: Callable[..., Any]
    ) -> None:
        make_cache(manifest, at)
        whole = {key: store.read(key) for key in ("images/key/bytes/c/0", "images/emb/c/0/2/0", "images/status/c/1")}
        for key, content in whole.items():
            assert content
            store.write(key, content[: len(content) // 2])
        faults = {str(fault).partition(": damaged (")[0]: str(fault) for fault in verify(Cache(at))}
        assert faults.keys() == whole.keys()
        store.write("images/key/bytes/c/0", whole["images/key/bytes/c/0"] or b"")
        remedy = r"delete (images/status/c/\d) and run its `clipglot cache` command again"
        assert not re.search(remedy, faults["images/key/bytes/c/0"])
        for key in ("images/emb/c/0/2/0", "images/status/c/1"):
            (marked,) = re.findall(remedy, faults[key])
            store.delete_file(marked)
        assert make_cache(manifest, at).report.num_pictures == 16
        assert verify(Cache(at)) == []


class TestLocalStore(StoreContract):
    @pytest.fixture
    def at(self, tmp_path: Path) -> Location:
        return tmp_path / "cache[1].zarr"

    @pytest.fixture
    def contents(self, at: Location) -> Callable[[], dict[str, bytes]]:
        return lambda: files(Path(at))


class TestRemoteStore(StoreContract):
    @pytest.fixture
    def at(self, bucket: Bucket) -> Location:
        return to_location(f"s3://bucket/{len(bucket.objects())}/cache[1].zarr")

    @pytest.fixture
    def contents(self, at: Location, bucket: Bucket) -> Callable[[], dict[str, bytes]]:
        return lambda: bucket.contents(str(at).removeprefix("s3://bucket/"))


class TestMemoryStore(StoreContract):
    """fsspec's store in memory. Unlike S3, it has folders that exist without files."""

    @pytest.fixture
    def at(self, tmp_path: Path) -> Location:
        return to_location(f"memory:/{tmp_path}/cache[1].zarr")

    @pytest.fixture
    def contents(self, at: Location) -> Callable[[], dict[str, bytes]]:
        import fsspec

        memory, root = fsspec.filesystem("memory"), str(at).removeprefix("memory:/")
        return lambda: {name.removeprefix(f"{root}/"): memory.cat_file(name) for name in memory.find(root)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(tiny_clip: Path) -> list[str]:
    return ["--model", f"local-dir:{tiny_clip}", "--batch-size", "8", "--num-workers", "1", "--device", "cpu"]


def test_the_cache_command_writes_to_a_bucket_and_prints_its_url(
    bucket: Bucket, manifest: Path, tiny_clip: Path, tiny_cache: Path
) -> None:
    command = ["cache", str(manifest), "-o", "s3://bucket/by-command.zarr/", *options(tiny_clip)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("s3://bucket/by-command.zarr: 40 images in ")
    expected = {k: v for k, v in files(tiny_cache).items() if not k.startswith("tokens/")}
    assert bucket.contents("by-command.zarr") == expected


@pytest.mark.parametrize(
    ("url", "changes", "message"),
    [
        ("s3://no-such-bucket/c.zarr", {}, "create the bucket, or check the URL"),
        ("s3://bucket/c.zarr", {"AWS_ACCESS_KEY_ID": None}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (
            "s3://bucket/c.zarr",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "check the connection, and AWS_ENDPOINT_URL",
        ),
    ],
    ids=["bucket", "credentials", "connection"],
)
def test_a_refusing_store_raises_one_clear_error(
    url: str,
    changes: dict[str, str | None],
    message: str,
    bucket: Bucket,
    start_command: Callable[..., Process],
    manifest: Path,
    tiny_clip: Path,
) -> None:
    process = start_command("cache", manifest, "-o", url, *options(tiny_clip), environment=changes)
    assert process.wait() == 1
    *loading, error = process.err().splitlines()
    assert error.startswith(f"Error: {url}")
    assert message in error
    assert all(line.startswith("load: ") for line in loading)
