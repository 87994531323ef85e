"""Start-up time of `clipglot --help` and of commands' help, beside an empty Python and an import of torch.

scripts/bench cli_start [--runs 15]
"""

import argparse
import statistics
import subprocess
import sys
import time

CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "clipglot --help": [sys.executable, "-m", "clipglot", "--help"],
    "clipglot train --help": [sys.executable, "-m", "clipglot", "train", "--help"],
    "clipglot cache --help": [sys.executable, "-m", "clipglot", "cache", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Time each case, warm, in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(runs + 1):
        for name, command in CASES.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:  # the first turn fills the file cache
                seconds[name].append(time.perf_counter() - started)
    empty = statistics.median(seconds["python -c pass"])
    print("| command | median s | slowest s | × empty Python |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| `{name}` | {median:.3f} | {max(times):.3f} | {median / empty:.1f} |")


if __name__ == "__main__":
    main()
