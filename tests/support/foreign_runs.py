"""Runs as a stranger could make them, and all ways to read one, tried in a child process of bounded memory."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder

Change = Callable[[Path], object]
VALIDATION = {"kind": "validation", "step": 1, "r_at_1": 0.1, "r_at_5": 0.1, "r_at_10": 0.2, "median_rank": 3}


def _line(content: bytes | dict[str, Any]) -> Change:
    """Append a line to the metrics."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()

    def change(run: Path) -> None:
        with open(run / "metrics.jsonl", "ab") as file:
            file.write(raw + b"\n")

    return change


def _instead(name: str, make: Callable[[Path], object]) -> Change:
    def change(run: Path) -> None:
        path = next(run.glob(name))
        path.unlink()
        make(path)

    return change


def _described(**fields: Any) -> Change:
    def change(run: Path) -> None:
        (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | fields))

    return change


def _of_provenance(**fields: Any) -> Change:
    def change(run: Path) -> None:
        described = json.loads((run / "run.json").read_text())
        _described(provenance=described["provenance"] | fields)(run)

    return change


def _zip_bomb(path: Path) -> None:
    """A checkpoint whose tensor inflates a thousand times."""
    import torch

    torch.save({"step": 1, "tower": torch.zeros(10**7)}, path)
    with zipfile.ZipFile(path) as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name, content in entries.items():
            deflated.writestr(name, content)


FILES = ("metrics.jsonl", "run.json", "final/config.json", "final/text.safetensors", "checkpoints/*.pt")
CHANGES: dict[str, Change] = {
    **{
        f"{kind} for {name}": _instead(name, make)
        for kind, make in (("fifo", os.mkfifo), ("device", lambda path: path.symlink_to("/dev/zero")))
        for name in FILES
    },
    **{f"terabyte of {name}": lambda run, name=name: os.truncate(next(run.glob(name)), 10**12) for name in FILES[:3]},
    **{f"deep {name}": _instead(name, lambda path: path.write_bytes(b"[" * 10**6)) for name in FILES[1:3]},
    "long line": _line(b'{"kind": "step", "step": 1, "loss": 1, "x": "' + b"x" * 2**21 + b'"}'),
    "deep line": _line(b'{"a":' * 10**5),
    "a list": _line(b"[1, 2]"),
    "a number": _line(b"7"),
    "no UTF-8": _line(b'{"kind": "step\xff\xfe"}'),
    "no step": _line({"kind": "step", "loss": 1.0}),
    "step of text": _line({"kind": "step", "step": "3", "loss": 1.0}),
    "loss of text": _line({"kind": "step", "step": 3, "loss": "low"}),
    "unknown kind": _line({"kind": ["step"], "step": 3}),
    "recall that is none": _line(VALIDATION | {"r_at_10": "best"}),
    "recall that is not a number": _line(json.dumps(VALIDATION).replace("0.2", "NaN").encode()),
    "languages of a list": _line(VALIDATION | {"languages": ["ru"]}),
    "languages without recalls": _line(VALIDATION | {"languages": {"ru": {"r_at_1": 0.1}}}),
    "finding without figures": _line({"kind": "finding", "step": 1, "finding": "x", "message": 3}),
    "provenance of a list": _described(provenance=[]),
    "provenance without a tower": _described(provenance={"cache": "x"}),
    "caption sets without a name": _of_provenance(captions=[{"sha256": "0"}]),
    "caption sets of texts": _of_provenance(captions=["ru"]),
    "settings of a list": _described(settings=[1]),
    "zip bomb": _instead("checkpoints/*.pt", _zip_bomb),
    "text for a checkpoint": _instead("checkpoints/*.pt", lambda path: path.write_text("hello")),
    "cut weights": lambda run: os.truncate(run / "final/text.safetensors", 100),
}
"""What a stranger can do to a run, by name."""


def read(case: list[str]) -> None:
    """Change a copy of a run and read all of it."""
    change, original = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(original, Path(folder, "run")))
        CHANGES[change](path)
        run = RunFolder(path)
        run.settings_to_resume(), run.provenance(), run.best_validation(), run.rewind_metrics(10**6)
        load_final(run)
        run.load_checkpoint()
