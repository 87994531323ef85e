"""Data sets of the tutorials: drawings of coloured shapes with captions, as people have such files on disk.

    python examples/draw_data.py queries      # search queries in Russian, and class folders
    python examples/draw_data.py news         # a CSV of Chinese headlines, as it comes out of an archive
    python examples/draw_data.py videos       # thumbnails with Korean titles
    python examples/draw_data.py muge         # a folder in the layout of MUGE
    python examples/draw_data.py index        # a clip-retrieval folder, some rows with Chinese captions

Each writes a folder of its own name. The same command draws the same files.
"""

import argparse
import base64
import csv
import json
import random
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

from clipglot.demo.captions import Language, caption, class_prompt
from clipglot.demo.scenes import PAIRS, SHAPES, Scene, classification_scenes, draw, training_scenes

RUSSIAN_SHAPES = ["круг", "квадрат", "треугольник", "звезда", "сердце", "крест", "кольцо", "луна|полумесяц"]


def captions(scenes: Iterable[Scene], language: Language, num: int, *, seed: int) -> list[list[str]]:
    """Captions of each scene."""
    rng = random.Random(seed)
    return [[caption(scene, language, rng) for _ in range(num)] for scene in scenes]


def draw_all(folder: Path, scenes: Sequence[Scene], name: str = "{:05}.jpg") -> list[str]:
    """Draw scenes into a folder; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.format(i) for i in range(len(scenes))]
    for scene, file in zip(scenes, names, strict=True):
        draw(scene).save(folder / file, quality=92)
    return names


def write_tsv(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with tabs between its columns."""
    with open(file, "w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def queries(folder: Path) -> None:
    """`train.tsv`, `val.tsv`: a query a line, with the picture that was clicked; class folders with Russian names."""
    for part, num, seed in (("train", 900, 1), ("val", 200, 2)):
        scenes = training_scenes(num, seed=seed)
        names = draw_all(folder / part, scenes)
        texts = captions(scenes, "ru", 4, seed=seed)
        rows = [
            (f"{part}/{name}", query)
            for name, several in zip(names, texts, strict=True)
            for query in sorted(set(several))
        ]
        write_tsv(folder / f"{part}.tsv", ("image", "query"), rows)
    write_classes(folder)


def write_classes(folder: Path) -> None:
    """Class folders by shape and by shape and colour, with the names of the classes in Russian and English."""
    scenes, labels = classification_scenes(4, seed=3)
    for sets in ("shapes", "pairs"):
        for name in ("ru", "en"):
            (folder / f"{sets}.{name}.txt").write_text(
                "".join(f"{label}\t{text}\n" for label, text in class_names(sets, name)), encoding="utf-8"
            )
        for i, (scene, label) in enumerate(zip(scenes, labels, strict=True)):
            colour, shape = PAIRS[label]
            place = folder / sets / (shape if sets == "shapes" else f"{colour} {shape}")
            place.mkdir(parents=True, exist_ok=True)
            draw(scene).save(place / f"{i:04}.jpg", quality=92)


def class_names(sets: str, language: Language) -> list[tuple[str, str]]:
    """Labels, the names of the folders, and names in a language."""
    if sets == "shapes":
        return list(zip(SHAPES, RUSSIAN_SHAPES if language == "ru" else SHAPES, strict=True))
    return [(f"{colour} {shape}", class_prompt(colour, shape, language)) for colour, shape in PAIRS]


def news(folder: Path) -> None:
    """`news.csv` with broken pictures, whose headlines slipped down by a row; `fixed.csv` has them in their places."""
    scenes = training_scenes(900, seed=4)
    names = draw_all(folder / "pictures", scenes)
    headlines = [several[0] for several in captions(scenes, "zh", 1, seed=4)]
    pictures = folder / "pictures"
    for i in range(30, 60, 3):
        whole = (pictures / names[i]).read_bytes()
        (pictures / names[i]).write_bytes(whole[: len(whole) // 2])
        (pictures / names[i + 1]).write_text("<html><title>404 Not Found</title></html>")
        (pictures / names[i + 2]).unlink()
    for file, shift in (("news.csv", 1), ("fixed.csv", 0)):
        moved = headlines[-shift:] + headlines[:-shift] if shift else headlines
        with open(folder / file, "w", encoding="utf-8-sig", newline="") as lines:
            years = ["2025"] * 750 + ["2026"] * 150
            rows = [(f"pictures/{name}", *rest) for name, *rest in zip(names, moved, years, strict=True)]
            csv.writer(lines).writerows([("file", "headline", "year"), *rows])


def videos(folder: Path) -> None:
    """`train.jsonl`, `val.jsonl`: a thumbnail a line, with titles in Korean."""
    for part, num, seed in (("train", 300, 5), ("val", 100, 6)):
        scenes = training_scenes(num, seed=seed)
        names = draw_all(folder / part, scenes)
        texts = captions(scenes, "ko", 2, seed=seed)
        records = [
            {"thumbnail": f"{part}/{name}", "titles": several} for name, several in zip(names, texts, strict=True)
        ]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def muge(folder: Path) -> None:
    """Base64 images, texts and queries of a training and a validation part."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, num, seed in (("train", 900, 7), ("valid", 200, 8)):
        scenes = training_scenes(num, seed=seed)
        texts = captions(scenes, "zh", 2, seed=seed)
        ids = range(1000, 1000 + num)
        with open(folder / f"{part}_imgs.tsv", "w", encoding="ascii") as images:
            for id_, scene in zip(ids, scenes, strict=True):
                draw(scene).save(bytes_ := BytesIO(), "JPEG", quality=92)
                images.write(f"{id_}\t{base64.urlsafe_b64encode(bytes_.getvalue()).decode()}\n")
        rows = [(text, [id_]) for id_, several in zip(ids, texts, strict=True) for text in several]
        write_lines(folder / f"{part}_texts.jsonl", [
            {"text_id": i, "text": text, "image_ids": found} for i, (text, found) in enumerate(rows)
        ])  # fmt: skip
        write_lines(folder / f"{part}_queries.jsonl", [
            {"query_id": i, "query_text": text, "item_ids": found} for i, (text, found) in enumerate(rows[:200])
        ])  # fmt: skip


def write_lines(file: Path, records: Iterable[object]) -> None:
    """A record of JSON a line."""
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def index(folder: Path) -> None:
    """`laion`, embeddings of `images` with metadata; every second row has a Chinese caption, too."""
    import clipglot
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    scenes = training_scenes(900, seed=9)
    names = draw_all(folder / "images", scenes)
    clip = clipglot.load("demo/english_clip", device="cpu")
    emb = clip.encode_image([folder / "images" / name for name in names], progress=False).astype(np.float16)
    table = {
        "image_path": names,
        "caption": [several[0] for several in captions(scenes, "en", 1, seed=9)],
        "caption_zh": [s[0] if i % 2 == 0 else None for i, s in enumerate(captions(scenes, "zh", 1, seed=9))],
    }
    for number, start in enumerate(range(0, len(names), 500)):
        for name in ("img_emb", "metadata"):
            (folder / "laion" / name).mkdir(parents=True, exist_ok=True)
        part = slice(start, start + 500)
        np.save(folder / "laion" / "img_emb" / f"img_emb_{number}.npy", emb[part])
        file = folder / "laion" / "metadata" / f"metadata_{number}.parquet"
        pq.write_table(pa.table({name: column[part] for name, column in table.items()}), file)


SETS = {"queries": queries, "news": news, "videos": videos, "muge": muge, "index": index}


def main() -> None:
    """Draw one of the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    name = parser.parse_args().set
    SETS[name](Path(name))
    print(f"drew {name}/")


if __name__ == "__main__":
    main()
