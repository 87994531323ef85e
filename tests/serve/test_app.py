"""Answers of the search server against brute force, its refusals, and what every answer carries."""

import asyncio
import io
import json
import os
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.inference.thumbnails import ThumbnailReader
from clipglot.inference.towers import load_towers
from clipglot.jobs.serve import serve
from clipglot.jobs.settings.serve import ServeSettings
from clipglot.search.errors import SearchError
from clipglot.search.open import open_index
from clipglot.serve.catalog import Catalog, Filter
from clipglot.serve.engine import Engine, Query
from PIL import Image
from starlette.testclient import TestClient
from support.serving import client_of


@pytest.fixture(scope="module")
def client(merged: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of([merged], [tiny_cache], tmp_path_factory.mktemp("served")) as client:
        yield client


@pytest.fixture(scope="module")
def two_caches(
    merged: Path, tiny_cache: Path, class_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    models, caches = [merged, merged], [tiny_cache, class_cache]
    with client_of(models, caches, tmp_path_factory.mktemp("served")) as client:
        yield client


def cosines_of(query: str, merged: Path, *caches: Path) -> np.ndarray:
    emb = np.concatenate([Cache(path).image_emb().astype(np.float64) for path in caches])
    return emb @ load_towers(merged).encode_texts([query])[0].astype(np.float64)


def found(client: TestClient, url: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(url, params=parameters)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_results_are_those_of_all_cosines(client: TestClient, merged: Path, tiny_cache: Path) -> None:
    cosines = cosines_of("a red circle", merged, tiny_cache)
    told = found(client, "/search", q="a red circle", limit=7, fold=False)
    order = np.argsort(-cosines, kind="stable")[:7]
    assert [hit["score"] for hit in told["hits"]] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    assert [hit["score"] for hit in told["hits"]] == pytest.approx(
        [cosines[hit["row"]] for hit in told["hits"]], abs=1e-5
    )
    cache = Cache(tiny_cache)
    for hit in told["hits"]:
        assert hit["key"] == cache.keys(hit["row"], hit["row"] + 1)[0]
        expected = cache.captions_by_image(slice(hit["row"], hit["row"] + 1), cache.caption_image())[0]
        assert [caption["text"] for caption in hit["captions"]] == expected
    assert (told["num_searched"], told["next_offset"], told["query"]) == (40, 7, "a red circle")


def test_rows_count_over_all_caches(two_caches: TestClient, merged: Path, tiny_cache: Path, class_cache: Path) -> None:
    cosines = cosines_of("yellow", merged, tiny_cache, class_cache)
    told = found(two_caches, "/search", q="yellow", limit=20, fold=False, model=1)
    assert [hit["score"] for hit in told["hits"]] == pytest.approx(np.sort(cosines)[::-1][:20].tolist(), abs=1e-5)
    assert {hit["cache"] for hit in told["hits"]} == {int(hit["row"] >= 40) for hit in told["hits"]}
    only = found(two_caches, "/search", q="yellow", limit=200, fold=False, cache=1)
    assert [hit["row"] for hit in only["hits"]] == (40 + np.argsort(-cosines[40:], kind="stable")).tolist()
    assert only["next_offset"] is None


@pytest.mark.parametrize("fold", [True, False])
def test_pages_join_without_a_gap(client: TestClient, fold: bool) -> None:
    whole = found(client, "/search", q="blue", limit=200, fold=fold)
    pages, offset = [], 0
    while offset is not None:
        page = found(client, "/search", q="blue", limit=3, offset=offset, fold=fold)
        pages += page["hits"]
        assert page["next_offset"] is None or page["next_offset"] == offset + 3
        offset = page["next_offset"]
    assert [hit["row"] for hit in pages] == [hit["row"] for hit in whole["hits"]]


def test_near_duplicates_are_folded_under_the_better(merged: Path, tiny_cache: Path, tmp_path: Path) -> None:
    with client_of([merged], [tiny_cache], tmp_path, fold_above=0.9) as client:
        told = found(client, "/search", q="green", limit=200)
    emb = Cache(tiny_cache).image_emb().astype(np.float32)
    kept = [hit["row"] for hit in told["hits"]]
    between = emb[kept] @ emb[kept].T - 2 * np.eye(len(kept))
    assert 1 < len(kept) < 40
    assert between.max() < 0.9
    assert sorted([*kept, *(row for hit in told["hits"] for row in hit["alike"])]) == list(range(40))
    for hit in told["hits"]:
        assert all(emb[hit["row"]] @ emb[row] >= 0.9 - 1e-3 for row in hit["alike"])


def test_filters_choose_images_by_their_captions(client: TestClient, tiny_cache: Path) -> None:
    cache = Cache(tiny_cache)
    captions = cache.captions_by_image(slice(0, len(cache)), cache.caption_image())
    word = captions[3][0].split()[0]
    told = found(client, "/search", q="x", text=word.upper(), limit=200, fold=False)
    expected = {row for row, own in enumerate(captions) if any(word.casefold() in each.casefold() for each in own)}
    assert {hit["row"] for hit in told["hits"]} == expected
    assert told["num_searched"] == len(expected) > 0
    assert found(client, "/search", q="x", language="xx")["hits"] == []


def test_languages_and_captions_are_filtered_together(
    make_cache: Callable[..., Any], merged: Path, manifest: Path, tmp_path: Path
) -> None:
    lines = [{"image": f"images/{i:04}.png", "text": [f"red {i}"], "language": "en"} for i in range(4)] + [
        {"image": f"images/{i:04}.png", "text": [f"красный {i}"], "language": "ru"} for i in range(2, 6)
    ]
    (source := tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_cache(source, tmp_path / "c.zarr", image_root=manifest.parent, language_field="language")
    with client_of([merged], [tmp_path / "c.zarr"], tmp_path) as client:
        assert found(client, "/info")["languages"] == {"en": 4, "ru": 4}
        rows = {
            tag: {hit["row"] for hit in found(client, "/search", q="x", language=tag, fold=False)["hits"]}
            for tag in ("en", "ru")
        }
        (upper,) = {len(found(client, "/search", q="x", language=tag, fold=False)["hits"]) for tag in ("EN", "Ru")}
        assert upper == 4
        assert (len(rows["en"]), len(rows["ru"]), len(rows["en"] & rows["ru"])) == (4, 4, 2)
        assert found(client, "/search", q="x", language="en", text="красный")["hits"] == []
        decomposed = unicodedata.normalize("NFD", "КРАСНЫЙ 5")
        (hit,) = found(client, "/search", q="x", language="ru", text=decomposed)["hits"]
        assert hit["captions"] == [{"text": "красный 5", "language": "ru"}]


def test_images_find_themselves(client: TestClient, manifest: Path) -> None:
    content = (manifest.parent / "images" / "0007.png").read_bytes()
    told = client.post("/search?limit=3&fold=false", content=content, headers={"content-type": "image/png"}).json()
    assert told["hits"][0]["key"] == "images/0007.png"
    assert told["hits"][0]["score"] > 0.999
    row = told["hits"][0]["row"]
    similar = found(client, f"/similar/{row}", limit=200, fold=False)
    assert row not in [hit["row"] for hit in similar["hits"]]
    assert len(similar["hits"]) == 39
    assert similar["hits"][0]["row"] == told["hits"][1]["row"]


def test_labels_are_those_of_python(client: TestClient, merged: Path, manifest: Path) -> None:
    image = manifest.parent / "images" / "0003.png"
    expected = clipglot.load(merged, device="cpu").classify(image, ["red", "blue", "circle"])
    (row,) = [i for i, key in enumerate(Cache(client.app.state.engine.catalog.caches[0].cache.path).keys())
              if key == "images/0003.png"]  # type: ignore[attr-defined]  # fmt: skip
    labels = {"label": ["red", "blue", "circle"]}
    for answer in (client.get(f"/labels/{row}", params=labels), client.post("/labels", params=labels,
                                                                         content=image.read_bytes())):  # fmt: skip
        told = answer.json()["labels"]
        assert [each["label"] for each in told] == expected.labels
        assert [each["probability"] for each in told] == pytest.approx(expected.probabilities, abs=2e-3)


def test_sums_and_differences(client: TestClient, merged: Path, tiny_cache: Path) -> None:
    red, blue = load_towers(merged).encode_texts(["red", "blue"]).astype(np.float64)
    query = (red - blue) / np.linalg.norm(red - blue)
    cosines = Cache(tiny_cache).image_emb().astype(np.float64) @ query
    told = found(client, "/search", q="red -blue", limit=5, fold=False)
    assert [hit["score"] for hit in told["hits"]] == pytest.approx(np.sort(cosines)[::-1][:5].tolist(), abs=1e-5)


@pytest.mark.parametrize(("side", "size"), [(100, 128), (256, 256), (257, 512)])
def test_thumbnails_show_the_image_of_their_row(client: TestClient, manifest: Path, side: int, size: int) -> None:
    for row in (0, 17):
        answer = client.get(f"/image/{row}?side={side}")
        assert answer.headers["content-type"] == "image/webp"
        key = Cache(client.app.state.engine.catalog.caches[0].cache.path).keys()[row]  # type: ignore[attr-defined]
        shown = Image.open(io.BytesIO(answer.content)).convert("RGB")
        assert shown.size == (size, size)
        expected = np.asarray(Image.open(manifest.parent / key).convert("RGB")).mean((0, 1))
        assert np.abs(np.asarray(shown).mean((0, 1)) - expected).max() < 12
        assert "no-cache" in answer.headers["cache-control"]
        known = client.get(f"/image/{row}?side={side}&v={client.get('/info').json()['image_version']}")
        assert (known.content, "immutable" in known.headers["cache-control"]) == (answer.content, True)
        again = client.get(f"/image/{row}?side={side}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_whole_image_is_not_cut(make_cache: Callable[..., Any], merged: Path, tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (300, 100), (250, 0, 0)).save(tmp_path / "im" / "wide.png")
    Image.new("RGB", (60, 90), (0, 0, 250)).save(tmp_path / "im" / "tall.png")
    lines = [{"image": f"im/{name}.png", "text": [name]} for name in ("wide", "tall")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr")
    with client_of([merged], [tmp_path / "c.zarr"], tmp_path) as client:
        sizes = [Image.open(io.BytesIO(client.get(f"/image/{row}?whole=true").content)).size for row in (0, 1)]
    assert sizes == [(256, 85), (171, 256)]


def test_what_cannot_be_shown_says_why(make_cache: Callable[..., Any], merged: Path, tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / "im" / f"{i}.png")
    (tmp_path / "im" / "4.png").write_bytes(b"no image")
    lines = [{"image": f"im/{i}.png", "text": ["x"]} for i in range(5)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr")
    (tmp_path / "im" / "0.png").unlink()
    Image.new("RGB", (40, 40), (0, 250, 0)).save(tmp_path / "im" / "1.png")
    with client_of([merged], [tmp_path / "c.zarr"], tmp_path) as client:
        told = {row: client.get(f"/image/{row}") for row in range(5)}
        similar = client.get("/similar/4")
    assert {row: answer.status_code for row, answer in told.items()} == {0: 404, 1: 404, 2: 200, 3: 200, 4: 404}
    assert "missing" in told[0].json()["error"]
    assert "another image" in told[1].json()["error"]  # a picture of another file would be a lie
    assert told[1].json()["key"] == "im/1.png"
    assert "could not be embedded" in similar.json()["error"]


def test_a_source_that_hangs_takes_away_only_its_images(
    merged: Path, tiny_cache: Path, class_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webp, goes_on = ThumbnailReader.webp, threading.Event()

    def hanging(self: ThumbnailReader, row: int, key: str, side: int, *, whole: bool = False) -> bytes:
        if key.startswith("images/"):
            goes_on.wait()
        return webp(self, row, key, side, whole=whole)

    with client_of([merged], [tiny_cache, class_cache], tmp_path) as client:
        assert client.get("/image/0").status_code == 200
        monkeypatch.setattr(ThumbnailReader, "webp", hanging)
        monkeypatch.setattr("clipglot.serve.thumbnail_store.MADE_S", 0.2)
        told = [client.get(f"/image/{row}") for row in (1, 2, 3)]
        assert {answer.status_code for answer in told} == {404}
        assert all("did not answer" in answer.json()["error"] for answer in told)
        monkeypatch.setattr("clipglot.serve.thumbnail_store.MADE_S", 20.0)
        assert client.get("/image/0").status_code == 200  # kept
        assert client.get("/image/40").status_code == 200
        goes_on.set()
        assert client.get("/image/1").status_code == 200


def test_a_source_that_comes_back_is_read(
    make_cache: Callable[..., Any], merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "im").mkdir()
    Image.new("RGB", (40, 40), (60, 0, 0)).save(tmp_path / "im" / "0.png")
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.png", "text": ["x"]}))
    make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr", image_root=tmp_path / "im")
    shutil.move(tmp_path / "im", tmp_path / "away")
    monkeypatch.setattr("clipglot.inference.thumbnails.RETRY_S", 0.0)
    with client_of([merged], [tmp_path / "c.zarr"], tmp_path) as client:
        assert client.get("/image/0").status_code == 404
        shutil.move(tmp_path / "away", tmp_path / "im")
        assert client.get("/image/0").status_code == 200


def test_names_that_are_no_unicode_are_told(merged: Path, tiny_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_cache, odd := tmp_path / os.fsdecode(b"tiny\xff.zarr"))
    with client_of([merged], [odd], tmp_path) as client:
        assert found(client, "/info")["caches"][0]["name"] == "tiny?.zarr"
        shutil.rmtree(odd)
        assert client.get("/search?q=x").json()["error"].startswith(f"{tmp_path}/tiny?.zarr has changed")


def bomb() -> bytes:
    Image.new("1", (12_000, 12_000)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("method", "url", "content", "status", "told"),
    [
        ("GET", "/search?q=", b"", 400, "empty query"),
        ("GET", "/search", b"", 400, "empty query"),
        ("GET", "/search?q=-red", b"", 400, "takes away"),
        ("GET", "/search?q=red%20-red", b"", 400, "nothing is left"),
        ("GET", "/search?q=" + "x" * 3000, b"", 400, "characters"),
        ("GET", "/search?q=x&limit=0", b"", 400, "limit"),
        ("GET", "/search?q=x&limit=1e3", b"", 400, "limit"),
        ("GET", "/search?q=x&limit=" + "9" * 5000, b"", 400, "limit"),
        ("GET", "/search?q=x&limit=٣", b"", 400, "limit"),
        ("GET", "/search?q=x&offset=-1", b"", 400, "offset"),
        ("GET", "/search?q=x&model=1", b"", 400, "model"),
        ("GET", "/search?q=x&cache=1", b"", 400, "cache"),
        ("GET", "/search?q=x&fold=maybe", b"", 400, "fold"),
        ("GET", "/similar/40", b"", 404, "rows are 0 to 39"),
        ("GET", "/image/40", b"", 404, "rows are 0 to 39"),
        ("GET", "/image/" + "9" * 400, b"", 404, "rows are 0 to 39"),
        ("GET", "/image/" + "9" * 5000, b"", 414, "characters"),
        ("GET", "/image/-1", b"", 404, "Not Found"),
        ("GET", "/image/0?side=5000", b"", 400, "side"),
        ("GET", "/image/..%2f..%2fetc%2fpasswd", b"", 404, "Not Found"),
        ("GET", "/static/..%2fapp.py", b"", 404, ""),
        ("GET", "/labels/0", b"", 400, "label"),
        ("GET", "/labels/0?label=", b"", 400, "label"),
        ("POST", "/search", b"", 400, "no image"),
        ("POST", "/search", b"plain text", 400, "the image"),
        ("POST", "/search", bomb(), 400, "large"),
        ("POST", "/search", bytes(21 * 2**20), 413, "bytes"),
        ("DELETE", "/search", b"", 405, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(
    client: TestClient, method: str, url: str, content: bytes, status: int, told: str
) -> None:
    answer = client.request(method, url, content=content or None)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["error"]
    assert len(answer.text) < 1000


def test_a_body_is_counted_while_it_comes(client: TestClient) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield bytes(2**20)

    answer = client.post("/search", content=parts())
    assert answer.status_code == 413


def test_bodies_are_counted_together(client: TestClient, monkeypatch: pytest.MonkeyPatch, manifest: Path) -> None:
    content = (manifest.parent / "images" / "0000.png").read_bytes()
    for most, status in (
        (len(content), 200),
        (len(content) - 1, 503),
        (len(content), 200),
    ):  # each gives back its share
        monkeypatch.setattr("clipglot.serve.app.MOST_BODIES", most)
        assert client.post("/search", content=content).status_code == status


def test_an_image_without_direction_is_refused(client: TestClient, manifest: Path) -> None:
    engine = client.app.state.engine  # type: ignore[attr-defined]
    model = engine.models[0]

    class Zero:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def encode_pixels(self, pixels: Any) -> Any:
            return np.zeros((len(pixels), model.dim), np.float32)

    engine.models = [Zero()]
    try:
        answer = client.post("/search", content=(manifest.parent / "images" / "0000.png").read_bytes())
    finally:
        engine.models = [model]
    assert (answer.status_code, "zero or not finite" in answer.json()["error"]) == (400, True)


def test_a_failure_carries_the_headers_and_tells_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = client.app.state.engine.catalog  # type: ignore[attr-defined]
    monkeypatch.setattr(catalog, "place", lambda row: 1 / 0)
    answer = client.get("/similar/0")
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why"})
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "url", ["/", "/static/app.js", "/search?q=x", "/search?q=", "/nothing", "/image/0", "/image/77"]
)
def test_every_answer_is_safe_in_a_browser(client: TestClient, url: str) -> None:
    headers = client.get(url).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    expected = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
    assert {name: headers[name] for name in expected} == expected


def test_other_hosts_and_origins_are_refused(client: TestClient, manifest: Path) -> None:
    assert client.get("/search?q=x", headers={"host": "evil.example"}).status_code == 400
    content = (manifest.parent / "images" / "0000.png").read_bytes()
    for origin in (
        "http://evil.example",
        "null",
        "http://[::1",
        "http://127.0.0.1:9",
        "https://127.0.0.1.evil.example",
    ):
        assert client.post("/search", content=content, headers={"origin": origin}).status_code == 403
    assert client.post("/search", content=content, headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_a_token_opens_the_server(merged: Path, tiny_cache: Path, tmp_path: Path) -> None:
    with client_of([merged], [tiny_cache], tmp_path, token="s3cret-token") as client:
        assert client.get("/health").status_code == 200
        for url in ("/", "/search?q=x", "/image/0", "/info", "/static/app.js", "/openapi.json", "/?token=wrong",
                    "/search?q=x&token=s3cret-token"):  # fmt: skip
            refused = client.get(url)
            assert refused.status_code == 401, url
            is_page = url.partition("?")[0] == "/"
            assert refused.headers["content-type"].startswith("text/plain" if is_page else "application/json"), url
        for header in (
            "Bearer wrong",
            "Basic s3cret-token",
            "Bearer",
            "s3cret-token",
            "Bearer s3cret-tokenx",
            "Bearer é",
        ):
            assert client.get("/info", headers={"authorization": header.encode()}).status_code == 401, header
        assert client.get("/info", headers={"authorization": "Bearer s3cret-token"}).status_code == 200
        page = client.get("/?q=x&token=s3cret-token", follow_redirects=False)
        assert (page.status_code, page.headers["location"]) == (303, "/?q=x")
        assert "httponly" in page.headers["set-cookie"].lower()
        assert "samesite=strict" in page.headers["set-cookie"].lower()
        assert client.get("/search?q=x").status_code == 200  # by the cookie
        (cookie,) = client.cookies.items()
        client.cookies.clear()
        for others in ('a={"b": "c"}; ', '; =; é="; ', "x"):  # of other servers on this host
            headers = {"cookie": f"{others}; {cookie[0]}={cookie[1]}".encode()}
            assert client.get("/info", headers=headers).status_code == 200, others
        assert client.get("/info", headers={"cookie": f"{cookie[0]}=x"}).status_code == 401


def test_a_cache_that_was_replaced_is_not_shown(
    make_cache: Callable[..., Any], manifest: Path, merged: Path, tmp_path: Path
) -> None:
    make_cache(manifest, tmp_path / "c.zarr")
    with client_of([merged], [tmp_path / "c.zarr"], tmp_path) as client:
        assert client.get("/search?q=x").status_code == 200
        shutil.move(tmp_path / "c.zarr", tmp_path / "old.zarr")
        for url in ("/search?q=x", "/similar/0", "/image/0", "/labels/0?label=x"):
            assert client.get(url).status_code == 503
        make_cache(manifest, tmp_path / "c.zarr")
        answer = client.get("/search?q=x")
        assert (answer.status_code, "start it again" in answer.json()["error"]) == (503, True)
        assert client.get("/health").status_code == 200


def test_a_cache_that_is_replaced_while_it_is_opened_is_refused(
    make_cache: Callable[..., Any], manifest: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(manifest, path := tmp_path / "c.zarr")

    def opened(cache: Cache, **options: Any) -> Any:
        index = open_index(cache, **options)
        shutil.rmtree(path)
        make_cache(manifest, path)
        return index

    monkeypatch.setattr("clipglot.jobs.serve.open_index", opened)
    settings = ServeSettings(merged=merged, caches=(path,), port=0, thumbnail_folder=tmp_path / "thumbnails")
    with pytest.raises(SearchError, match="has changed since"):
        serve(settings)


def test_a_cache_that_is_given_twice_is_refused(merged: Path, tiny_cache: Path) -> None:
    with pytest.raises(DistillError, match="given twice"):
        ServeSettings(merged=merged, caches=(tiny_cache, tiny_cache))


class Counting:
    """A model that notes how many texts each forward pass has."""

    def __init__(self, model: Any) -> None:
        self._model, self.calls = model, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_texts(self, texts: list[str]) -> Any:
        self.calls.append(len(texts))
        return self._model.encode_texts(texts)


def test_the_first_forward_pass_is_over_before_the_first_query(client: TestClient, tiny_cache: Path) -> None:
    cache, model = Cache(tiny_cache), Counting(client.app.state.engine.models[0])  # type: ignore[attr-defined]
    engine = Engine([model], Catalog([(cache, open_index(cache, resident=True))]), fold_above=0.98)
    asyncio.run(engine.search(Query(model=0, text="another", k=3, chosen=Filter())))
    engine.close()
    assert model.calls == [1, 1]


def test_queries_that_come_together_share_a_forward_pass(client: TestClient) -> None:
    engine = client.app.state.engine  # type: ignore[attr-defined]
    model, counting = engine.models[0], Counting(engine.models[0])

    async def ask() -> list[Any]:
        queries = [Query(model=0, text=f"query {i}", k=3, chosen=Filter()) for i in range(40)]
        bad = Query(model=0, text="b -b", k=3, chosen=Filter())
        return await asyncio.gather(*map(engine.search, [*queries, bad]), return_exceptions=True)

    engine.models = [counting]
    try:
        answers = asyncio.run(ask())
    finally:
        engine.models = [model]
    assert sum(counting.calls) == 41
    assert len(counting.calls) <= 2
    assert isinstance(answers.pop(), clipglot.inference.errors.InputError)  # alone
    alone = [found(client, "/search", q=f"query {i}", limit=3, fold=False)["hits"] for i in range(40)]
    assert [each.rows.tolist() for each in answers] == [[hit["row"] for hit in hits] for hits in alone]


def test_the_description_is_that_of_the_answers(client: TestClient) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("openapi_spec_validator").validate(document := client.get("/openapi.json").json())
    routed = {
        (route.path.replace(":int", ""), method.lower())
        for route in client.app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
    }
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    pages = {("/", "get"), ("/static/{name}", "get"), ("/openapi.json", "get")}
    assert described | pages == routed
    for url, name in (("/search?q=x", "Results"), ("/similar/0", "Results"), ("/labels/0?label=x", "Labels"),
                      ("/row/0", "Image"),
                      ("/info", "Info"), ("/health", "Health"), ("/search", "Error")):  # fmt: skip
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(client.get(url).json(), schema)
