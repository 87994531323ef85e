"""Time of a training step with OpenMP threads waiting actively or passively, alone and beside other work.

    scripts/bench threads

The reason why the command line sets OMP_WAIT_POLICY=PASSIVE.
"""

import os
import statistics
import subprocess
import sys
import time

STEPS = 12
BUSY = "while True: pass"


def step_ms() -> float:
    """Median milliseconds of a training step: a small text tower, 256 captions of about 9 tokens."""
    import numpy as np
    import torch
    from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    captions = [[1, *rng.integers(3, 600, length).tolist(), 2] for length in rng.integers(2, 14, 256)]
    config = ScratchConfig(
        embed_dim=128,
        vocab_size=600,
        context_length=48,
        width=128,
        heads=4,
        layers=2,
        pad_id=0,
        eos_id=2,
        quick_gelu=False,
    )
    tower = ScratchTower(config)
    optimizer = torch.optim.AdamW(tower.parameters(), fused=True)
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        tower.encode(captions).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[2:])


def main() -> None:
    """Measure each policy alone and with half the cores kept busy; print a Markdown table."""
    if sys.argv[1:] == ["--step"]:
        print(step_ms())
        return
    cores = len(os.sched_getaffinity(0))
    print("| threads wait | alone, ms a step | beside other work | times slower |")
    print("|---|---|---|---|")
    for name, policy in (("by default", {}), ("passively", {"OMP_WAIT_POLICY": "PASSIVE"})):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | policy
        alone, beside = (_measure(environment, busy) for busy in (0, max(1, cores // 2)))
        print(f"| {name} | {alone:.0f} | {beside:.0f} | {beside / alone:.1f} |")


def _measure(environment: dict[str, str], num_busy: int) -> float:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_busy)]
    try:
        command = [sys.executable, __file__, "--step"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout)


if __name__ == "__main__":
    main()
