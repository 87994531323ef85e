"""Tokenizers: byte-level BPE trained on captions, and encoding exactly as open_clip does at inference."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from open_clip.tokenizer import get_clean_fn
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .errors import EncoderError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"  # ids 0, 1, 2
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

CLEANING = "whitespace"  # what open_clip's HFTokenizer applies before tokenizing: ftfy, html and whitespace
_open_clip_clean = get_clean_fn(CLEANING)

# ftfy and html.unescape, which cost as much as tokenizing, leave texts of these characters alone: there is no entity
# without `&`; none of the characters is rewritten, by itself or by NFC beside others; and every pattern of ftfy.badness
# needs one that is not here. Other texts are only slower.
_PLAIN = re.compile(
    "["
    " -%'-~"  # ASCII but for `&`
    "ß-öø-ÿ"  # small letters of western Europe; capitals beside them can be mojibake
    "ЁЄІЇА-яёєіїў"  # Cyrillic without Ђ and ґ, which ftfy knows from mojibake
    "\u05d0-\u05ea"  # Hebrew
    "\u0621-\u063a\u0641-\u064a"  # Arabic without marks
    "、。ぁ-ゖゝ-ゟァ-ヿ"  # Kana
    "\u4e00-\u9fff"  # Han
    "가-힣"  # Hangul syllables
    "]*"
)


def clean(caption: str) -> str:
    """What open_clip's cleaning makes of a caption."""
    return " ".join(caption.split()) if _PLAIN.fullmatch(caption) else str(_open_clip_clean(caption))


class CaptionTokenizer:
    """Captions to ids, the same ids that `open_clip.get_tokenizer` gives for the exported folder, less padding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.pad_id, self.bos_id, self.eos_id = (self._id(token) for token in (PAD, BOS, EOS))

    @classmethod
    def load(cls, folder: Path) -> "CaptionTokenizer":
        """Read a folder written by `save`.

        Raises:
            EncoderError: no tokenizer there, or one that does not put captions between our BOS and EOS.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise EncoderError(f"{folder}: no tokenizer.json in it: make a tokenizer with `clipglot tokenizer`")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises bare Exception
            raise EncoderError(f"{file}: not a tokenizer ({error})") from error
        loaded = cls(tokenizer)
        if loaded.encode([""], 2) != [[loaded.bos_id, loaded.eos_id]]:  # the tower pools at EOS
            raise EncoderError(f"{file}: does not end captions with {EOS}: use one made by `clipglot tokenizer`")
        return loaded

    def encode(self, captions: Sequence[str], context_length: int) -> list[list[int]]:
        """Ids of each caption: BOS, text, EOS, at most `context_length`, unpadded; a cut caption keeps its EOS."""
        self._tokenizer.enable_truncation(context_length)
        return [e.ids for e in self._tokenizer.encode_batch_fast([clean(caption) for caption in captions])]

    def fingerprint(self, context_length: int) -> str:
        """sha256 over all that decides what `encode` gives: two tokenizers that share it give the same ids."""
        self._tokenizer.no_truncation()  # `encode` sets it
        decisive = [self._tokenizer.to_str(), CLEANING, context_length]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write the files that open_clip (`local-dir:`), transformers 4 and transformers 5 load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        special = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": None}
        config = special | {
            # Named so because transformers 4 does not know the class name that transformers 5 would write.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**9,
        }
        tokens = {name: token for name, token in special.items() if token}
        contents = (
            self._tokenizer.to_str(pretty=True),
            json.dumps(config, indent=2),
            json.dumps(tokens, indent=2),
        )
        for name, content in zip(FILES, contents, strict=True):
            (folder / name).write_text(content, encoding="utf-8")

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise EncoderError(f"the tokenizer has no {token} token: use one made by `clipglot tokenizer`")
        return int(found)


def train_bpe(captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
    """Train a byte-level BPE tokenizer; every text in every script round-trips (after NFC).

    Args:
        captions: the training texts.
        vocab_size: most tokens, special ones included; few captions may give fewer.

    Raises:
        EncoderError: a vocabulary too small to hold the 256 bytes.

    >>> tokenizer = train_bpe(["кот на столе", "桌上的猫", "책상 위의 고양이 🐈"], 300)
    >>> tokenizer.decode(tokenizer.encode(["책상 위의 кот 🐈"], 77)[0])
    '책상 위의 кот 🐈'
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 3:
        raise EncoderError(f"--vocab-size {vocab_size} cannot hold 256 bytes and 3 special tokens: use 259 or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # Chinese has no spaces: without the split whole phrases become single tokens, which compose nothing new.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((clean(caption) for caption in captions), trainer)
    bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} {BOS} $B {EOS}", special_tokens=[bos, eos]
    )
    return CaptionTokenizer(tokenizer)
