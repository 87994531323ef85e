"""The demo: draw, cache, train and export, then measure the result with plain open_clip."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.location import Location
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..distill.train_settings import TrainSettings
from ..encoders.merged_clip import MergedClip, load_merged
from ..evals.retrieval import retrieve
from ..evals.zeroshot import zero_shot_accuracy
from ..jobs.cache import CacheResult, cache_images
from ..jobs.export import export_run
from ..jobs.report import report as write_report
from ..jobs.settings.cache import CacheSettings
from ..jobs.settings.export import ExportSettings
from ..jobs.settings.report import ReportSettings
from ..jobs.train import train
from .captions import caption, class_prompt
from .grammars import Language
from .scenes import HELD_OUT, PAIRS, Scene, classification_scenes, draw, held_out_scenes, training_scenes
from .settings import BATCH_SIZE, DemoSettings

ENGLISH_CLIP = Path(__file__).parent / "english_clip"
NUM_HELD_OUT = 500  # images to retrieve
PER_CLASS = 20  # images of each held-out class
CAPTIONS_PER_IMAGE = 3


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy and recall of a text tower on images of combinations that no training image shows."""

    tower: str
    prompts: Language
    accuracy: float
    r_at_1: float
    r_at_10: float


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The demo's results.

    Attributes:
        scores: of the English tower with English prompts, the same with those of the new language, and the new tower.
        chance: the same three measures of random guesses.
        stage_s: seconds of each stage.
        num_pictures: images that were trained on.
        epochs: of training.
        pass_s: seconds of one pass of the training images through the image tower, decoding included.
        train_s: seconds of training on the cache.
        folder: with the images, the caches, the run and the merged CLIP.
        report: page of the results in it; None where the extra `report` is not installed.
    """

    scores: list[Score]
    chance: dict[str, float]
    stage_s: dict[str, float]
    num_pictures: int
    epochs: int
    pass_s: float
    train_s: float
    folder: Path
    report: Path | None

    @property
    def uncached_s(self) -> float:
        """Seconds of training if the image tower embedded every image again in every epoch."""
        return self.epochs * self.pass_s + self.train_s


@dataclass(frozen=True, kw_only=True)
class _Scenes:
    """The scenes of a demo: a cache is made of each of the three sets.

    Attributes:
        train: scenes to train on.
        unseen: scenes with held-out combinations, for retrieval.
        classes: single objects of held-out combinations, for zero-shot classification.
        labels: the class of each of these.
        queries: by language, a complete caption of each unseen scene.
    """

    train: list[Scene]
    unseen: list[Scene]
    classes: list[Scene]
    labels: list[int]
    queries: dict[Language, list[str]]

    def __len__(self) -> int:
        return len(self.train) + len(self.unseen) + len(self.classes)


def run_demo(settings: DemoSettings, folder: Path, on_progress: OnProgress = ignore_progress) -> DemoReport:
    """Run the whole workflow in an existing, empty folder.

    Args:
        settings: sizes, language and seed.
        folder: gets the images, the caches, the run and the merged CLIP.
        on_progress: called with the stages `draw`, `cache`, `train`, `export`, `measure` and `report`.

    Raises:
        KeyboardInterrupt: training was stopped.
    """
    stage_s: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[Callable[[int, int | None], None]]:
        started = time.perf_counter()
        on_progress(Progress(name, 0))
        yield lambda done, total: on_progress(Progress(name, done, total))
        stage_s[name] = time.perf_counter() - started

    with stage("draw") as progress:
        scenes = _draw_all(settings, folder, progress)
    with stage("cache") as progress:
        caches = _cache_all(folder, scenes, progress)
    with stage("train") as progress:
        _train(settings, folder, caches["train"].cache.path, progress)
    with stage("export"):
        export_run(ExportSettings(run=folder / "run", output=folder / "merged"))
    with stage("measure"):
        scores = _measure(settings.language, folder, scenes, caches)
    with stage("report"):
        page = _write_report(settings.language, folder)
    return DemoReport(
        scores=scores,
        chance={"accuracy": 1 / len(PAIRS), "r_at_1": 1 / NUM_HELD_OUT, "r_at_10": 10 / NUM_HELD_OUT},
        stage_s=stage_s,
        num_pictures=settings.pictures,
        epochs=settings.epochs,
        pass_s=caches["train"].report.wall_s,
        train_s=stage_s["train"],
        folder=folder,
        report=page,
    )


def _draw_all(settings: DemoSettings, folder: Path, progress: Callable[[int, int | None], None]) -> _Scenes:
    language, seed = settings.language, settings.seed
    unseen = held_out_scenes(NUM_HELD_OUT, seed=seed)
    classes, labels = classification_scenes(PER_CLASS, seed=seed, pairs=HELD_OUT)
    rng = random.Random(seed)
    scenes = _Scenes(
        train=training_scenes(settings.pictures, seed=seed),
        unseen=unseen,
        classes=classes,
        labels=labels,
        queries={
            spoken: [caption(scene, spoken, rng, complete=True) for scene in unseen] for spoken in ("en", language)
        },
    )
    captions = [[caption(scene, language, rng) for _ in range(CAPTIONS_PER_IMAGE)] for scene in scenes.train]
    drawn = chain(
        _draw_pairs(folder / "train", scenes.train, captions),
        _draw_pairs(folder / "unseen", unseen, [[query] for query in scenes.queries[language]], scenes.queries["en"]),
        _draw_pairs(folder / "classes", classes, [[class_prompt(*PAIRS[label], language)] for label in labels]),
    )
    for num_drawn, _ in enumerate(drawn, 1):
        progress(num_drawn, len(scenes))
    return scenes


def _draw_pairs(
    folder: Path, scenes: Sequence[Scene], captions: Sequence[list[str]], english: Sequence[str] = ()
) -> Iterator[Path]:
    """Draw scenes and write the table of their captions and translations; yield the file of each image."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as table:
        for i, (scene, texts) in enumerate(zip(scenes, captions, strict=True)):
            image = f"images/{i:05}.png"
            draw(scene).save(folder / image)
            record = {"image": image, "text": texts} | ({"en": english[i]} if english else {})
            table.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield folder / image


