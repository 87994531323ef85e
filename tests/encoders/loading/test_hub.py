"""One refusal at once where the model hub cannot be reached."""

import socket
from pathlib import Path

import pytest
from clipglot.encoders.loading.hub import HubUnreachableError, hub_access
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from support.launcher import Launcher

LOAD = """
import logging, sys
import huggingface_hub.constants as constants

constants.ENDPOINT, constants.HF_HUB_OFFLINE = "http://127.0.0.1:9", False  # nobody listens there
attempts = []


class Attempts(logging.Handler):
    def emit(self, record):
        attempts.append(record)


logging.getLogger("huggingface_hub").addHandler(Attempts())
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.tokenizer_lm import LMTokenizer

try:
    what, *arguments = sys.argv[1:]
    LMTokenizer.load(*arguments) if what == "tokenizer" else load_image_tower(*[*arguments, None][:2])
except EncoderError as error:
    print(error)
assert not attempts, attempts
assert not constants.HF_HUB_OFFLINE  # the next command may have a network
"""


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("tower", "ViT-B-32", "laion2b_s34b_b79k"), ["--pretrained FILE", "127.0.0.1:9"]),
        (("tower", "timm/vit_tiny_patch16_224"), ["--pretrained FILE", "127.0.0.1:9"]),
        (("tower", "hf-hub:someone/clip"), ["hf-hub:someone/clip", "127.0.0.1:9"]),
        (("tokenizer", "someone/lm"), ["someone/lm", "127.0.0.1:9"]),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_an_unreachable_hub_is_one_error_without_further_attempts(
    launcher: Launcher, tmp_path: Path, arguments: tuple[str, ...], facts: list[str]
) -> None:
    home = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    process = launcher.run(LOAD, *arguments, folder=tmp_path, environment=home)
    (message,) = process.out().splitlines()
    assert all(fact in message for fact in facts), message
    assert process.err() == ""


@pytest.mark.parametrize(("proxies", "attempts"), [({}, 1), ({"all": "socks5://a:1"}, 0), ({"https": "http://a:1"}, 0)])
def test_the_hub_is_tried_once_unless_a_proxy_is_in_between(
    proxies: dict[str, str], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*_: object, **__: object) -> None:
        tried.append(1)
        raise TimeoutError("timed out")

    monkeypatch.setattr(constants, "ENDPOINT", f"https://{'-'.join(proxies) or 'none'}.example")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("clipglot.encoders.loading.hub.getproxies", lambda: proxies)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for _ in range(3):
        with pytest.raises(LocalEntryNotFoundError if proxies else HubUnreachableError), hub_access():
            raise LocalEntryNotFoundError("not here")
    assert len(tried) == attempts
