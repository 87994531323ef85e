"""The commands of docs/evaluation.md, on small sets of our own in the shapes of the public ones."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.demo.run import ENGLISH_CLIP
from PIL import Image
from support.class_folders import draw_classes

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##+ |\Z)", PAGE, re.DOTALL | re.MULTILINE))
NUM = 6
CAPTIONS = [f"картинка номер {i}" for i in range(NUM)]
KOREAN = [f"그림 {i}" for i in range(NUM)]


def write(folder: Path, name: str, lines: list[str]) -> None:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path, merged: Path) -> Path:
    """A folder with `merged` and the images of all sets."""
    (tmp_path / "merged").symlink_to(merged)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "images" / f"{i}.jpg")
    return tmp_path


def run_blocks(section: str, folder: Path, clip: Path) -> str:
    """Run the section's bash blocks as they stand; returns what they print."""
    blocks = re.findall(r"^```bash\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    assert blocks
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": python, "CLIP": f"--model local-dir:{clip}", "HF_HUB_OFFLINE": "1"}
    printed = ""
    for block in blocks:
        block = block.replace("ViT-B-32:openai", str(clip)).replace("cifar10 cifar100 ", "")  # one set tells all
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    return printed


def recalls(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "→" in line]


@pytest.mark.slow
def test_lines_of_image_and_caption(workplace: Path, tiny_clip: Path) -> None:
    write(workplace, "flickr30k-cn.txt", [f"{i}.jpg#zh#{k}\t第{i}张图，{k}" for i in range(NUM) for k in range(2)])
    write(workplace, "coco-cn.txt", [f"{i}#zh#0\t图片 {i}" for i in range(NUM)])
    printed = run_blocks("Flickr8k-CN, Flickr30k-CN, COCO-CN", workplace, tiny_clip)
    assert len(recalls(printed)) == 4
    cache = Cache(workplace / "flickr30k-cn.zarr")
    assert (len(cache), cache.captions(0, 2)) == (NUM, ["第0张图，0", "第0张图，1"])
    assert Cache(workplace / "coco-cn.zarr").info.counts == {"embedded": NUM}


@pytest.mark.slow
def test_files_of_names_and_captions(workplace: Path, tiny_clip: Path) -> None:
    write(workplace, "test_image_names.txt", [f"{i}.jpg" for i in range(NUM)])
    write(workplace, "test_1kcaptions_ru.txt", CAPTIONS)
    write(workplace, "test_1kcaptions_ko.txt", KOREAN)
    printed = run_blocks("XTD10, Multi30k", workplace, tiny_clip)
    assert len(recalls(printed)) == 6  # all, ru, ko
    assert Cache(workplace / "xtd10.zarr").count_languages() == {"ru": NUM, "ko": NUM}


@pytest.mark.slow
def test_crossmodal_3600(workplace: Path, tiny_clip: Path) -> None:
    lines = []
    for i in range(NUM):
        texts = {"ru": [CAPTIONS[i], f"ещё {i}"], "ko": [KOREAN[i]]}
        forms = {tag: {"caption": each, "caption/tokenized": [" ".join(each)]} for tag, each in texts.items()}
        lines.append(json.dumps({"image/key": str(i), "image/locale": "ru", **forms}))
    write(workplace, "captions.jsonl", lines)
    printed = run_blocks("Crossmodal-3600", workplace, tiny_clip)
    assert len(recalls(printed)) == 6
    assert Cache(workplace / "xm3600.zarr").count_languages() == {"ru": 2 * NUM, "ko": NUM}


@pytest.mark.slow
def test_muge(workplace: Path, tiny_clip: Path) -> None:
    folder = workplace / "MUGE"
    folder.mkdir()
    images = [base64.urlsafe_b64encode((workplace / "images" / f"{i}.jpg").read_bytes()).decode() for i in range(NUM)]
    write(folder, "valid_imgs.tsv", [f"{1000 + i}\t{image}" for i, image in enumerate(images)])
    queries: list[dict[str, Any]] = [
        {"query_id": i, "query_text": CAPTIONS[i], "item_ids": [1000 + i]} for i in range(NUM)
    ]
    texts = [{"text_id": q["query_id"], "text": q["query_text"], "image_ids": q["item_ids"]} for q in queries]
    write(folder, "valid_texts.jsonl", [json.dumps(text) for text in texts])
    write(folder, "valid_queries.jsonl", [json.dumps(query) for query in queries])
    printed = run_blocks("MUGE", workplace, tiny_clip)
    assert "mean recall" in printed
    lines = [json.loads(line) for line in (workplace / "predictions.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == list(range(NUM))
    assert all(sorted(line["item_ids"]) == [1000 + i for i in range(NUM)] for line in lines)


@pytest.mark.slow
def test_class_folders_and_babel_imagenet(workplace: Path, tiny_clip: Path) -> None:
    draw_classes(workplace / "photos", per_class=4)
    babel = {"RU": [[0, 2], ["синий", "красный"]], "KO": [[1], ["초록"]]}
    (workplace / "babel_imagenet.json").write_text(json.dumps(babel), encoding="utf-8")
    printed = run_blocks("Class folders", workplace, tiny_clip)
    assert "красный" in printed
    assert "4 embedded images without a class" in printed
    assert "zero-shot" in printed


@pytest.mark.slow
def test_the_guide_itself(workplace: Path, tiny_clip: Path, merged: Path) -> None:
    rows = [{"image": f"images/{i}.jpg", "ru": CAPTIONS[i], "ko": KOREAN[i]} for i in range(NUM)]
    write(workplace, "val.jsonl", [json.dumps(row) for row in rows])
    draw_classes(workplace / "photos", per_class=4)
    (workplace / "ru.txt").write_text("blue\tсиний\ngreen\tзелёный\nred\tкрасный|алый\n", encoding="utf-8")
    assert "ko" in run_blocks("Retrieval", workplace, tiny_clip)
    assert "зелёный" in run_blocks("Zero-shot classification", workplace, tiny_clip)
    shutil.copytree(workplace / "classes.zarr", workplace / "classes-test.zarr")
    assert "test images of 3 classes" in run_blocks("Linear probe", workplace, tiny_clip)
    assert "p95" in run_blocks("Speed", workplace, tiny_clip)


@pytest.mark.slow
def test_the_worked_example_of_several_sets(workplace: Path, tiny_clip: Path) -> None:
    draw_classes(workplace / "caltech101", per_class=4)
    (workplace / "caltech101.ru.txt").write_text("blue\tсиний\ngreen\tзелёный\nred\tкрасный\n", encoding="utf-8")
    run_blocks("Worked examples", workplace, tiny_clip)
    found = json.loads((workplace / "caltech101.zeroshot.json").read_text())
    page = (workplace / "caltech101.html").read_text(encoding="utf-8")
    assert [score["name"] for score in found["classes"]] == ["синий", "зелёный", "красный"]
    assert f"{found['top1']:.1%}".replace("%", " %") in page.replace("\u202f", " ").replace("\xa0", " ")
    assert json.loads((workplace / "caltech101.probe.json").read_text())["points"][-1]["shots"] is None


@pytest.mark.slow
def test_the_comparisons_of_the_guide(translated_manifests: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "merged").symlink_to(ENGLISH_CLIP)
    draw_classes(tmp_path / "photos", per_class=4)
    (tmp_path / "ru.txt").write_text("blue\tсиний\ngreen\tзелёный\nred\tкрасный\n", encoding="utf-8")
    (tmp_path / "en.txt").write_text("blue\ngreen\nred\n", encoding="utf-8")
    clip = f"--model local-dir:{ENGLISH_CLIP}"
    for source, cache, more in (
        (translated_manifests["val"], "val", "--teacher-field en"),
        (tmp_path / "photos", "classes", ""),
    ):
        command = f"{sys.executable} -m clipglot cache {source} -o {tmp_path}/{cache}.zarr {clip} {more}"
        subprocess.run(command.split(), check=True, capture_output=True)
    printed = run_blocks("Comparisons", tmp_path, ENGLISH_CLIP)
    assert "95 % interval" in printed