def _cache_all(folder: Path, scenes: _Scenes, progress: Callable[[int, int | None], None]) -> dict[str, CacheResult]:
    """Cache the three sets of images, with one progress over all."""
    caches: dict[str, CacheResult] = {}
    num_cached = 0

    def show(at: Progress) -> None:
        if at.stage == "embed":
            progress(num_cached + at.done, len(scenes))

    for name in ("train", "unseen", "classes"):
        settings = CacheSettings(
            source=folder / name / "pairs.jsonl",
            output=folder / f"{name}.zarr",
            model=f"local-dir:{ENGLISH_CLIP}",
            device="cpu",
            teacher_field=("en",) if name == "unseen" else (),
        )
        caches[name] = cache_images(settings, show)
        num_cached += len(caches[name].cache)
    return caches


def _train(settings: DemoSettings, folder: Path, cache: Location, progress: Callable[[int, int | None], None]) -> None:
    def show(at: Progress) -> None:
        if at.stage == "train":
            progress(at.done, at.total)

    result = train(
        TrainSettings(
            cache=cache,
            output=folder / "run",
            width=128,
            layers=2,
            heads=4,
            context_length=48,
            vocab_size=1_000,
            batch_size=BATCH_SIZE,
            epochs=settings.epochs,
            lr=3e-3,
            seed=settings.seed,
            device="cpu",
        ),
        on_progress=show,
    )
    if not result.complete:
        raise KeyboardInterrupt


def _measure(language: Language, folder: Path, scenes: _Scenes, caches: dict[str, CacheResult]) -> list[Score]:
    """Score the English text tower with English captions and with those of the new language, then the new tower."""
    english, merged = load_merged(ENGLISH_CLIP), load_merged(folder / "merged")
    towers: list[tuple[str, MergedClip, Language]] = [("English tower", english, "en")]
    if language != "en":
        towers.append(("English tower", english, language))
    towers.append(("new tower", merged, language))
    image_emb = {name: result.cache.image_emb().astype(np.float32) for name, result in caches.items()}
    labels = np.asarray(scenes.labels)
    return [
        _score(name, clip, spoken, image_emb["classes"], labels, image_emb["unseen"], scenes.queries[spoken])
        for name, clip, spoken in towers
    ]


def _write_report(language: Language, folder: Path) -> Path | None:
    """Page of the run beside the English tower, which reads English; None where what draws it is not installed."""
    if not (find_spec("matplotlib") and find_spec("jinja2")):
        return None
    names: dict[Language, Path] = {"en": folder / "classes-en.txt", language: folder / f"classes-{language}.txt"}
    for spoken, file in names.items():
        lines = [f"{class_prompt(*pair, language)}\t{class_prompt(*pair, spoken)}\n" for pair in PAIRS]
        file.write_text("".join(lines), encoding="utf-8")
    settings = ReportSettings(
        runs=(folder / "run",),
        cache=(folder / "unseen.zarr", folder / "classes.zarr"),
        classes=names[language],
        distractors=True,
        against=str(ENGLISH_CLIP),
        against_classes=names["en"],
        translations=True,
        output=folder / "report.html",
    )
    return write_report(settings).file


def _score(
    tower: str,
    clip: MergedClip,
    language: Language,
    class_images: NDArray[np.float32],
    labels: NDArray[np.int64],
    images: NDArray[np.float32],
    captions: Sequence[str],
) -> Score:
    """Classify the single objects among all pairs, and find each held-out scene by its caption."""
    prompts = clip.encode_texts([class_prompt(*pair, language) for pair in PAIRS])
    ranks = retrieve(clip.encode_texts(captions), images, np.arange(len(images))).report().text_to_image
    return Score(
        tower=tower,
        prompts=language,
        accuracy=zero_shot_accuracy(class_images, labels, prompts),
        r_at_1=ranks.r_at_1,
        r_at_10=ranks.r_at_10,
    )
