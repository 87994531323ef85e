"""The demo: draw, cache, train, export, then measure the result with plain open_clip."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.progress import OnProgress, Progress
from ..distill.train_settings import TrainSettings
from ..encoders.merged_clip import MergedClip, load_merged
from ..evals.retrieval import retrieve
from ..evals.zeroshot import zero_shot_accuracy
from ..jobs.cache import CacheResult, cache_images
from ..jobs.export import export_run
from ..jobs.settings.cache import CacheSettings
from ..jobs.settings.export import ExportSettings
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
    """What a text tower reaches on images of combinations that no training image shows."""

    tower: str
    prompts: Language
    accuracy: float
    r_at_1: float
    r_at_10: float


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The demo's results.

    Attributes:
        scores: the English tower with English prompts, with the new language's, and the new tower.
        chance: of the same three measures.
        stage_s: seconds of each stage.
        num_pictures: that were trained on.
        epochs: of training.
        pass_s: seconds of one pass of the training images through the image tower, decoding included.
        train_s: seconds of training on the cache.
        folder: where everything is.
    """

    scores: list[Score]
    chance: dict[str, float]
    stage_s: dict[str, float]
    num_pictures: int
    epochs: int
    pass_s: float
    train_s: float
    folder: Path

    @property
    def uncached_s(self) -> float:
        """Seconds that cache and training would have taken with every image through the tower in every epoch."""
        return self.epochs * self.pass_s + self.train_s


def run_demo(settings: DemoSettings, folder: Path, on_progress: OnProgress) -> DemoReport:
    """Do the whole job in an existing, empty folder."""
    stage_s: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[Callable[[int, int | None], None]]:
        started = time.perf_counter()
        on_progress(Progress(name, 0))
        yield lambda done, total: on_progress(Progress(name, done, total))
        stage_s[name] = time.perf_counter() - started

    language = settings.language
    training = training_scenes(settings.pictures, seed=settings.seed)
    unseen = held_out_scenes(NUM_HELD_OUT, seed=settings.seed)
    single, labels = classification_scenes(PER_CLASS, seed=settings.seed, pairs=HELD_OUT)
    rng = random.Random(settings.seed)
    told = {spoken: [caption(scene, spoken, rng, complete=True) for scene in unseen] for spoken in ("en", language)}
    num_drawn = len(training) + len(unseen) + len(single)
    with stage("draw") as progress:
        for done, _ in enumerate(
            chain(
                _draw_pairs(folder / "train", training, [_captions(scene, language, rng) for scene in training]),
                _draw_pairs(folder / "unseen", unseen, [[text] for text in told[language]]),
                _draw_pairs(folder / "classes", single, [[class_prompt(*PAIRS[i], language)] for i in labels]),
            )
        ):
            progress(done + 1, num_drawn)

    caches: dict[str, CacheResult] = {}
    with stage("cache") as progress:
        for name, before in (("train", 0), ("unseen", len(training)), ("classes", len(training) + len(unseen))):
            wanted = CacheSettings(
                source=folder / name / "pairs.jsonl",
                output=folder / f"{name}.zarr",
                model=f"local-dir:{ENGLISH_CLIP}",
                device="cpu",
            )
            caches[name] = cache_images(
                wanted,
                lambda stage, done, total, before=before: (  # type: ignore[misc]
                    progress(before + done, num_drawn) if stage == "embed" else None
                ),
            )

    with stage("train") as progress:
        recipe = TrainSettings(
            cache=caches["train"].cache.path,
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
        )
        if not train(
            recipe, on_progress=lambda at: progress(at.done, at.total) if at.stage == "train" else None
        ).complete:
            raise KeyboardInterrupt

    with stage("export"):
        export_run(ExportSettings(run=folder / "run", output=folder / "merged"))

    with stage("measure"):
        english, merged = load_merged(ENGLISH_CLIP), load_merged(folder / "merged")
        pairs: list[tuple[str, MergedClip, Language]] = [("English tower", english, "en")]
        if language != "en":
            pairs.append(("English tower", english, language))
        pairs.append(("new tower", merged, language))
        image_emb = {name: cached.cache.image_emb().astype(np.float32) for name, cached in caches.items()}
        scores = [
            _score(name, clip, prompts, image_emb["classes"], np.asarray(labels), image_emb["unseen"], told[prompts])
            for name, clip, prompts in pairs
        ]
    return DemoReport(
        scores=scores,
        chance={"accuracy": 1 / len(PAIRS), "r_at_1": 1 / NUM_HELD_OUT, "r_at_10": 10 / NUM_HELD_OUT},
        stage_s=stage_s,
        num_pictures=settings.pictures,
        epochs=settings.epochs,
        pass_s=caches["train"].report.wall_s,
        train_s=stage_s["train"],
        folder=folder,
    )


def _captions(scene: Scene, language: Language, rng: random.Random) -> list[str]:
    return [caption(scene, language, rng) for _ in range(CAPTIONS_PER_IMAGE)]


def _draw_pairs(folder: Path, scenes: Sequence[Scene], captions: Sequence[list[str]]) -> Iterator[Path]:
    """Draw scenes and write their manifest; yields each image's file."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as manifest:
        for i, (scene, texts) in enumerate(zip(scenes, captions, strict=True)):
            image = f"images/{i:05}.png"
            draw(scene).save(folder / image)
            manifest.write(json.dumps({"image": image, "text": texts}, ensure_ascii=False) + "\n")
            yield folder / image


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
    ranks = retrieve(clip.encode_texts(captions), images, np.arange(len(images))).text_to_image
    return Score(
        tower=tower,
        prompts=language,
        accuracy=zero_shot_accuracy(class_images, labels, prompts),
        r_at_1=ranks.r_at_1,
        r_at_10=ranks.r_at_10,
    )
