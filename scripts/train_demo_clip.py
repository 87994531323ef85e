"""Training of the demo's English CLIP, from scratch on the CPU; writes an open_clip folder.

    python scripts/train_demo_clip.py [--steps 1000] [--out demo/english_clip]

Draws scenes, trains a tokenizer on their English captions and both towers on the pairs, writes the folder, loads it
with open_clip, measures it, and writes the figures into the model card.
"""

import argparse
import json
import math
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

# Actively waiting threads starve each other on cores shared with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from clipglot.demo import scenes as world
from clipglot.demo.captions import caption, class_prompt
from clipglot.demo.grammars import Language
from clipglot.demo.scenes import Pair, Scene, draw
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor

CONTEXT_LENGTH = 24  # the longest caption has 22 words, one token each, plus <bos> and <eos>
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Data and training settings; the architecture is in `model_config`.

    Attributes:
        captions: English captions per scene; each step draws one of them.
        lr: peak rate of AdamW, for embeddings, biases, norms and projections.
        matrix_lr: peak rate of Muon, for the matrices inside the blocks.
        warmup: steps of linear warm-up; a cosine decay follows.
    """

    scenes: int = 30_000
    captions: int = 6
    steps: int = 1_000
    batch_size: int = 256
    lr: float = 2e-3
    matrix_lr: float = 0.02
    warmup: int = 60
    weight_decay: float = 0.1
    seed: int = 0


def model_config(vocab_size: int) -> dict[str, object]:
    """Configuration of both towers in the form of open_clip: 0.9 M parameters for images, 0.5 M for text."""
    return {
        "embed_dim": 128,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 128, "layers": 4, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "english_clip",  # any name: open_clip then takes the folder itself
            "width": 128,
            "heads": 4,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": 2,
            "pad_id": 0,
        },
    }


class Muon(torch.optim.Optimizer):
    """Muon: momentum with each matrix update replaced by the nearest orthogonal matrix (K. Jordan et al., 2024).

    Needs less than half of AdamW's steps for these towers. torch.optim.Muon computes in bfloat16, which takes a hundred
    times as long on processors without bfloat16 arithmetic.
    """

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(average, group["momentum"])
                # nn.MultiheadAttention stores queries, keys and values in one matrix; each is orthogonalized alone.
                parts = direction.chunk(3) if p.shape[0] == 3 * p.shape[1] else (direction,)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.cat([orthogonal(part) for part in parts]), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Move all singular values of [M, N] towards sqrt(max(1, M / N)) by Muon's quintic Newton-Schulz iteration."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    return x * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def pixels(scenes: list[Scene]) -> Tensor:
    """Images of scenes, [N, 64, 64, 3] uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes]))


