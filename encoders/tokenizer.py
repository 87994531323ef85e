"""Tokenizers of text towers: interface, tokenizers with BOS and EOS, and training of BPE and Unigram.

All of them encode exactly as open_clip does at inference with the exported folder, but without padding.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .errors import EncoderError
from .loading.untrusted_files import read_json
from .loading.untrusted_regex import panics_named, require_tame_expressions
from .text_cleaning import clean

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"  # ids 0, 1, 2
SPECIAL: dict[str, str | None] = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": None}
"""Special tokens of the tokenizers trained here, by role as named in transformers."""
ROLES = (*SPECIAL, "cls_token", "sep_token", "mask_token")
AS_TEXT = "split_special_tokens"  # key of tokenizer_config.json by which transformers reads special tokens as text
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
CLEANING = "whitespace"  # text cleaning of open_clip's HFTokenizer: ftfy, HTML entities and whitespace


class TextTokenizer(ABC):
    """Interface of tokenizers; the ids are those of `open_clip.get_tokenizer` for an export, without padding.

    Attributes:
        vocab_size: number of tokens.
        pad_id: id of open_clip's padding, or None.
    """

    vocab_size: int
    pad_id: int | None

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the tokenizer of a folder; some kinds also read a hub repository.

        Raises:
            EncoderError: no tokenizer in it, or one of another kind.
        """

    @classmethod
    def load_for_new(cls, folder: str | Path) -> Self:
        """Read the tokenizer of a folder for a new run, in which special tokens in captions are text.

        Raises:
            EncoderError: as `load`.
        """
        return cls.load(folder)

    @property
    @abstractmethod
    def backend(self) -> Tokenizer:
        """The underlying tokenizer of the tokenizers library; it neither truncates nor pads."""

    @abstractmethod
    def encode(self, captions: Sequence[str], context_length: int) -> list[list[int]]:
        """Ids of each caption with special tokens, at most `context_length`, without padding."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""

    @abstractmethod
    def fingerprint(self, context_length: int) -> str:
        """SHA-256 over everything that determines the ids: equal fingerprints mean equal ids."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that open_clip (`local-dir:`) and transformers load."""


