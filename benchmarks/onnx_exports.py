"""onnxruntime beside torch eager for one caption, and what smaller ONNX text models cost.

    scripts/bench onnx_exports MERGED --texts FILE --text-field zh --text-field en [--cache VAL]

One caption at a time on one thread: the module that is exported, in torch eager, the graph in onnxruntime on the same
ids, and the tower of `clip.encode_text`; without padding and padded to the context length. Rounds alternate between the
ways. The towers are that of MERGED and a random one of ViT-B/32's shape. Then the text model of MERGED is made smaller
in each way that `--quantize` has: its size, the cosines of captions with the float32 model's features, and recalls.

Not called onnx.py: as a script it would stand in the place of the package.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import torch
from clipglot.cache.read.cache import Cache
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower
from clipglot.encoders.text_tower import TextTower
from clipglot.encoders.tokenizer import TextTokenizer, open_clip_tokenizer
from clipglot.evals.captions import cached_captions, retrieve_captions
from clipglot.exports.onnx_quantize import Quantization, quantize
from clipglot.exports.onnx_towers import text_graph, write_graph
from clipglot.inference.onnx_clip import OnnxClip
from clipglot.inference.onnx_layout import MODEL, TEXTUAL
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings

VIT_B_32 = {"embed_dim": 512, "context_length": 77, "width": 512, "heads": 8, "layers": 12, "quick_gelu": False}


def read_texts(file: Path, field: str) -> list[str]:
    """All captions of a field, of JSONL."""
    texts: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        given = json.loads(line)[field]
        texts += given if isinstance(given, list) else [given]
    return texts


def vit_b_32() -> tuple[TextTower, TextTokenizer]:
    """A text tower of ViT-B/32's shape with random weights, and open_clip's tokenizer."""
    torch.manual_seed(0)
    tokenizer = open_clip_tokenizer()
    ids = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
    return ScratchTower(ScratchConfig(**VIT_B_32, **ids)).eval(), tokenizer


def session(file: Path) -> Any:
    """A graph on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def arrays(names: Sequence[str], ids: list[int], length: int, pad_id: int) -> dict[str, Any]:
    """What a graph takes of one caption in so many slots."""
    padded = np.full((1, length), pad_id, np.int32)
    padded[0, : len(ids)] = ids
    mask = (np.arange(length) < len(ids)).astype(np.int32)[None]
    return dict(zip(names, (padded, mask), strict=False))


@torch.inference_mode()
def latency(
    name: str, tower: TextTower, tokenizer: TextTokenizer, texts: list[str], folder: Path, rounds: int
) -> list[str]:
    """Rows of the table for a tower."""
    tower = tower.plain().eval()
    graph = text_graph(tower)
    write_graph(graph, folder / MODEL)
    module, runtime, context = graph.module.eval(), session(folder / MODEL), tower.config.context_length
    encoded = tokenizer.encode(texts, context)
    rows, names = [], list(graph.inputs)
    for padding in ("none", f"to {context}"):
        given = [
            arrays(names, ids, len(ids) if padding == "none" else context, tokenizer.pad_id or 0) for ids in encoded
        ]
        tensors = [[torch.from_numpy(each) for each in one.values()] for one in given]
        ways: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
            "torch eager": (lambda one: module(*one).numpy(), tensors),
            "onnxruntime": (lambda one: runtime.run(None, one)[0], given),
        }
        if padding == "none":
            ways["clipglot (torch)"] = (lambda ids: tower.encode([ids]).numpy(), encoded)
        for i in range(min(len(texts), 8)):  # also warms up
            found = {way: run(inputs[i]) for way, (run, inputs) in ways.items()}
            scale = np.linalg.norm(found["torch eager"])
            for way, features in found.items():
                assert np.abs(features - found["torch eager"]).max() / scale < 1e-5, way
        ms: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (run, inputs) in ways.items():
                started = time.perf_counter()
                for one in inputs:
                    run(one)
                ms[way].append(1000 * (time.perf_counter() - started) / len(texts))
        for way, each in ms.items():
            ratios = [eager / own for eager, own in zip(ms["torch eager"], each, strict=True)]
            rows.append(
                f"| {name} | {padding} | {way} | {statistics.median(each):.2f} | {min(each):.2f} to {max(each):.2f} | "
                f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )
    return rows


