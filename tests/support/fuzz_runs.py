"""Fuzz targets of run folders, run in a child process of bounded memory."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.errors import EncoderError
from hypothesis import strategies as st

from support.mutations import byte_mutations, json_mutations, search

DOCUMENTS = ("run.json", "final/config.json")
BYTES = ("metrics.jsonl", "run.json", "final/config.json", "final/text.safetensors")


def runs(case: list[Any]) -> str:
    """A run with one file mutated is read, or refused with a `DistillError` or, of its tower, an `EncoderError`."""
    original, num = Path(case[0]), case[1]
    files = {name: (original / name).read_bytes() for name in BYTES}
    checkpoint = next((original / "checkpoints").iterdir()).relative_to(original).as_posix()
    files[checkpoint] = (original / checkpoint).read_bytes()
    lines = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    as_json = st.sampled_from(DOCUMENTS).flatmap(
        lambda name: st.tuples(st.just(name), json_mutations(json.loads(files[name])).map(_encoded))
    )
    as_lines = json_mutations(lines).map(
        lambda mutated: ("metrics.jsonl", b"".join(_encoded(line) + b"\n" for line in mutated))
    )
    as_bytes = st.sampled_from(sorted(files)).flatmap(
        lambda name: st.tuples(st.just(name), byte_mutations(files[name]))
    )
    outcomes = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(shutil.copytree(original, Path(folder, "run"))))

        def check(example: tuple[str, bytes]) -> None:
            name, content = example
            (run.path / name).write_bytes(content)
            try:
                run.settings_to_resume(), run.provenance(), run.last_validation(), run.best_validation()
                load_final(run)
                run.load_checkpoint()
            except (DistillError, EncoderError):
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
            finally:
                (run.path / name).write_bytes(files[name])

        search(st.one_of(as_json, as_lines, as_bytes), check, num)
    return json.dumps(outcomes)


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()
