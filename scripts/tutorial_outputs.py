"""Run tutorials and write what their blocks print into the pages, below each block that is followed by a `text` block.

    python scripts/tutorial_outputs.py [--replace TEXT=OTHER] [--keep DIR] [PAGE …]

Without a page all of docs/tutorials. `--replace intfloat/multilingual-e5-small=FOLDER` names a model on the disk.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support.tutorials import BLOCK, run_tutorial  # noqa: E402


def main() -> None:
    """Run each page in a folder of its own, then rewrite it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=sorted((ROOT / "docs" / "tutorials").glob("*.md")))
    parser.add_argument("--replace", action="append", default=[])
    args = parser.parse_args()
    replaced = dict(pair.split("=", 1) for pair in args.replace)
    for page in args.pages:
        with tempfile.TemporaryDirectory() as folder:
            ran = run_tutorial(page, Path(folder), replaced)
        text = page.read_text(encoding="utf-8")
        for block in ran:
            if block.shown is not None:
                printed = block.printed.rstrip("\n")
                for old, new in replaced.items():
                    printed = printed.replace(new, old)
                at = text.index(f"\n{block.code}```\n") + len(block.code) + 1
                start = text.index("```text\n", at)
                shown = BLOCK.match(text, start)
                assert shown is not None
                text = f"{text[:start]}```text\n{printed}\n```{text[shown.end() :]}"
        page.write_text(text, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
