"""The code of docs/python.md runs, with a tiny tower instead of a downloaded one."""

import re
import shutil
from pathlib import Path
from typing import Any

import clipglot
import pytest
from support.drawings import draw_images

PAGE = Path(clipglot.__file__).parent / "docs" / "python.md"
SMALL = 'epochs=1, width=16, heads=2, layers=1, vocab_size=300, batch_size=8, device="cpu"'


def test_the_code_of_the_page_runs(
    merged: Path, tiny_cache: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path, 12).rename("pairs.jsonl")
    shutil.copy("images/0000.png", "photo.jpg")
    Path("images").rename("photos")
    Path("pairs.jsonl").write_text(Path("pairs.jsonl").read_text().replace("images/", "photos/"))
    Path("broken.jpg").write_bytes(b"no image")
    Path("merged").symlink_to(merged)
    for name in ("train.zarr", "val.zarr"):
        Path(name).symlink_to(tiny_cache)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace('model="ViT-B-32", pretrained="openai"', f'model="local-dir:{tiny_clip}", num_workers=1')
        code = code.replace('recipe="few"', SMALL)
        if "skip_errors" in code:
            with pytest.warns(UserWarning, match="image 1: broken.jpg"):
                exec(code, names)
        else:
            exec(code, names)
    assert len(names["frame"]) == len(names["cache"])
    assert names["report"].text_to_image.num_queries > 0
