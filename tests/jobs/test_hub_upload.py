"""Upload of an export to a hub: the repository holds its files and a card that hubs read, and no token is printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from clipglot.cli.main import main
from huggingface_hub import ModelCard, constants
from support.hub_server import Hub, serving_hub

# Of the hub's library, which sends files so.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_secretsecretsecretsecret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library asks, with a token."""
    with serving_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_the_repository_holds_the_export_and_its_card(hub: Hub, tiny_run: Path, tmp_path: Path) -> None:
    hub.repositories["org/clip"], hub.files["org/clip/stale.bin"] = False, b"of an earlier export"
    options = ["--push", "org/clip", "--license", "mit", "--language", "ru", "--dataset", "org/captions"]
    done = CliRunner().invoke(main, ["export", str(tiny_run), "-o", str(tmp_path / "merged"), *options])
    assert done.exit_code == 0, done.output
    assert f"uploaded to {hub.url}/org/clip" in done.output
    written = {
        path.relative_to(tmp_path / "merged").as_posix(): path.read_bytes() for path in (tmp_path / "merged").iterdir()
    }
    assert {name.removeprefix("org/clip/"): content for name, content in hub.files.items()} == written
    assert hub.tokens - {""} == {f"Bearer {TOKEN}"}  # files go to a store of their own
    assert TOKEN not in done.output
    assert not any(TOKEN.encode() in content for content in written.values())
    card = ModelCard.load(tmp_path / "merged" / "README.md").data
    assert (card.license, card.language, card.datasets) == ("mit", ["ru"], ["org/captions"])
    results = {result.metric_type: result.metric_value for result in card.eval_results}
    assert set(results) == {"recall_at_1", "recall_at_5", "recall_at_10"}


def test_a_new_repository_may_be_private(hub: Hub, merged: Path, tiny_run: Path, tmp_path: Path) -> None:
    command = ["export", str(tiny_run), "-o", str(tmp_path / "merged"), "--push", "me/new", "--license", "mit"]
    assert CliRunner().invoke(main, [*command, "--private"]).exit_code == 0
    assert hub.repositories == {"me/new": True}


def test_a_refusal_leaves_the_export_and_says_how_to_go_on(hub: Hub, tiny_run: Path, tmp_path: Path) -> None:
    hub.refuses = 403
    command = ["export", str(tiny_run), "-o", str(tmp_path / "merged"), "--push", "org/clip", "--license", "mit"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "403" in done.output
    assert f"hf upload org/clip {tmp_path / 'merged'}" in done.output
    assert TOKEN not in done.output
    assert (tmp_path / "merged" / "open_clip_config.json").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--push", "org/clip"], "--push needs --license"),
        (["--push", "no slash", "--license", "mit"], "expected a repository, ORG/NAME"),
        (["--private"], "--private is of --push"),
    ],
)
def test_wrong_options_are_bad_usage(options: list[str], reason: str, tiny_run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(tiny_run), "-o", str(tmp_path / "x"), *options])
    assert done.exit_code == 2
    assert reason in done.output


def test_nothing_is_computed_without_a_token(
    hub: Hub, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    command = ["export", str(tiny_run), "-o", str(tmp_path / "merged"), "--push", "org/clip", "--license", "mit"]
    done = CliRunner().invoke(main, command)
    assert "hf auth login" in done.output
    assert not (tmp_path / "merged").exists()


def test_a_hub_that_cannot_be_reached_is_told(
    hub: Hub, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    command = ["export", str(tiny_run), "-o", str(tmp_path / "merged"), "--push", "org/clip", "--license", "mit"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "The export is complete in" in done.output
    assert TOKEN not in done.output
