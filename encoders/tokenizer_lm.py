"""The tokenizer of a pretrained language model, with the ids of open_clip's HFTokenizer, unpadded."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from .errors import EncoderError
from .loading.untrusted import lm_tokenizer
from .loading.untrusted_files import read_json
from .loading.untrusted_regex import panics_named
from .text_cleaning import clean
from .tokenizer import CLEANING, FILES, TextTokenizer, spell_special_pieces
from .tokenizer_prune import prune_vocabulary

_OWN_MARKS = ("▁", " ")  # that models of SentencePiece put before every text

_TEMPLATE = """{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair":
[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}}"""
_WHOLE = 10**6  # tokens: no text is cut
_CHECKED = 10_000  # texts of a block whose tokens must be the same after pruning
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # names of one class, of which transformers 4 knows the first


class LMTokenizer(TextTokenizer):
    """Captions to the ids that a language model was trained on.

    A prompt is the first normalizer of the tokenizer itself, so that every library puts it before a caption.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.pad_id: int | None = tokenizer.pad_token_id
        self._end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the tokenizer of a folder or a hub repository.

        Raises:
            EncoderError: none there, or one that is not backed by the tokenizers library.
        """
        try:
            # Special tokens that a caption spells out are text like other text: a pad amid a caption would be hidden
            # from attention here and not there. What `save` writes keeps it so.
            tokenizer = lm_tokenizer(folder, split_special_tokens=True)
        except Exception as error:  # of many types
            reason = str(error).strip().splitlines()[0]
            raise EncoderError(
                f"{folder}: no tokenizer that transformers loads ({reason}): pass the folder (config.json, "
                "model.safetensors, tokenizer.json) or the hub repository of a language model"
            ) from error
        if not tokenizer.is_fast:
            raise EncoderError(f"{folder}: its tokenizer is not a fast one: convert it so that it has a tokenizer.json")
        return cls(tokenizer)

    @classmethod
    def load_for_new(cls, folder: str | Path) -> Self:
        """Read a tokenizer for a new run, in which special tokens that a caption spells out are text.

        Raises:
            EncoderError: as `load`.
        """
        loaded = cls.load(folder)
        spell_special_pieces(loaded.backend)
        return loaded

    @property
    def prompt(self) -> str:
        """Text that stands before each caption; empty without one."""
        first = self._normalizers()[:1]
        is_prompt = bool(first) and first[0]["type"] == "Prepend" and first[0]["prepend"] not in _OWN_MARKS
        return str(first[0]["prepend"]) if is_prompt else ""

    def with_prompt(self, prompt: str, name: str) -> Self:
        """The tokenizer, with a prompt before each caption.

        Args:
            prompt: the text.
            name: of the model, for the message.

        Raises:
            EncoderError: it has another one.
        """
        if self.prompt == prompt:
            return self
        if self.prompt:
            raise EncoderError(
                f"--text-prompt {prompt!r}: the tokenizer of {name} puts {self.prompt!r} before captions: drop "
                "--text-prompt, or begin with the language model itself"
            )
        backend = self.backend
        own = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(prompt), *own])
        return self

    def with_end(self) -> Self:
        """The tokenizer, with the end-of-text token after each caption, for a tower that pools the last token.

        Itself, if a special token ends its captions already, or it knows no end of a text. Language models that embed
        texts were trained with one, but their tokenizers do not always say so in a form that transformers heeds.
        """
        backend, end = self.backend, self._tokenizer.eos_token
        mask = backend.encode("a").special_tokens_mask  # empty if it knows no "a", nor an unknown token
        if end is None or (mask and mask[-1]):
            return self
        state = json.loads(backend.to_str())
        own = state["post_processor"]
        steps = [] if own is None else own["processors"] if own["type"] == "Sequence" else [own]
        # One template says all that stands around a caption: a second one would take a begin for the caption.
        template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
        if template is None:
            template = json.loads(_TEMPLATE)
            steps.append(template)
        template["single"].append({"SpecialToken": {"id": end, "type_id": 0}})
        template["pair"].append({"SpecialToken": {"id": end, "type_id": 1}})
        template["special_tokens"][end] = {"id": end, "ids": [self._tokenizer.eos_token_id], "tokens": [end]}
        state["post_processor"] = {"type": "Sequence", "processors": steps}
        return self._around(Tokenizer.from_str(json.dumps(state)))

    def _around(self, backend: Any) -> Self:
        """A tokenizer of the plain class, which takes a backend as it is, with the same special tokens."""
        named = {
            role: str(token) for role, token in self._tokenizer.special_tokens_map.items() if isinstance(token, str)
        }
        return type(self)(PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True, **named))

    def pruned(self, texts: Iterable[Sequence[str]]) -> Self:
        """A tokenizer with the tokens that some texts use and every single character; these texts keep their tokens.

        Args:
            texts: in blocks.

        Raises:
            EncoderError: a tokenizer that cannot be pruned, or one that would give these texts other tokens.
        """
        used, some = set[int](), list[str]()
        for block in texts:
            used.update(id_ for ids in self.encode(block, _WHOLE) for id_ in ids)
            some += block[:: -(-len(block) // _CHECKED) or 1]
        pruned = self._around(prune_vocabulary(self.backend, used))
        rows = self.rows_of(pruned)
        for text, old, new in zip(some, self.encode(some, _WHOLE), pruned.encode(some, _WHOLE), strict=True):
            if old != [rows[id_] for id_ in new]:
                raise EncoderError(f"--prune-vocab: {text!r:.80} would have other tokens without the rest: drop it")
        return pruned

    def rows_of(self, pruned: "LMTokenizer") -> list[int]:
        """Ids that the tokens of a pruned tokenizer have in this one, in the order of their new ids."""
        ids = self.backend.get_vocab(with_added_tokens=True)
        tokens = pruned.backend.get_vocab(with_added_tokens=True)
        return [ids[token] for token in sorted(tokens, key=tokens.__getitem__)]

    def _normalizers(self) -> list[dict[str, Any]]:
        """Normalizers of the tokenizer, as its JSON describes them."""
        described = json.loads(self.backend.to_str())["normalizer"] or {}
        parts: list[dict[str, Any]] = described.get("normalizers", [described] if described else [])
        return parts

    @property
    def backend(self) -> Any:
        """The tokenizer of the tokenizers library underneath, which neither cuts nor pads."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()  # which `encode` sets
        backend.no_padding()
        return backend

    def encode(self, captions: Sequence[str], context_length: int) -> list[list[int]]:
        """Ids of each caption with the model's special tokens, at most `context_length`, unpadded."""
        if not captions:
            return []
        cleaned = [clean(caption) for caption in captions]
        with panics_named():
            encoded = self._tokenizer(
                cleaned,
                max_length=context_length,
                truncation=True,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        # A tokenizer without special tokens makes nothing of an empty caption, and nothing cannot be pooled.
        return [ids or [self._end_id] for ids in encoded.input_ids]

    def fingerprint(self, context_length: int) -> str:
        """SHA-256 over all that decides the ids: two tokenizers with the same fingerprint give the same ids."""
        decisive = [self.backend.to_str(), "special tokens split", CLEANING, context_length]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write the files that open_clip (`local-dir:`) and transformers load."""
        folder.mkdir(parents=True, exist_ok=True)
        assert self.backend  # as it is saved
        self._tokenizer.save_pretrained(str(folder))
        plain = type(self._tokenizer).__name__ in _PLAIN
        if plain or self.prompt or json.loads(self.backend.to_str())["model"]["type"] == "Unigram":
            # Classes such as T5Tokenizer build their own tokenizer around a vocabulary, without `spell_special_pieces`
            # and without a prompt.
            config = folder / FILES[1]
            described = read_json(config) | {"tokenizer_class": "PreTrainedTokenizerFast"}
            config.write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
