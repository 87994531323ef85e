"""Tables, tars and images at URLs: the contract of sources, as on the disk, and the documented commands."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from clipglot.cli.main import main
from support import source_makers as makers
from support import url_sources as urls
from support.drawings import draw_images
from support.s3_server import Bucket
from support.source_contract import as_table, encoded_images
from support.tars import write_shards

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bucket")]

temporary = urls.temporary


class TestTable(urls.AtUrl, makers.JsonLines):
    pass


class TestTars(urls.AtUrl, makers.FolderOfTars):
    pass


class TestImg2dataset(urls.AtUrl, makers.Img2dataset):
    pass


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
        bucket.put(file.relative_to(tmp_path).as_posix(), file.read_bytes())
    for line in block.splitlines():
        command = shlex.split(line.replace(" pairs.jsonl", f" {table}").replace("-o ", f"-o {tmp_path}/"))
        given = [*command[1 : command.index("--model")], "--model", f"local-dir:{tiny_clip}", "--json"]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["status"] == {"embedded": 3}
