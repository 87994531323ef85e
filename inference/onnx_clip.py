"""A CLIP that was exported to ONNX, run by onnxruntime: neither torch nor open_clip is imported."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..encoders.errors import EncoderError
from ..encoders.loading.untrusted_files import MAX_VOCABULARY, read_json
from ..encoders.loading.untrusted_regex import panics_named, require_tame_expressions
from ..encoders.text_cleaning import clean
from .onnx_files import read_index, require_safe_graph
from .onnx_layout import FEATURES, MODEL, TEXTUAL, VISUAL

TEXTS_AT_A_TIME = 256
IMAGES_AT_A_TIME = 32


class OnnxClip:
    """Both towers of an export in ONNX. D features.

    Attributes:
        name: the folder.
        dim: D.
        context_length: most tokens of a text.
        logit_scale: factor on cosines before a softmax.
        logit_bias: added to scaled cosines before a sigmoid, after a sigmoid loss.
        preprocess: open_clip's `preprocess_cfg`.
        weights_sha256: digest of the image tower's tensors.
        quick_gelu: the activation that an open_clip config would set.
        record: what the export tells of where it came from.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """Load an export.

        Args:
            folder: written by `clipglot export --format onnx`.
            threads: that onnxruntime computes with; 0 leaves it the choice.

        Raises:
            EncoderError: a file is missing, damaged, or would do more than compute; or onnxruntime is absent.
        """
        index = read_index(folder)
        self.name = str(folder)
        self.dim: int = index["dim"]
        self.context_length: int = index["context_length"]
        self.logit_scale: float = index["logit_scale"]
        self.logit_bias: float | None = index["logit_bias"]
        self.preprocess: dict[str, Any] = index["encoder"]["preprocess"]
        self.weights_sha256: str = index["encoder"]["weights_sha256"]
        self.quick_gelu: bool = index["encoder"]["quick_gelu"]
        self.record: dict[str, Any] = index.get("record") or {}
        self._inputs: list[str] = index["text_inputs"]
        self._pad_id: int = index["pad_id"]
        self._end_id: int = index["end_id"]  # of a text of which the tokenizer makes nothing
        self._mean, self._std = (_three(self.preprocess, name, folder) for name in ("mean", "std"))
        self._tokenizer = _tokenizer(folder / TEXTUAL / "tokenizer.json", index["cleaning_normalizers"])
        self._tokenizer.enable_truncation(self.context_length)
        files = [folder / part / MODEL for part in (TEXTUAL, VISUAL)]
        with ThreadPoolExecutor(2) as loaders:  # onnxruntime optimizes a graph in one thread
            self._text, self._image = loaders.map(lambda file: _session(file, threads), files)
        self._require_inputs(self._text, self._inputs)
        self._require_inputs(self._image, ["image"])

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        raw: bool = False,
        batch_size: int = TEXTS_AT_A_TIME,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm unless `raw`, in the order given.

        Args:
            texts: any number.
            raw: as the tower gives them.
            batch_size: texts at a time; they are sorted by length, so that a batch has little padding.
            on_progress: called with the texts done and their number.

        Raises:
            EncoderError: the tokenizer gives up, or gives an id that the text tower does not have.
        """
        with panics_named():
            ids = [
                each.ids or [self._end_id]
                for each in self._tokenizer.encode_batch_fast([clean(text) for text in texts])
            ]
        features = np.empty((len(texts), self.dim), np.float32)
        order = np.argsort([len(each) for each in ids], kind="stable")
        for start in range(0, len(texts), batch_size):
            positions = order[start : start + batch_size]
            features[positions] = self._run(self._text, self._padded([ids[i] for i in positions]))
            on_progress(start + len(positions), len(texts))
        return features if raw else features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw features `[B, D] float32` of pixels `[B, height, width, 3] uint8`."""
        features = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), IMAGES_AT_A_TIME):
            block = self.normalize(pixels[start : start + IMAGES_AT_A_TIME])
            features[start : start + len(block)] = self._run(self._image, {"image": block})
        return features

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the image model takes of pixels `[B, height, width, 3] uint8`, `[B, 3, height, width] float32`."""
        normalized = (pixels.astype(np.float32) / np.float32(255) - self._mean) / self._std
        return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokenizers library; it takes texts that are clean."""
        return self._tokenizer

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int32]]:
        """What the text model takes."""
        padded = np.full((len(ids), max(map(len, ids))), self._pad_id, np.int32)
        mask = np.zeros_like(padded)
        for row, each in enumerate(ids):
            padded[row, : len(each)], mask[row, : len(each)] = each, 1
        return dict(zip(self._inputs, (padded, mask), strict=False))

    def _run(self, session: Any, given: dict[str, Any]) -> NDArray[np.float32]:
        """Features of a batch.

        Raises:
            EncoderError: the model fails, or gives something else.
        """
        try:
            features = session.run([FEATURES], given)[0]
        except Exception as error:  # of many types of onnxruntime
            reason = str(error).splitlines()[0]
            raise EncoderError(f"{self.name}: its model does not compute ({reason}): export the run again") from error
        expected = (len(next(iter(given.values()))), self.dim)
        if features.shape != expected or features.dtype != np.float32:
            raise EncoderError(
                f"{self.name}: its model gives {features.dtype} {features.shape}, expected {expected}: export the run "
                "again"
            )
        result: NDArray[np.float32] = features
        return result

    def _require_inputs(self, session: Any, expected: list[str]) -> None:
        """Refuse a graph of another form.

        Raises:
            EncoderError: says what it takes and gives.
        """
        takes, gives = ([each.name for each in found] for found in (session.get_inputs(), session.get_outputs()))
        if takes != expected or gives != [FEATURES]:
            raise EncoderError(
                f"{self.name}: a model takes {takes} and gives {gives}, expected {expected} and {[FEATURES]}: export "
                "the run again"
            )


def _three(preprocess: dict[str, Any], name: str, folder: Path) -> NDArray[np.float32]:
    """A value of each colour.

    Raises:
        EncoderError: other than three numbers.
    """
    values = preprocess.get(name)
    if not (isinstance(values, list) and len(values) == 3 and all(type(each) in (int, float) for each in values)):
        raise EncoderError(f"{folder}: {name} of its preprocessing is {values!r}, expected three numbers: export again")
    return np.array(values, np.float32)


def _tokenizer(file: Path, cleaning: int) -> Tokenizer:
    """The tokenizer of captions that are clean, without padding.

    Args:
        file: tokenizer.json.
        cleaning: number of its first normalizers that clean, not as well as `clean`.

    Raises:
        EncoderError: a file that is no tokenizer, or a hostile one.
    """
    require_tame_expressions(file)
    state = read_json(file, MAX_VOCABULARY)
    try:
        state["normalizer"]["normalizers"] = state["normalizer"]["normalizers"][cleaning:]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # the Rust side raises bare Exception
        raise EncoderError(f"{file}: not a tokenizer ({error}): export the run again") from error
    tokenizer.no_padding()
    return tokenizer


def _session(file: Path, threads: int) -> Any:
    """A graph, loaded.

    Raises:
        EncoderError: as `OnnxClip`.
    """
    try:
        import onnxruntime

        path = require_safe_graph(file)
    except ImportError as error:
        raise EncoderError(f"{file} needs {error.name}: pip install onnx onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types
        reason = str(error).splitlines()[0]
        raise EncoderError(f"{file}: onnxruntime does not load it ({reason}): export the run again") from error
