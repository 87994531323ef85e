"""Tutorials as shell scripts: their blocks run in one shell, in a folder that has the clone's `demo` and `examples`."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARK = "=== end of block ==="
HOME = "~/clipglot"  # shown for the folder


@dataclass(frozen=True)
class Ran:
    """A block that ran.

    Attributes:
        code: of the page.
        printed: by the block, errors included.
        shown: what the page shows as its output, the `text` block after it; None where there is none.
    """

    code: str
    printed: str
    shown: str | None


def blocks_of(page: Path) -> list[tuple[str, str, str | None]]:
    """Language, code and shown output of the blocks that run: `bash` and `python`."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    following = [*found[1:], ("", "")]
    return [
        (language, code, then[1] if then[0] == "text" else None)
        for (language, code), then in zip(found, following, strict=True)
        if language in ("bash", "python")
    ]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables of the shell: this Python's commands, no network, caches of users in `folder`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "home"), **more}


def run_tutorial(page: Path, folder: Path, replaced: Mapping[str, str] | None = None) -> list[Ran]:
    """Run the blocks of a page one after the other; one that serves does not run, but stands in the list.

    Args:
        page: with the blocks.
        folder: to run in, which is made.
        replaced: text of the blocks and what stands for it, such as the path of a model.

    Raises:
        AssertionError: a block failed; with what was printed.
    """
    folder.mkdir()
    for name in ("demo", "examples"):
        (folder / name).symlink_to(ROOT / name)
    blocks = blocks_of(page)
    lines = ["set -euo pipefail", "exec 2>&1"]
    for language, code, _ in blocks:
        for old, new in (replaced or {}).items():
            code = code.replace(old, new)
        if language == "python":
            code = f"python - <<'END'\n{code}END\n"
        if "clipglot serve" in code:
            assert len(code.splitlines()) == 1, f"a block that serves must do nothing else: {code}"
            code = ":\n"
        lines.append(f"{code}echo '{MARK}'\n")
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stdout
    printed = done.stdout.replace(str(folder), HOME)
    for old, new in (replaced or {}).items():
        printed = printed.replace(new, old)
    outputs = printed.split(f"{MARK}\n")[:-1]
    return [Ran(code, out, shown) for (_, code, shown), out in zip(blocks, outputs, strict=True)]


def without_numbers(line: str) -> str:
    """A line with `#` for each number, and single spaces: what stays the same on another machine."""
    line = re.sub(r"it waited for [^)]*", "it waited for #", line)
    return " ".join(re.sub(r"-?\d[\d.,]*(e-?\d+)?", "#", line).split())


def missing_lines(ran: Ran) -> list[str]:
    """Lines of the shown output that the block did not print, numbers apart.

    `…` stands for any lines. Indented lines, such as the images that a search found, may differ between machines.
    """
    printed = {without_numbers(line) for line in ran.printed.splitlines()}
    shown = [line for line in (ran.shown or "").splitlines() if line != "…" and not line.startswith(" ")]
    return [line for line in shown if without_numbers(line) not in printed]
