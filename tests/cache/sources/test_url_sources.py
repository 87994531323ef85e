"""Manifests, images and tars at URLs: the contract of sources, as on the disk, and the documented commands."""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from clipglot.cli.main import main
from support import url_sources as urls
from support.drawings import draw_images
from support.s3_server import NAME, Bucket
from support.source_contract import CAPTIONS, HOSTILE, Made, as_table, encoded_images, without
from support.tars import write_img2dataset, write_shards
from support.url_sources import AtUrl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bucket")]

temporary = urls.temporary

ONE_EACH = [captions[:1] for captions in CAPTIONS if captions]


class TestTable(AtUrl):
    def local(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        return Made(as_table(folder, images, captions))


class TestTars(AtUrl):
    def local(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        write_shards(folder / "tars", images, captions)
        return Made(folder / "tars")


class TestImg2dataset(AtUrl):
    captions = ONE_EACH
    hostile = without(HOSTILE, "not unicode")

    def local(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        write_img2dataset(folder, images, [texts[0] for texts in captions])
        return Made(folder if images else folder / "none.tar")


def test_images_may_lie_at_a_url_and_their_table_here(bucket: Bucket, tmp_path: Path, tiny_clip: Path) -> None:
    manifest = draw_images(tmp_path / "here", 6)
    url = bucket.upload(tmp_path / "here", "pictures-alone")
    shutil.rmtree(tmp_path / "here" / "images")
    bucket.delete("pictures-alone/images/0003.png")
    command = ["cache", manifest, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}", "--image-root", url]
    result = CliRunner().invoke(main, [*map(str, command), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == {"embedded": 5, "missing": 1}


def test_the_documented_commands_run(bucket: Bucket, tmp_path: Path, tiny_clip: Path) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "sources.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", docs, re.DOTALL | re.MULTILINE)
    images, captions = encoded_images(3), [["a cat"], ["кот"], ["猫"]]
    table = as_table(tmp_path, images, captions)
    write_shards(tmp_path / "shards", images, captions, per_shard=1)
    (tmp_path / "data").mkdir()
    rows = pa.table({"image": images, "text": captions})
    pq.write_table(rows, tmp_path / "data" / "train-00000-of-00001.parquet")
    for file in (table, *tmp_path.glob("*/*")):
        bucket.client.put_object(Bucket=NAME, Key=file.relative_to(tmp_path).as_posix(), Body=file.read_bytes())
    for line in block.splitlines():
        command = shlex.split(line.replace(" pairs.jsonl", f" {table}").replace("-o ", f"-o {tmp_path}/"))
        given = [*command[1 : command.index("--model")], "--model", f"local-dir:{tiny_clip}", "--json"]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["status"] == {"embedded": 3}
