"""Mistakes that need no torch are told before torch is imported, which takes seconds."""

import json
import subprocess
import sys

import pytest

# A process of its own, because this one has imported torch.
TELL = """
import json, sys
import click
from clipglot.cli.main import main

told = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, standalone_mode=False)
    except click.ClickException as error:
        told.append(error.format_message())
    assert "torch" not in sys.modules, arguments
print(json.dumps(told))
"""

# arguments of a command, and what its message names
MISTAKES = [
    (["train", "absent.zarr", "-o", "new"], ["absent.zarr", "clipglot cache"]),
    (["train", "pairs.jsonl", "-o", "new"], ["pairs.jsonl"]),
    (["train", "run", "-o", "new"], ["run", "expected a cache"]),
    (["train", "c.zarr", "-o", "run", "--recipe", "none"], ["run", "--resume", "-o"]),
    (["tokenizer", "absent.zarr", "-o", "new"], ["absent.zarr"]),
    (["verify", "absent.zarr"], ["absent.zarr"]),
    (["inspect", "absent.h5"], ["absent.h5", "clipglot convert"]),
    (["duplicates", "absent.zarr"], ["absent.zarr"]),
    (["index", "absent.zarr", "-o", "new"], ["absent.zarr"]),
    (["index", "c.zarr", "-o", "pairs.jsonl", "--clip", "merged"], ["pairs.jsonl", "exists"]),
    (["bench", "absent.zarr"], ["absent.zarr"]),
    (["cache", "absent.jsonl", "-o", "new", "--model", "m"], ["absent.jsonl"]),
    (["cache", "pairs.jsonl", "-o", "new", "--model", "m", "--text-field", "other"], ["pairs.jsonl:1", "--text-field"]),
    (["cache", "pairs.jsonl", "-o", "run", "--model", "m"], ["run", "-o"]),
    *(
        (["cache", "pairs.jsonl", "-o", "new", "--model", "m", "--encoding", name], [f"--encoding {name}", "gb18030"])
        for name in ("punycode", "idna", "rot13", "undefined", "none")
    ),
    (["export", "absent", "-o", "new"], ["absent", "clipglot train"]),
    (["export", "run", "-o", "pairs.jsonl"], ["pairs.jsonl", "-o"]),
    (["export", "merged", "-o", "new"], ["is a merged CLIP", "--format transformers"]),
    (["predict", "hf", "a.png", "--text", "x"], ["hf", "another library", "AutoModel.from_pretrained"]),
    (["predict", ".", "a.png", "--text", "x"], ["has one in it", "load merged"]),
    (["predict", "absent", "a.png", "--text", "x"], ["absent", "clipglot export"]),
    (["predict", "merged", "absent.png", "--text", "x"], ["absent.png"]),
    (["eval", "retrieval", "absent", "absent.zarr"], ["absent", "clipglot export"]),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "pairs.jsonl").write_text(json.dumps({"image": "a.png", "text": "a"}))
    marks = {"run": "run.json", "merged": "open_clip_config.json", "c.zarr": "zarr.json", "hf": "config.json"}
    for name, mark in marks.items():
        (folder / name).mkdir()
        (folder / name / mark).write_text("{}")
    given = json.dumps([arguments for arguments, _ in MISTAKES])
    done = subprocess.run([sys.executable, "-c", TELL, given], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: list[str] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_is_told_before_torch_is_imported(told: list[str], number: int) -> None:
    assert len(told) == len(MISTAKES)  # each is refused
    assert all(fact in told[number] for fact in MISTAKES[number][1]), told[number]
