"""Text→image recall of the recipes on real pairs, against TF-IDF + ridge in closed form.

    scripts/bench recipes zh --data ../shared/data --work /tmp/recipes
    scripts/bench recipes en --data ../shared/data --work /tmp/recipes --lm path/to/minilm
    scripts/bench recipes frozen …   Chinese: a head on the features of a frozen multilingual model, beside `few`
    scripts/bench recipes lora …     LoRA beside the whole language model
    scripts/bench recipes emoji …    emoji by their Russian short names
    scripts/bench recipes warm …     ridge warm starts beside none, on a tenth held out of the training images

Runs the command line as a user would. Prints a Markdown table and the commands. Caches, runs and exports that the
working folder already has are reused.
"""

import argparse
import hashlib
import json
import shlex
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from baseline import tfidf_ridge
from clipglot.cache.read.cache import Cache
from clipglot.distill.training.run_folder import RunFolder
from clipglot.evals.retrieval import Ranks

FROZEN_HEADS = ("linear", "mlp", "glu", "deep")


class Bench:
    """A working folder and the commands run in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.work, self.lm = options.data, options.work, options.lm
        self.extra = shlex.split(options.train)
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}  # of the runs that were trained now, by name

    def cache(self, name: str, source: Path, language: str, image_root: Path) -> Path:
        """The cache of a manifest, made now or earlier."""
        path = self.work / f"{name}.zarr"
        weights = self.data / "deit_tiny" / "model.safetensors"
        tower = ["--model", "timm/deit_tiny_patch16_224", "--pretrained", weights]
        self._run("cache", source, "-o", path, "--image-root", image_root, "--text-field", language, *tower)
        return path

    def train(self, name: str, cache: Path, *settings: Any) -> Path:
        """A training run, made now or earlier."""
        run = self.work / name
        if not (run / "final").exists():
            started = time.perf_counter()
            report = self._run("train", cache, "-o", run, *settings, *self.extra, "--json")
            self.seconds[name] = time.perf_counter() - started
            run.with_suffix(".json").write_text(report, encoding="utf-8")
        return run

    def ranks(self, run: Path, val: Path) -> Ranks:
        """Text→image ranks of the export of a run."""
        merged = run.with_name(f"{run.name}-merged")
        if not merged.exists():
            self._run("export", run, "-o", merged)
        return Ranks(**json.loads(self._run("eval", "retrieval", merged, val, "--json"))["text_to_image"])

    def _run(self, *words: Any) -> str:
        shown = " ".join(map(str, words)).replace(str(self.data), "DATA").replace(str(self.work), "WORK")
        if self.lm:
            shown = shown.replace(str(self.lm), "LM")
        started = time.perf_counter()
        done = subprocess.run(["clipglot", *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
        self.commands.append(f"clipglot {shown}    # {time.perf_counter() - started:.0f} s")
        return done.stdout


def flickr8k(bench: Bench, language: str) -> tuple[Path, Path]:
    """Training and validation caches of Flickr8k."""
    root = bench.data / "flickr8k"
    train, val = (bench.cache(f"{s}_{language}", root / f"{s}.jsonl", language, root) for s in ("train", "val"))
    return train, val


def print_against_closed_form(name: str, run: Ranks, train: Path, val: Path, *, spaced: bool) -> None:
    """Print the recall of a run and of the closed-form baseline."""
    baseline, alpha = tfidf_ridge(Cache(train), Cache(val), spaced=spaced)
    print(f"\n| {name}, {run.num_candidates:,} images, text→image | R@1 | R@5 | R@10 | median rank |")
    print("|---|---|---|---|---|")
    for who, ranks in ((f"TF-IDF + ridge, closed form (penalty {alpha:g})", baseline), ("clipglot", run)):
        recalls = f"{ranks.r_at_1:.1%} | {ranks.r_at_5:.1%} | {ranks.r_at_10:.1%}"
        print(f"| {who} | {recalls} | {ranks.median_rank:g} |")
    print(f"\nclipglot / closed form at R@10: {run.r_at_10 / baseline.r_at_10:.3f}")


def zh(bench: Bench) -> None:
    """Chinese, from scratch."""
    train, val = flickr8k(bench, "zh")
    run = bench.train("run_zh", train, "--recipe", "few")
    print_against_closed_form("zh, scratch", bench.ranks(run, val), train, val, spaced=False)


def en(bench: Bench) -> None:
    """English, from a pretrained language model."""
    train, val = flickr8k(bench, "en")
    run = bench.train("run_lm", train, "--text", bench.lm, "--recipe", "lm")
    print_against_closed_form("en, language model", bench.ranks(run, val), train, val, spaced=True)


def frozen(bench: Bench) -> None:
    """Chinese, heads on features of a frozen language model of twelve layers that reads Chinese, beside scratch."""
    train, val = flickr8k(bench, "zh")
    runs = {"scratch, few": bench.train("run_zh", train, "--recipe", "few")}
    for head in FROZEN_HEADS:
        settings = ["--text", bench.lm, "--recipe", "frozen", "--text-layers", "3,6,9,12", "--text-prompt", "query: "]
        runs[f"frozen, {head}"] = bench.train(f"run_frozen_{head}", train, *settings, "--head", head)
    print("\n| zh, text→image | seconds | R@1 | R@5 | R@10 |\n|---|---|---|---|---|")
    r_at_10 = {}
    for name, run in runs.items():
        ranks = bench.ranks(run, val)
        r_at_10[name] = ranks.r_at_10
        seconds = bench.seconds.get(run.name)
        time_ = "earlier" if seconds is None else f"{seconds:.0f}"
        print(f"| {name} | {time_} | {ranks.r_at_1:.1%} | {ranks.r_at_5:.1%} | {ranks.r_at_10:.1%} |")
    for name in runs:
        print(f"{name} / few at R@10: {r_at_10[name] / r_at_10['scratch, few']:.3f}")


def lora(bench: Bench) -> None:
    """LoRA against training the whole model."""
    train, val = flickr8k(bench, "en")
    print("\n| en, text→image | parameters trained | R@1 | R@5 | R@10 |\n|---|---|---|---|---|")
    r_at_10 = {}
    for recipe in ("lm", "lora"):
        run = bench.train(f"run_{recipe}", train, "--text", bench.lm, "--recipe", recipe)
        ranks, report = bench.ranks(run, val), json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))
        trained, parameters = report["num_trained"], report["num_parameters"]
        r_at_10[recipe] = ranks.r_at_10
        recalls = f"{ranks.r_at_1:.1%} | {ranks.r_at_5:.1%} | {ranks.r_at_10:.1%}"
        print(f"| --recipe {recipe} | {trained:,} of {parameters:,} ({trained / parameters:.2%}) | {recalls} |")
    print(f"\nlora / whole at R@10: {r_at_10['lora'] / r_at_10['lm']:.3f}")


def emoji(bench: Bench) -> None:
    """Retrieval of emoji by Russian short name; a fifth of the drawings is held out by a hash of the file name."""
    root = bench.data / "emoji"
    lines = [json.loads(line) for line in (root / "names.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [line for line in lines if int(hashlib.sha256(line["image"].encode()).hexdigest(), 16) % 5 == 0]
    names = [line | {"ru": line["ru"][:1]} for line in held_out if line["ru"]]
    others = [line for line in lines if line not in held_out and line["ru"]]
    train = bench.cache("emoji_train", write(bench.work / "emoji_train.jsonl", others), "ru", root)
    val = bench.cache("emoji_val", write(bench.work / "emoji_val.jsonl", names), "ru", root)
    run = bench.train("run_emoji", train, "--recipe", "few")
    print_against_closed_form("ru, emoji, scratch", bench.ranks(run, val), train, val, spaced=True)


def warm(bench: Bench) -> None:
    """Ridge warm starts against random starts, at equal steps."""
    root = bench.data / "flickr8k"
    lines = (root / "train.jsonl").read_text(encoding="utf-8").splitlines()
    split = int(0.9 * len(lines))
    parts = {"fit": lines[:split], "held": lines[split:]}
    for language, recipe in (("zh", ["--recipe", "few"]), ("en", ["--text", bench.lm, "--recipe", "lm"])):
        files = {name: bench.work / f"{name}.jsonl" for name in parts}
        for name, part in parts.items():
            files[name].write_text("\n".join(part) + "\n", encoding="utf-8")
        fit, held = (bench.cache(f"{name}_{language}", files[name], language, root) for name in parts)
        curves = {}
        for start in ("ridge", "none"):
            run = bench.train(f"warm_{language}_{start}", fit, *recipe, "--val", held, "--warm-start", start)
            lines_of_run = RunFolder(run).metrics()
            curves[start] = {
                line["epoch"]: line["r_at_10"] for line in lines_of_run if line["step"] and "r_at_10" in line
            }
        epochs = " | ".join(str(epoch + 1) for epoch in curves["none"])
        print(f"\n| {language}, R@10 on {len(parts['held'])} held-out images after epoch | {epochs} |")
        print("|---|" + "---|" * len(curves["none"]))
        for start, curve in curves.items():
            print(f"| --warm-start {start} | " + " | ".join(f"{value:.1%}" for value in curve.values()) + " |")
        third = list(curves["none"])[: -(-len(curves["none"]) // 3)]
        ahead = sum(curves["ridge"][epoch] > curves["none"][epoch] for epoch in third)
        print(f"\nahead at {ahead} of the {len(third)} validations of the first third")


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """Write a manifest."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


ROWS = {"zh": zh, "en": en, "frozen": frozen, "lora": lora, "emoji": emoji, "warm": warm}


def main() -> None:
    """Run a row of the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds flickr8k/, emoji/ and deit_tiny/")
    parser.add_argument("--work", type=Path, required=True, help="working folder")
    parser.add_argument("--lm", type=Path, help="folder of the language model of rows en, frozen, lora and warm")
    parser.add_argument("--train", default="", help="further settings of `clipglot train`")
    options = parser.parse_args()
    if options.row in ("en", "frozen", "lora", "warm") and not options.lm:
        parser.error(f"row {options.row} needs the folder of a language model: pass --lm")
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    ROWS[options.row](bench)
    print()
    for command in bench.commands:
        print(f"    {command}")


if __name__ == "__main__":
    main()