class CaptionTokenizer(TextTokenizer):
    """Tokenizer with a begin and an end token around each caption, as causal towers need them.

    Attributes:
        special: special tokens by role, as named in transformers.
        vocab_size: number of tokens.
        pad_id: id of the padding token.
        bos_id: id of the begin token.
        eos_id: id of the end token.
        special_as_text: whether a special token spelled out in a caption is text; in earlier runs it is not.
    """

    pad_id: int
    bos_id: int
    eos_id: int
    special_as_text: bool = True

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, str | None] = SPECIAL) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: one that puts captions between a begin and an end token.
            special: its special tokens by role, with at least `pad_token`, `bos_token` and `eos_token`.
        """
        self._tokenizer = tokenizer
        self.special = dict(special)
        self.vocab_size = tokenizer.get_vocab_size()
        self.pad_id, self.bos_id, self.eos_id = (self._id(role) for role in ("pad_token", "bos_token", "eos_token"))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a folder written by `save`, or a transformers tokenizer with a begin and an end token.

        Special tokens in captions mean what the folder says, so that the ids of earlier runs stay as they are.

        Raises:
            EncoderError: no tokenizer in it, or one that does not put captions between BOS and EOS.
        """
        folder = Path(folder)
        tokenizer = read_tokenizer(folder)
        loaded = cls(tokenizer, _special_tokens(folder))
        config = folder / FILES[1]
        loaded.special_as_text = config.is_file() and bool(read_json(config).get(AS_TEXT, False))
        if loaded.encode([""], 2) != [[loaded.bos_id, loaded.eos_id]]:  # the tower pools at EOS
            raise EncoderError(
                f"{folder / FILES[0]}: does not end captions with {loaded.special['eos_token']} after "
                f"{loaded.special['bos_token']}: use one made by `clipglot tokenizer`"
            )
        return loaded

    @classmethod
    def load_for_new(cls, folder: str | Path) -> Self:
        """Read a tokenizer for a new run: whatever the folder says, special tokens in captions are text.

        Raises:
            EncoderError: as `load`.
        """
        loaded = cls.load(folder)
        loaded.special_as_text = True
        spell_special_pieces(loaded._tokenizer)
        return loaded

    @property
    def backend(self) -> Tokenizer:
        """A copy of the underlying tokenizer; it neither truncates nor pads."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = self.special_as_text
        return copy

    def encode(self, captions: Sequence[str], context_length: int) -> list[list[int]]:
        """Ids of each caption: BOS, text, EOS, at most `context_length`; a truncated caption keeps its EOS."""
        self._tokenizer.enable_truncation(context_length)
        self._tokenizer.encode_special_tokens = self.special_as_text  # which neither its JSON nor a pickle keeps
        with panics_named():
            return [e.ids for e in self._tokenizer.encode_batch_fast([clean(caption) for caption in captions])]

    def fingerprint(self, context_length: int) -> str:
        """SHA-256 over everything that determines the ids: equal fingerprints mean equal ids."""
        self._tokenizer.no_truncation()  # `encode` sets it
        decisive = [self._tokenizer.to_str(), CLEANING, context_length]
        if self.special_as_text:
            decisive.append("special tokens split")  # not before: tokens that are stored keep their names
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write the files that open_clip (`local-dir:`), transformers 4 and transformers 5 load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config: dict[str, Any] = self.special | {
            # Named so because transformers 4 does not know the class name that transformers 5 would write.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**9,
        }
        if self.special_as_text:
            config[AS_TEXT] = True
        tokens = {name: token for name, token in self.special.items() if token}
        contents = (
            self._tokenizer.to_str(pretty=True),
            json.dumps(config, indent=2),
            json.dumps(tokens, indent=2),
        )
        for name, content in zip(FILES, contents, strict=True):
            (folder / name).write_text(content, encoding="utf-8")

    def _id(self, role: str) -> int:
        token = self.special.get(role)
        if token is None:
            raise EncoderError(f"the tokenizer names no {role.replace('_', ' ')}: use one made by `clipglot tokenizer`")
        id_ = self._tokenizer.token_to_id(token)
        if id_ is None:
            raise EncoderError(f"the tokenizer has no {token} token: use one made by `clipglot tokenizer`")
        return int(id_)


def takes_captions(folder: Path, text_cfg: Mapping[str, Any]) -> bool:
    """Whether `CaptionTokenizer` gives the ids that open_clip gives for a CLIP of others, from the CLIP's own folder.

    Args:
        folder: with an open_clip_config.json.
        text_cfg: of it.
    """
    if not text_cfg.get("hf_tokenizer_name") or text_cfg.get("tokenizer_kwargs") or text_cfg.get("tokenizer_mode"):
        return False
    if text_cfg.get("pool_type") != "eos" or not (folder / FILES[1]).is_file():
        return False
    config = read_json(folder / FILES[1])
    known = {*ROLES, "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", AS_TEXT}
    if config.get("tokenizer_class") != "PreTrainedTokenizerFast" or not config.keys() <= known:
        return False  # another class has rules of its own
    try:
        tokenizer = CaptionTokenizer.load(folder)
    except EncoderError:
        return False
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    named = all(token in vocabulary for token in tokenizer.special.values() if token)  # transformers adds others
    return named and text_cfg.get("eos_id") == tokenizer.eos_id and tokenizer.vocab_size <= text_cfg["vocab_size"]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json of any folder, also of a language model; the tokenizer neither truncates nor pads.

    Raises:
        EncoderError: the file is missing or cannot be read.
    """
    file = folder / FILES[0]
    if not file.is_file():
        raise EncoderError(
            f"{folder}: no tokenizer.json in it: make a tokenizer with `clipglot tokenizer`, or save that of a "
            "language model with `AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)`"
        )
    require_tame_expressions(file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise EncoderError(f"{file}: not a tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def spell_special_pieces(tokenizer: Tokenizer) -> None:
    """Let a Unigram model spell special tokens, which SentencePiece never finds in a text and this library does.

    A text is split inside each one, so that the model never sees it whole. Scores would not do: where a character of
    it is unknown, its spelling scores below every piece. Nothing else changes.
    """
    state = json.loads(tokenizer.to_str())
    if state["model"]["type"] != "Unigram":
        return
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    inside = sorted({piece for piece, _ in state["model"]["vocab"] if len(piece) > 1} & special)
    patterns = [f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in inside]
    # Some models have a hundred special tokens: few long expressions are faster than many short ones.
    joined = ["|".join(patterns[start : start + 32]) for start in range(0, len(patterns), 32)]
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in joined]
    before = state["pre_tokenizer"] or {}
    found = [part.get("pattern", {}).get("Regex") for part in before.get("pretokenizers", [before])]
    if found[-len(joined) :] != joined:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*([tokenizer.pre_tokenizer] if before else []), *splits])


