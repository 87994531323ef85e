"""The commands of docs/search.md, from a clip-retrieval folder to a Chinese search page, and the example client."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
from support.embedding_files import read_given, write_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/search.md").read_text(encoding="utf-8")
CHINESE = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "circle": "圆形", "square": "方形"}


@pytest.mark.slow
def test_a_clip_retrieval_folder_becomes_a_chinese_search_page(
    tiny_cache: Path, tiny_clip: Path, manifest: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "laion", read_given(tiny_cache))
    chinese = dict[str, str]()
    for file in sorted(folder.glob("metadata/*.parquet")):
        table = pq.read_table(file)
        texts = [" ".join(CHINESE.get(word, word) for word in text.split()) for text in table["caption"].to_pylist()]
        pq.write_table(table.append_column("caption_zh", [texts]), file)
        chinese |= dict(zip(table["image_path"].to_pylist(), texts, strict=True))
    (tmp_path / "images").symlink_to(manifest.parent)
    section = PAGE[PAGE.index("## A clip-retrieval index in Chinese") :]
    (block,) = re.findall(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[:1]
    commands = block.splitlines()
    assert len(commands) == 4
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": python, "CLIP": f"--model local-dir:{tiny_clip}", "HF_HUB_OFFLINE": "1",
                                "XDG_CACHE_HOME": str(tmp_path / "home")}  # fmt: skip
    commands[1] += " --width 16 --heads 2 --layers 1 --vocab-size 300 --context-length 24 --batch-size 8 --epochs 2"
    for command in commands[:3]:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    serve = f"exec {commands[3]} --port 0 --json"
    with subprocess.Popen(
        ["bash", "-c", serve], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout is not None
            printed = ""
            while not printed.rstrip().endswith("}"):
                line = run.stdout.readline()
                assert line, printed
                printed += line
            url = json.loads(printed)["url"]
            with urlopen(f"{url}search?q={quote('红色')}&limit=5&fold=false") as answer:
                hits = json.load(answer)["hits"]
            assert len(hits) == 5
            assert [hit["captions"][0]["text"] for hit in hits] == [chinese[hit["key"]] for hit in hits]
            with urlopen(f"{url}image/{hits[0]['row']}") as answer:
                assert answer.read(4) == b"RIFF"
            example = [sys.executable, str(ROOT / "examples/search_client.py"), "红色", url.rstrip("/")]
            shown = subprocess.run(example, capture_output=True, text=True, check=True).stdout.splitlines()
            assert shown[0].split()[1] == hits[0]["key"]
        finally:
            run.send_signal(signal.SIGTERM)
        assert run.wait(15) == 0
