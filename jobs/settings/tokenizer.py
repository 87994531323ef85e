"""Settings of `clipglot tokenizer`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...cache.location import Location
from ...distill.settings import require, require_at_least_one


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """`clipglot tokenizer`: train or extend a tokenizer on captions, or inspect how one splits them."""

    cache: Annotated[Location, "cache whose captions are read"]
    output: Annotated[Path | None, "folder to write; must not exist"] = None
    kind: Annotated[
        Literal["bpe", "unigram"] | None, "byte-level BPE, or Unigram with byte fallback (default: bpe)"
    ] = None
    vocab_size: Annotated[
        int | None,
        "maximum number of tokens, special ones included (default: 16,384; with --extend, 8,192 more than before)",
    ] = None
    extend: Annotated[
        Path | None, "folder of a tokenizer to add tokens to, keeping its ids; open_clip is open_clip's own BPE"
    ] = None
    inspect: Annotated[Path | None, "only report on the tokenizer in this folder (or open_clip)"] = None
    context_length: Annotated[int, "tokens beyond which the report counts a caption as cut"] = 77

    def __post_init__(self) -> None:
        require_at_least_one(self, "vocab_size", "context_length")
        require(
            (self.output is None) != (self.inspect is None),
            "pass --output DIR to write a tokenizer, or --inspect FOLDER to report on one",
        )
        changes = [name for name in ("kind", "vocab_size", "extend") if getattr(self, name) is not None]
        require(
            self.inspect is None or not changes,
            f"--{'-'.join(changes[:1]).replace('_', '-')} is for a new tokenizer, --inspect writes none: leave one out",
        )
        require(
            self.extend is None or self.kind is None,
            f"--kind {self.kind} with --extend: an extended tokenizer keeps its kind: leave out --kind",
        )