def _special_tokens(folder: Path) -> dict[str, str | None]:
    """Special tokens by role from the transformers files beside tokenizer.json; `SPECIAL` without such files."""
    named: dict[str, Any] = {}
    for file in (folder / FILES[2], folder / FILES[1]):
        if file.is_file():
            named |= {role: token for role, token in read_json(file).items() if role in ROLES}
    if not named:
        return dict(SPECIAL)
    named = {role: token["content"] if isinstance(token, dict) else token for role, token in named.items()}
    for role, of_bert in (("bos_token", "cls_token"), ("eos_token", "sep_token")):
        named[role] = named.get(role) or named.get(of_bert)
    extra = {role: named[role] for role in ROLES[len(SPECIAL) :] if named.get(role)}
    return {role: named.get(role) for role in SPECIAL} | extra


# Words as in GPT-2, but marks (such as the vowel signs of Devanagari) stay with their letter.
_WORD = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}[\p{L}\p{M}]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    # Chinese has no spaces: without this split whole phrases become single tokens, which do not generalize.
    pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
    pre_tokenizers.Split(Regex(_WORD), "isolated"),
)
_ASCII = [chr(code) for code in range(33, 127)]


def train_bpe(captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
    """Train a byte-level BPE tokenizer; every text in every script round-trips (after NFC).

    Args:
        captions: the training texts.
        vocab_size: maximum number of tokens, special ones included; few captions may give fewer.

    Raises:
        EncoderError: a vocabulary too small for the 256 bytes.

    >>> tokenizer = train_bpe(["кот на столе", "桌上的猫", "책상 위의 고양이 🐈"], 300)
    >>> tokenizer.decode(tokenizer.encode(["책상 위의 кот 🐈"], 77)[0])
    '책상 위의 кот 🐈'
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 3:
        raise EncoderError(f"--vocab-size {vocab_size} cannot hold 256 bytes and 3 special tokens: use 259 or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_WORDS, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((clean(caption) for caption in captions), trainer)
    return CaptionTokenizer(_between_bos_and_eos(tokenizer))


def train_unigram(captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
    """Train a Unigram tokenizer with byte fallback; every text round-trips (after NFC; `▁` reads as a space).

    Unigram language model of Kudo, "Subword Regularization", 2018, section 3.2, with the bytes of SentencePiece:
    characters that are rare in the captions, or missing, become their UTF-8 bytes, so no text is unknown.

    Args:
        captions: the training texts.
        vocab_size: maximum number of tokens, special ones and the 256 bytes included; few captions may give fewer.

    Raises:
        EncoderError: a vocabulary too small for the bytes and ASCII, or captions without a word.

    >>> tokenizer = train_unigram(["кот на столе", "桌上的猫", "책상 위의 고양이"], 470)
    >>> tokenizer.decode(tokenizer.encode(["책상 위의 кот 🐈"], 77)[0])
    '책상 위의 кот 🐈'
    """
    num_fixed = 3 + 256
    if vocab_size < num_fixed + 2 * len(_ASCII):
        raise EncoderError(
            f"--vocab-size {vocab_size} cannot hold 256 bytes, 3 special tokens and ASCII beside words: "
            f"use {num_fixed + 2 * len(_ASCII)} or more"
        )
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # No mark before the first word: before a Han character it would be a separate token.
        [*_WORDS, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - num_fixed,
        initial_alphabet=_ASCII,
        special_tokens=[],
        unk_token=None,
        show_progress=False,
    )
    texts = [clean(caption) for caption in captions]
    # The trainer keeps every character: give them at most half of the vocabulary, the rest become bytes.
    counts = Counter(normalizers.NFC().normalize_str("\n".join(texts)))
    frequent = [c for c, count in counts.most_common((vocab_size - num_fixed - len(_ASCII)) // 2) if count > 1]
    rare = dict.fromkeys(map(ord, counts.keys() - {*frequent, *_ASCII}), " ")
    try:
        tokenizer.train_from_iterator((text.translate(rare) for text in texts), trainer)
    except Exception as error:  # the Rust side raises bare Exception
        raise EncoderError(f"no Unigram tokenizer can be trained on these captions ({error}): use a BPE") from error
    trained = json.loads(tokenizer.to_str())["model"]["vocab"]
    # The trainer is not deterministic: threads add up scores in any order, and characters that it keeps regardless of
    # their score get the lowest scores, 0.0001 apart, in the order of a hash table. Round all scores, and give these
    # characters the same score.
    lowest = min(score for _, score in trained)
    level = lowest + 0.0001 * sum(len(piece) == 1 for piece, _ in trained)
    scores = ((piece, lowest if len(piece) == 1 and score < level else score) for piece, score in trained)
    pieces = sorted(((piece, round(score, 6)) for piece, score in scores), key=lambda scored: (-scored[1], scored[0]))
    # The text `<0x41>` must stay six characters and not become a byte: their total score must be higher.
    byte_score = 8 * pieces[-1][1]
    special = [(token, 0.0) for token in (PAD, BOS, EOS)]
    tokens = [*special, *((f"<0x{byte:02X}>", byte_score) for byte in range(256)), *pieces]
    tokenizer.model = models.Unigram(tokens, unk_id=0, byte_fallback=True)  # requires an unknown id, never uses it
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    spell_special_pieces(tokenizer)
    return CaptionTokenizer(_between_bos_and_eos(tokenizer))


def _between_bos_and_eos(tokenizer: Tokenizer) -> Tokenizer:
    bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} {BOS} $B {EOS}", special_tokens=[bos, eos]
    )
    return tokenizer


OPEN_CLIP = "open_clip"
"""Name of the tokenizer below in `--extend` and `--inspect`, instead of a folder."""


def open_clip_tokenizer() -> CaptionTokenizer:
    """Default tokenizer of open_clip's text towers; its padding token is its end token.

    open_clip pads with id 0 instead, which is `!`. Towers that pool at the first end token are affected by neither.
    """
    simple = SimpleTokenizer()
    begin, end = (simple.decoder[id_] for id_ in (simple.sot_token_id, simple.eot_token_id))
    tokenizer = Tokenizer(
        models.BPE(vocab=dict(simple.encoder), merges=list(simple.bpe_ranks), end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        # Python's `lower` handles the final sigma of a word, the Rust one does not.
        [
            normalizers.Replace(Regex(r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])"), "ς"),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        # Ġ is the space of the byte-level alphabet; the one after the last word is stripped.
        [decoders.Replace("</w>", "Ġ"), decoders.ByteLevel(), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in (begin, end)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {begin} $B {end}",
        special_tokens=[(begin, simple.sot_token_id), (end, simple.eot_token_id)],
    )
    special = {"pad_token": end, "bos_token": begin, "eos_token": end, "unk_token": None}
    result = CaptionTokenizer(tokenizer, special)
    result.special_as_text = False  # as there; what extends it reads them as text
    return result
