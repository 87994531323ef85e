"""Blockwise InfoNCE and SigLIP against open_clip's ClipLoss and SigLipLoss: time, peak memory and differences.

    scripts/bench loss [--batch-size 16384] [--dim 512] [--rounds 5] [--threads 2]

Forward and backward on the CPU, with gradients for captions and temperature only, as with a frozen image tower. Each
loss runs in a process of its own; they alternate, and the first round is left out. Peak memory is the rise of the
process's maximum resident set (ru_maxrss) above its level before the first call, with inputs and libraries loaded.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

TEMPERATURE = 0.07
PAIRS = {"InfoNCE": ("infonce", "ClipLoss"), "SigLIP": ("siglip", "SigLipLoss")}
SMALL = 64  # pairs of a first call, which starts threads and loads libraries before memory is measured


def main() -> None:
    """Measure both losses against their peers and print the table."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    print(f"B={args.batch_size:,}, D={args.dim}, float32, {args.threads} threads, {args.rounds} rounds\n")
    print("| loss | time / open_clip's | min .. max | memory / open_clip's | ours | open_clip's | largest difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="clipglot-loss-") as folder:
        write_inputs(Path(folder), args.batch_size, args.dim)
        for name, losses in PAIRS.items():
            print(row(name, losses, Path(folder), args.rounds, args.threads), flush=True)


def write_inputs(folder: Path, num: int, dim: int) -> None:
    """Write unit embeddings `[num, dim]` of captions, and of images near their own caption."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((num, dim), np.float32)
    for name, emb in {"text": text, "image": text + 2 * rng.standard_normal((num, dim), np.float32)}.items():
        np.save(folder / name, emb / np.linalg.norm(emb, axis=1, keepdims=True))


def row(name: str, losses: tuple[str, str], folder: Path, rounds: int, threads: int) -> str:
    """Time two losses in alternation, each in its process, and compare their results."""
    # Waiting threads of one process must not take the cores of the other.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        processes = []
        for loss in losses:
            command = [sys.executable, __file__, "--serve", loss, str(folder)]
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)  # runs first
        times = [[ask(process)["seconds"] for process in processes] for _ in range(rounds + 1)]
        peaks = [ask(process, "end")["peak_bytes"] for process in processes]
    ours, theirs = (np.load(folder / f"{loss}.npz") for loss in losses)
    ratios = [our_s / their_s for our_s, their_s in times[1:]]
    our_s, their_s = (statistics.median(column) for column in zip(*times[1:], strict=True))
    differences = {
        "loss": abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]),
        "gradient": np.abs(ours["grad"] - theirs["grad"]).max() / np.abs(theirs["grad"]).max(),
        "temperature's": abs(ours["grad_scale"] - theirs["grad_scale"]) / abs(theirs["grad_scale"]),
    }
    cells = [
        name,
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} .. {max(ratios):.2f}",
        f"{peaks[0] / peaks[1]:.3f}" if peaks[1] else "",  # empty where the batch is so small that no page is added
        f"{our_s:.2f} s, {peaks[0] / 1e9:.3f} GB",
        f"{their_s:.2f} s, {peaks[1] / 1e9:.3f} GB",
        ", ".join(f"{what} {difference:.0e}" for what, difference in differences.items()) + " (relative)",
    ]
    return f"| {' | '.join(cells)} |"


def ask(process: "subprocess.Popen[str]", request: str = "call") -> dict[str, float]:
    """Send a line to a serving process and read its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{request}\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def serve(name: str, folder: Path) -> None:
    """Call a loss for every line of stdin; at "end" save its results and report the peak of memory."""
    import torch  # here, to keep the parent small: a child's maximum resident set starts at its parent's

    def call(num: int | None) -> tuple[Any, Any, Any]:
        captions = text[:num].requires_grad_()
        loss, log_scale = compute(image[:num], captions)
        loss.backward()
        return loss, captions.grad, log_scale.grad

    text, image = (torch.from_numpy(np.load(folder / f"{side}.npy")) for side in ("text", "image"))
    compute = losses()[name]
    call(SMALL)
    before = peak_bytes()
    result = None
    for line in sys.stdin:
        if line == "end\n":
            break
        result = None  # frees the gradient, which belongs to a call
        started = time.perf_counter()
        result = call(None)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    peak = peak_bytes() - before
    assert result is not None
    loss, grad, grad_scale = (value.detach().numpy() for value in result)
    np.savez(folder / f"{name}.npz", loss=loss, grad=grad, grad_scale=grad_scale)
    print(json.dumps({"peak_bytes": peak}), flush=True)


def peak_bytes() -> int:
    """Maximum resident set of this process."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def losses() -> dict[str, Callable[[Any, Any], tuple[Any, Any]]]:
    """Functions from images and captions to the loss and the logarithm of the logit scale, a leaf."""
    import torch
    from clipglot.distill.data.targets import Targets
    from clipglot.distill.losses.infonce import InfoNCE
    from clipglot.distill.losses.siglip import SigLIP
    from open_clip.loss import ClipLoss, SigLipLoss

    def ours(kind: type[InfoNCE] | type[SigLIP]) -> Callable[[Any, Any], tuple[Any, Any]]:
        def compute(image: Any, text: Any) -> tuple[Any, Any]:
            loss = kind(temperature=TEMPERATURE, max_logit_scale=100.0)
            return loss(text, Targets(image_emb=image, own=slice(0, len(text)))), loss.logit_scale

        return compute

    def clip(image: Any, text: Any) -> tuple[Any, Any]:
        log_scale = torch.tensor(1 / TEMPERATURE).log().requires_grad_()
        return ClipLoss()(image, text, log_scale.exp()), log_scale

    def siglip(image: Any, text: Any) -> tuple[Any, Any]:
        log_scale = torch.tensor(1 / TEMPERATURE).log().requires_grad_()
        bias = torch.tensor(-10.0, requires_grad=True)
        return SigLipLoss()(image, text, log_scale.exp(), bias), log_scale

    return {"infonce": ours(InfoNCE), "siglip": ours(SigLIP), "ClipLoss": clip, "SigLipLoss": siglip}


if __name__ == "__main__":
    main()