def pixels_in_parallel(scenes: list[Scene]) -> Tensor:
    """Images of scenes, drawn by two processes."""
    portions = [scenes[i : i + 1_000] for i in range(0, len(scenes), 1_000)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return torch.cat(list(pool.map(pixels, portions)))


def normalize(images: Tensor) -> Tensor:
    """Input of the tower, [B, 3, 64, 64] float32, from pixels [B, 64, 64, 3] uint8."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN[0]) / STD[0]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE, which encodes text of any language."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {"special_tokens": ["<pad>", "<bos>", "<eos>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, show_progress=False, **options))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Token ids [N, CONTEXT_LENGTH] int64, padded with 0."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert max(map(len, ids)) <= CONTEXT_LENGTH
    return torch.tensor([row + [0] * (CONTEXT_LENGTH - len(row)) for row in ids])


def contrastive_loss(image_emb: Tensor, text_emb: Tensor, scale: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss over a batch; equal captions of different images are not negatives of each other."""
    logits = scale * image_emb @ text_emb.T
    diagonal = torch.arange(len(tokens))
    same = (tokens[:, None] == tokens[None]).all(-1) & (diagonal[:, None] != diagonal)
    logits = logits.masked_fill(same, -math.inf)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def train(model: torch.nn.Module, images: Tensor, tokens: Tensor, settings: Settings) -> None:
    """Fit both towers to images [N, 64, 64, 3] and their captions [N, C, CONTEXT_LENGTH]."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "resblocks" in name}
    others = [p for name, p in model.named_parameters() if name not in matrices]
    decayed = {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay}
    undecayed = {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0}
    optimizers = [
        (torch.optim.AdamW([decayed, undecayed], betas=(0.9, 0.98), fused=True), settings.lr),
        (Muon(list(matrices.values()), lr=settings.matrix_lr, weight_decay=settings.weight_decay), settings.matrix_lr),
    ]
    started = time.perf_counter()
    for step in range(settings.steps):
        warmup = min(1.0, (step + 1) / settings.warmup)
        decay = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        rows = torch.randperm(len(images))[: settings.batch_size]
        batch = tokens[rows, torch.randint(tokens.shape[1], (len(rows),))]
        image_emb = model.encode_image(normalize(images[rows]), normalize=True)
        text_emb = model.encode_text(batch, normalize=True)
        loss = contrastive_loss(image_emb, text_emb, model.logit_scale.exp(), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * warmup * decay
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 25 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s", flush=True)


def write(folder: Path, model: torch.nn.Module, tokenizer: Tokenizer, config: dict[str, object]) -> None:
    """Write the folder that open_clip's `local-dir:` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    document = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(document + "\n")
    halves = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(halves, folder / "open_clip_model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    loading = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "model_max_length": CONTEXT_LENGTH,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(loading, indent=2) + "\n")


@torch.no_grad()
def measure(folder: Path) -> dict[str, float]:
    """Load the folder with open_clip and measure it on held-out scenes."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def embed(scenes: list[Scene]) -> Tensor:
        images = torch.stack([preprocess(draw(scene)) for scene in scenes])
        return torch.cat([model.encode_image(batch, normalize=True) for batch in images.split(64)])

    def accuracy(pairs: tuple[Pair, ...], language: Language) -> float:
        scenes, labels = world.classification_scenes(20, seed=1, pairs=pairs)
        prompts = tokenizer([class_prompt(colour, shape, language) for colour, shape in world.PAIRS])
        similarity = embed(scenes) @ model.encode_text(prompts, normalize=True).T
        return (similarity.argmax(1) == torch.tensor(labels)).float().mean().item()

    scenes = world.held_out_scenes(1_000, seed=1)
    queries = [caption(scene, "en", random.Random(i), complete=True) for i, scene in enumerate(scenes)]
    similarity = model.encode_text(tokenizer(queries), normalize=True) @ embed(scenes).T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    model.encode_image(batch := torch.randn(64, 3, 64, 64))
    started = time.perf_counter()
    for _ in range(20):
        model.encode_image(batch)
    return {
        "images per second at batch 64, two threads": 20 * 64 / (time.perf_counter() - started),
        "zero-shot accuracy, held-out pairs, English prompts": accuracy(world.HELD_OUT, "en"),
        "zero-shot accuracy, trained pairs, English prompts": accuracy(world.TRAINED, "en"),
        "zero-shot accuracy, held-out pairs, Russian prompts": accuracy(world.HELD_OUT, "ru"),
        "text to image R@1 among 1,000 held-out scenes": (rank < 1).float().mean().item(),
        "text to image R@5 among 1,000 held-out scenes": (rank < 5).float().mean().item(),
        "text to image R@10 among 1,000 held-out scenes": (rank < 10).float().mean().item(),
    }


CARD = """# A small English CLIP

The teacher of `clipglot demo`: two towers of {millions:.1f} M parameters together, trained from scratch on drawn scenes
and their English captions. It knows only coloured shapes. License: Apache-2.0, like the code.

    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:demo/english_clip")
    model.eval()
    tokenizer = open_clip.get_tokenizer("local-dir:demo/english_clip")

Trained by `scripts/train_demo_clip.py`: {scenes:,} scenes without the 16 held-out (colour, shape) pairs,
{captions} captions of each, {steps:,} steps of {batch_size} pairs (Muon {matrix_lr:g}, AdamW {lr:g}, cosine), seed
{seed}; {seconds:,.0f} s on two shared CPU cores, drawing included. Weights are stored in float16.

Measured by the same script on held-out scenes; chance is 0.016 for classification into 64 classes:

| | |
| --- | --- |
{figures}
"""


def main() -> None:
    """Draw, train, write and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo" / "english_clip")
    args = parser.parse_args()
    settings = Settings(steps=args.steps)
    started = time.perf_counter()
    torch.set_num_threads(2)
    torch.manual_seed(settings.seed)

    scenes = world.training_scenes(settings.scenes, seed=settings.seed)
    rng = random.Random(settings.seed)
    texts = [caption(scene, "en", rng) for scene in scenes for _ in range(settings.captions)]
    tokenizer = train_tokenizer(texts)
    tokens = tokenize(tokenizer, texts).view(settings.scenes, settings.captions, CONTEXT_LENGTH)
    images = pixels_in_parallel(scenes)
    print(f"drew {len(scenes):,} scenes in {time.perf_counter() - started:.0f} s")

    config = model_config(tokenizer.get_vocab_size())
    model = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    train(model, images, tokens, settings)
    write(args.out, model, tokenizer, config)
    seconds = time.perf_counter() - started

    figures = measure(args.out)
    rows = [f"| {name} | {f'{value:,.0f}' if value > 1 else f'{value:.3f}'} |" for name, value in figures.items()]
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    card = CARD.format(**vars(settings), millions=millions, seconds=seconds, figures="\n".join(rows))
    (args.out / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
