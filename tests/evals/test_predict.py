"""`clipglot predict`: which text describes an image best."""

import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.merged_clip import MergedClip, load_merged
from clipglot.evals.predict import rank_texts
from PIL import Image

TEXTS = ["красный шум", "синий шум", "[b]текст[/b] :cat:"]


@pytest.fixture(scope="module")
def clip(merged: Path) -> MergedClip:
    return load_merged(merged)


@pytest.fixture
def image(manifest: Path) -> Path:
    return manifest.parent / "images" / "0000.png"


def test_order_and_probabilities_are_those_of_open_clip(clip: MergedClip, merged: Path, image: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{merged}")
    with torch.inference_mode():
        image_emb = model.eval().encode_image(preprocess(Image.open(image))[None], normalize=True)
        text_emb = model.encode_text(open_clip.get_tokenizer(f"local-dir:{merged}")(TEXTS), normalize=True)
        expected = (model.logit_scale.exp() * image_emb @ text_emb.T).softmax(-1)[0].numpy()
    (prediction,) = rank_texts(clip, [image], TEXTS)
    order = np.argsort(-expected)
    assert prediction.texts == [TEXTS[i] for i in order]
    np.testing.assert_allclose(prediction.probabilities, expected[order], rtol=1e-4)
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_each_image_gets_its_own_answer_in_the_order_given(clip: MergedClip, manifest: Path) -> None:
    images = [manifest.parent / "images" / f"{i:04}.png" for i in (3, 0)]
    together = list(rank_texts(clip, images, TEXTS))
    assert [p.image for p in together] == [str(p) for p in images]
    assert together == [next(rank_texts(clip, [p], TEXTS)) for p in images]


def test_a_link_is_followed_wherever_it_leads(clip: MergedClip, image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(image)
    assert next(rank_texts(clip, [link], TEXTS)).cosines == next(rank_texts(clip, [image], TEXTS)).cosines


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "not a picture"),
        (b"no image", "not a picture"),
        (b"\x89PNG\r\n\x1a\n broken", "damaged|not a picture"),
    ],
)
def test_an_image_that_cannot_be_read_has_its_reason_and_the_others_their_answers(
    clip: MergedClip, image: Path, content: bytes | None, reason: str, tmp_path: Path
) -> None:
    bad = tmp_path / "кот.png"
    if content is not None:
        bad.write_bytes(content)
    failed, good = rank_texts(clip, [bad, image], TEXTS)
    assert (failed.image, failed.texts, failed.probabilities) == (str(bad), [], [])
    assert re.fullmatch(reason, str(failed.error))
    assert good == next(rank_texts(clip, [image], TEXTS))


def test_a_folder_that_is_no_merged_clip_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="make a merged CLIP with `clipglot export RUN"):
        load_merged(tmp_path)