def cosines(clip: OnnxClip, texts: dict[str, list[str]], exact: dict[str, Any]) -> str:
    """Smallest, first percentile and median of the cosines of each field."""
    parts = []
    for field, given in texts.items():
        values = (clip.encode_texts(given) * exact[field]).sum(1)
        low, middle = np.percentile(values, (1, 50))
        parts.append(f"{field} {values.min():.4f}, {low:.4f}, {middle:.4f}")
    return "; ".join(parts)


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("merged", type=Path, help="folder of a merged CLIP")
    parser.add_argument("--texts", type=Path, required=True, help="JSONL with captions")
    parser.add_argument("--text-field", action="append", required=True)
    parser.add_argument("--cache", type=Path, help="of the same image tower, for recalls")
    parser.add_argument("--num-latency", type=int, default=50, help="captions of a round, one at a time")
    parser.add_argument("--num-cosine", type=int, default=1000, help="captions of each field that cosines are of")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    texts = {}
    for field in arguments.text_field:
        texts[field] = read_texts(arguments.texts, field)
        rng.shuffle(texts[field])
    clip = load_merged(arguments.merged)
    assert clip.text_tower is not None, "a tower of clipglot"
    per_field = -(-arguments.num_latency // len(texts))
    mixed = [text for given in texts.values() for text in given[:per_field]]
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, 1 thread, {len(mixed)} captions a round, "
    )
    print(f"{arguments.rounds} rounds\n")
    print("| tower | padding | way | ms a caption, median | spread | torch eager / it |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        of_merged = (arguments.merged.name, clip.text_tower, clip.tokenizer)
        for name, tower, tokenizer in (of_merged, ("ViT-B/32", *vit_b_32())):
            folder = Path(scratch) / name.replace("/", "-")
            folder.mkdir()
            for row in latency(name, tower, tokenizer, mixed, folder, arguments.rounds):
                print(row, flush=True)
        print("\n| text model | MB | of its size | cosine: smallest, 1 %, median | R@1, R@5, R@10 text→image |")
        print("|---|---|---|---|---|")
        whole = Path(scratch) / "float32"
        export_run(ExportSettings(run=arguments.merged, output=whole, format=("onnx",)))
        table = text_graph(clip.text_tower.plain()).table
        assert table is not None, "of text towers"
        chosen = {field: given[: arguments.num_cosine] for field, given in texts.items()}
        exact = {field: OnnxClip(whole).encode_texts(given) for field, given in chosen.items()}
        size = (whole / TEXTUAL / MODEL).stat().st_size
        for how in ("float32", *get_args(Quantization)):
            folder = Path(scratch) / how
            if how != "float32":
                shutil.copytree(whole, folder)
                (folder / TEXTUAL / MODEL).unlink()
                quantize(whole / TEXTUAL / MODEL, folder / TEXTUAL / MODEL, how, table.detach().numpy())
            smaller, own = OnnxClip(folder), (folder / TEXTUAL / MODEL).stat().st_size
            recalls = "not measured"
            if arguments.cache:
                captions = cached_captions(Cache(arguments.cache))
                found = retrieve_captions(captions, smaller.encode_texts(captions.texts))
                ranks = found.report().text_to_image
                recalls = f"{ranks.r_at_1:.1%}, {ranks.r_at_5:.1%}, {ranks.r_at_10:.1%}"
            of_texts = cosines(smaller, chosen, exact)
            print(f"| {how} | {own / 1e6:.1f} | {own / size:.2f} | {of_texts} | {recalls} |", flush=True)


if __name__ == "__main__":
    main()
