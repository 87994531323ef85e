"""Run tutorials and write what their blocks print into the pages, into the `text` block below each.

Where the page shows some of the lines and `…` for others, these lines are written anew. Where it shows none, or a line
that is no longer printed, all lines are written: shorten them by hand.

    python scripts/tutorial_outputs.py [--replace TEXT=OTHER] [--keep DIR] [PAGE …]

Without a page all of docs/tutorials. `--replace intfloat/multilingual-e5-small=FOLDER` names a model on the disk.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support.tutorials import BLOCK, Ran, run_tutorial, without_numbers  # noqa: E402


def written(ran: Ran) -> str:
    """The new output of a block, shortened as the old one."""
    printed = ran.printed.rstrip("\n").splitlines()
    lines, at = [], 0
    for line in (ran.shown or "").splitlines():
        same = [i for i in range(at, len(printed)) if without_numbers(printed[i]) == without_numbers(line)]
        if line == "…":
            lines.append(line)
        elif same:
            lines.append(printed[same[0]])
            at = same[0] + 1
        else:
            return "\n".join(printed)
    return "\n".join(lines or printed)


def main() -> None:
    """Run each page in a folder of its own, then rewrite it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=sorted((ROOT / "docs" / "tutorials").glob("*.md")))
    parser.add_argument("--replace", action="append", default=[])
    args = parser.parse_args()
    replaced = dict(pair.split("=", 1) for pair in args.replace)
    for page in args.pages:
        with tempfile.TemporaryDirectory() as folder:
            ran = run_tutorial(page, Path(folder) / "clipglot", replaced)
        text = page.read_text(encoding="utf-8")
        for block in ran:
            if block.shown is not None:
                at = text.index(f"\n{block.code}```\n") + len(block.code) + 1
                start = text.index("```text\n", at)
                shown = BLOCK.match(text, start)
                assert shown is not None
                text = f"{text[:start]}```text\n{written(block)}\n```{text[shown.end() :]}"
        page.write_text(text, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
