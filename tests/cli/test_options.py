"""Commands and options of the command line: their names as a contract, their help, precedence of settings."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from clipglot import __version__
from clipglot.cli.main import COMMANDS, main
from clipglot.cli.options import START, SectionedCommand
from clipglot.distill.train_settings import SECTIONS, TrainSettings
from support.command_line import run, small

# Adding to this is free; taking away or renaming breaks somebody's script and belongs in the changelog.
CONTRACT = {
    "clipglot": "--version",
    "cache": "SOURCE --output --model --pretrained --image-root --image-field --text-field --language --language-field "
    "--encoding --where --split --teacher-field --images --append --retry --limit --batch-size --num-workers "
    "--chunk-rows --max-pixels --decoding --views --augment-scale --augment-flip --augment-jitter --augment-grayscale "
    "--augment-seed --precision --device --scheduler --num-local --shard --config --json",
    "captions": "CACHE FILE --name --language --language-field --text-field --image-field --where --split --encoding "
    "--replace --add --drop --json",
    "inspect": "CACHE --failures --pairs --watch --json",
    "convert": "CACHE OUT --json",
    "import": "SOURCE --output --model --pretrained --captions --dataset --image-root --image-field --text-field "
    "--keys --precision --config --json",
    "merge": "CACHES --output --prefix --json",
    "verify": "CACHE --sample --seed --model --pretrained --image-root --repair --device --scheduler --num-local "
    "--config --json",
    "duplicates": "CACHE --against --threshold --sample --seed --pairs --device --config --json",
    "index": "CACHE --output --clip --queries --recall --kind --num-queries --seed --scheduler --num-local --config "
    "--json",
    "tokenizer": "CACHE --output --kind --vocab-size --extend --inspect --context-length --config --json",
    "train": "CACHE --output --val --captions --val-captions --language --language-temperature "
    "--views --tokenizer --vocab-size --context-length --workers --text --width --layers "
    "--heads --pooler --head --dropout --token-dropout --grad-checkpointing --lora-rank --lora-alpha "
    "--lora-targets --text-layers --text-prompt --prune-vocab --vocab-text --text-features --train-layers "
    "--freeze-embeddings --lm-lr --layer-decay --warm-start --epochs --batch-size --micro-batch --captions-per-picture "
    "--equal-captions --lr --schedule --warmup --cooldown --weight-decay --beta2 --grad-clip --ema --patience "
    "--seed --loss --label-smoothing --similarity --alignment --uniformity --simcse --teacher-weight "
    "--teacher-temperature --negatives --temperature --max-logit-scale --device --precision --tf32 --compile "
    "--embeddings --buffer-gb --log-every --log-to --profile --checkpoint-every --config --recipe --resume --json",
    "export": "RUN --output --format --quantize --step --interpolate --model --pretrained --license --language "
    "--dataset --push --private --config --json",
    "predict": "MERGED IMAGES --text --texts --top --csv --json",
    "search": "MERGED CACHE QUERY --image --queries --index --top --language --caption --thumbnails --image-root "
    "--json",
    "eval": "",
    "eval retrieval": "MERGED CACHE --captions --queries --submission --against --translations --json",
    "eval zeroshot": "MERGED CACHE --classes --classes-language --templates --distractors --labels --label-field "
    "--key-field --against --against-classes --against-templates --interpolate --json",
    "eval probe": "CACHE --test --test-share --labels --label-field --key-field --shots --seeds --merged --classes "
    "--templates --device --json",
    "eval speed": "MERGED --cache --batch-sizes --device --json",
    "report": "RUNS --output --cache --against --translations --classes --classes-language --templates --distractors "
    "--against-classes --against-templates --labels --label-field --key-field --shots --seeds --speed --image-root "
    "--thumbnails --config --json",
    "bench": "CACHE --vocab-size --context-length --width --layers --heads --batch-size --steps --precision --compile "
    "--device --config --json",
    "serve": "MERGED CACHES --against --index --onnx --host --port --token --allow-host --image-root --fold-above "
    "--thumbnail-folder --thumbnail-megabytes --config --json",
    "demo": "--output --language --pictures --epochs --seed --serve --port --config --json",
}


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path) or "clipglot", command
    if isinstance(command, click.Group):
        context = click.Context(command, **main.context_settings)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, (*path, name))


TREE = dict(walk(main))
HIDDEN = {"cache": ["--worker", "--workers"]}  # old names that still work


def test_commands_and_options_are_a_contract() -> None:
    names = {
        path: [
            parameter.opts[-1] if isinstance(parameter, click.Option) else (parameter.name or "").upper()
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
        ]
        for path, command in TREE.items()
    }
    contract = {path: contracted.split() for path, contracted in CONTRACT.items()}
    assert {path: sorted(of) for path, of in names.items()} == {path: sorted(of) for path, of in contract.items()}
    in_order = [
        {path: [name for name in of if name[0] != "-"] for path, of in each.items()} for each in (names, contract)
    ]
    assert in_order[0] == in_order[1]  # of arguments; options are where the help has them
    hidden = {
        path: [parameter.opts[0] for parameter in command.params if getattr(parameter, "hidden", False)]
        for path, command in TREE.items()
    }
    assert {path: options for path, options in hidden.items() if options} == HIDDEN


@pytest.mark.parametrize("path", TREE)
def test_every_command_and_option_has_help_that_fits_a_terminal(path: str) -> None:
    command = TREE[path]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
        else:
            assert (parameter.name or "").upper() in command.help
    result = run(*([] if path == "clipglot" else path.split()), "--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "\b" not in result.output
    assert "\\b" not in result.output


def test_the_list_of_commands_matches_the_modules() -> None:
    result = run("--help")
    assert [line.split()[0] for line in result.output.partition("Commands:\n")[2].splitlines()] == list(COMMANDS)
    assert __version__ in run("--version").output


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["cache", "--help"], ["nonsense"]])
def test_help_answers_without_importing_the_heavy_libraries(arguments: list[str]) -> None:
    heavy = ["torch", "open_clip", "timm", "transformers", "tokenizers"] + ["zarr"] * (arguments[0] != "cache")
    script = (
        "import sys\nfrom clipglot.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n    code = end.code\n"
        f"assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)\n"
        "sys.exit(code)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == (2 if arguments == ["nonsense"] else 0), process.stderr
    assert ("No such command 'nonsense'" in process.stderr) == (arguments == ["nonsense"])


def test_python_dash_m_runs_the_command_line() -> None:
    command = [sys.executable, "-m", "clipglot", "--version"]
    assert __version__ in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_flags_win_over_the_file_and_the_file_over_defaults(tiny_cache: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text('epochs = 3\nlr = 1\nwarmup = 0\nlog-every = 2\nprecision = "fp32"\ntf32 = false\n')
    result = run(*small(tiny_cache, tmp_path / "run"), "--config", config, "--epochs", 1, "--warmup", 0.05)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (settings["epochs"], settings["warmup"]) == (1, 0.05)  # flags, also with the default's value
    assert (settings["lr"], settings["log_every"], settings["tf32"]) == (1.0, 2, False)  # file
    assert settings["seed"] == 0  # default


def test_resume_takes_settings_that_are_not_given_from_the_run(tiny_cache: Path, tmp_path: Path) -> None:
    toml, output = tmp_path / "train.toml", tmp_path / "run"
    toml.write_text(f'val = "{tiny_cache}"\nlog-every = 2\nema = 0.5\n')
    given = [*small(tiny_cache, output), "--epochs", 2, "--lr", 0.01, "--log-to", "tensorboard", "--config", toml]
    assert run(*given).exit_code == 0
    begun = json.loads((output / "run.json").read_text())["settings"]
    toml.write_text("log-every = 5\n")
    resumed = run("train", tiny_cache, "-o", output, "--resume", "--config", toml, "--checkpoint-every", 3)
    assert resumed.exit_code == 0, resumed.output
    now = json.loads((output / "run.json").read_text())["settings"]
    assert now == begun | {"log_every": 5, "checkpoint_every": 3}  # the file and the flag win over the run
    for different in (["--lr", 0.1], ["--ema", 0]):  # a default's value, too, is given
        refused = run("train", tiny_cache, "-o", output, "--resume", *different)
        assert refused.exit_code == 1
        assert f"was begun with {different[0][2:]} = " in refused.stderr


def test_resume_without_a_run_starts_one_and_a_damaged_run_is_named(tiny_cache: Path, tmp_path: Path) -> None:
    assert run(*small(tiny_cache, tmp_path / "run"), "--epochs", 1, "--resume").exit_code == 0
    (tmp_path / "run" / "run.json").write_text("{")
    refused = run("train", tiny_cache, "-o", tmp_path / "run", "--resume")
    assert (refused.exit_code, "run.json is damaged" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "unknown setting 'epoch'; did you mean epochs?"),
        ("colour = 3", "unknown setting 'colour'; known are alignment"),
        ("cache = 'x'", "unknown setting 'cache'"),
        ("epochs = 1.5", "epochs: 1.5 is no int"),
        ("epochs = '3'", "epochs: '3' is no int"),
        ("epochs = true", "epochs: True is no int"),
        ("tf32 = 'no'", "tf32: 'no' is no bool"),
        ("lr = 'fast'", "lr: 'fast' is no int or float"),
        ("val = ['a', 'b']", "val: ['a', 'b'] is no str"),
        ("precision = 'fp8'", "precision: 'fp8' is not one of"),
        ("epochs = 0", "--epochs 0: must be at least 1"),
        ("epochs = ", "Invalid value"),
    ],
)
def test_an_invalid_settings_file_is_bad_usage_with_the_reason(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(content)
    result = run("train", "c.zarr", "-o", tmp_path / "run", "--config", config)
    assert result.exit_code == 2
    assert message in result.stderr


def test_lists_in_the_file_are_repeated_flags(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    config = tmp_path / "cache.toml"
    config.write_text(f'model = "local-dir:{tiny_clip}"\ntext_field = ["text", "image"]\nnum_workers = 1\nlimit = 2\n')
    result = run("cache", manifest, "-o", tmp_path / "c.zarr", "--config", config, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["source"]["text_fields"] == ["text", "image"]


def test_old_names_of_settings_work_with_a_warning_that_names_the_new_ones(
    manifest: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    config, cache = tmp_path / "cache.toml", tmp_path / "c.zarr"
    config.write_text(f'model = "local-dir:{tiny_clip}"\nworkers = 1\n')
    given = ["cache", manifest, "-o", cache, "--limit", 2, "--config", config, "--worker", "0/1"]
    made = run(*given)
    assert made.exit_code == 0, made.output
    warnings = [line for line in made.stderr.splitlines() if "is now called" in line]
    assert warnings == [f"{config}: workers is now called num_workers", "--worker is now called --shard"]
    assert "now called" not in run(*given[:-2], "--shard", "0/1", "--num-workers", 2).stderr.replace(warnings[0], "")
    for both in (["--worker", "0/1", "--shard", "0/1"], ["--workers", 1, "--num-workers", 1]):
        refused = run("cache", manifest, "-o", cache, "--model", "m", *both)
        assert (refused.exit_code, f"{both[0]} is the old name of {both[2]}" in refused.stderr) == (2, True)
    config.write_text('worker = "0/2"\nshard = "0/2"\n')
    refused = run("cache", manifest, "-o", cache, "--model", "m", "--config", config)
    assert (refused.exit_code, "worker is the old name of shard" in refused.stderr) == (2, True)
    wrong = run("cache", manifest, "-o", cache, "--model", "m", "--worker", "2/2")
    assert (wrong.exit_code, "--shard 2/2" in wrong.stderr) == (2, True)


def test_help_says_required_once() -> None:
    for path in TREE:
        shown = run(*([] if path == "clipglot" else path.split()), "--help").output
        assert not re.search(r"\[required\]\s+\[required\]", shown), path


def test_the_docs_name_every_metrics_field_and_a_valid_settings_file(
    tiny_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    fields = {name for line in (tiny_run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {name for name in fields if f"`{name}`" not in docs} == set()
    assert {file.name for file in tiny_run.iterdir() if f"`{file.name}" not in docs} == set()
    (toml,) = re.findall(r"^```toml\n(.*?)^```", docs, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.toml").write_text(toml)
    refused = run("train", tmp_path / "no.zarr", "-o", tmp_path / "run", "--config", tmp_path / "train.toml")
    assert refused.stderr.startswith(f"Error: {tmp_path / 'no.zarr'}: no such cache")  # and not bad usage


def test_every_training_setting_has_a_section_in_the_help() -> None:
    listed = [name for names in SECTIONS.values() for name in names.split()]
    assert sorted(listed) == sorted(field.name for field in fields(TrainSettings))
    shown = CliRunner().invoke(main, ["train", "--help"]).output
    assert [line for line in shown.splitlines() if line.rstrip(":") in SECTIONS] == [f"{name}:" for name in SECTIONS]


@pytest.mark.parametrize("path", [path for path, command in TREE.items() if len(command.params) > 15])
def test_a_long_help_begins_with_what_most_need_and_has_sections(path: str) -> None:
    command = TREE[path]
    assert isinstance(command, SectionedCommand)
    shown = run(*path.split(), "--help").output
    headings = re.findall(r"^([A-Z][\w ]+):$", shown, re.MULTILINE)
    assert len(headings) >= 4
    assert (headings[0], headings[-1]) == (START, "Others")
    flags = [option.opts[-1] for option in command.params if isinstance(option, click.Option) and not option.hidden]
    assert all(len(re.findall(rf"^  (?:-\w, )?{flag}\b(?!-)", shown, re.MULTILINE)) == 1 for flag in flags)
    others = shown.partition("Others:\n")[2]
    assert set(re.findall(r"^  (--[\w-]+)", others, re.MULTILINE)) <= {"--config", "--json"}
