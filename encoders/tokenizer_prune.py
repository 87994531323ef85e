"""Pruned vocabularies: the tokens that texts use and every single character, so that kept texts have the same tokens.

All three models of tokenizers stay what they were for these texts. Unigram takes the best path, which is the best among
fewer, too; WordPiece takes the longest match, which is still there; BPE applies the merges of the text in their order,
and no merge of other texts was among them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from .errors import EncoderError

_MARKS = ("▁", "##", "Ġ")  # of a word's begin or of its rest


def prune_vocabulary(tokenizer: Tokenizer, used: Iterable[int]) -> Tokenizer:
    """A tokenizer with fewer tokens, in the order of the old ids.

    Args:
        tokenizer: neither truncates nor pads.
        used: ids that must stay; special tokens and single characters stay anyway.

    Raises:
        EncoderError: a model other than Unigram, BPE and WordPiece.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if model["type"] not in ("Unigram", "BPE", "WordPiece"):
        raise EncoderError(f"--prune-vocab: a tokenizer of type {model['type']} cannot be pruned: drop it")
    ids = tokenizer.get_vocab(with_added_tokens=True)
    pieces = {id_: piece for piece, id_ in ids.items()}
    kept = {pieces[id_] for id_ in used} | {piece for piece in ids if _is_character(piece)}
    kept |= {token["content"] for token in state["added_tokens"]}
    kept |= {token for token in (model.get("unk_token"),) if token in ids}
    if model["type"] == "Unigram":
        # An unknown character costs a constant more than the rarest piece; ids below the specials' must not move.
        kept |= {piece for piece, _ in model["vocab"][: (model["unk_id"] or 0) + 1]}
        kept.add(min(model["vocab"], key=lambda scored: scored[1])[0])
    prefix = model.get("continuing_subword_prefix") or ""
    kept |= set(_special(state["post_processor"]))
    if model["type"] == "BPE":
        kept |= _parts(kept, model["merges"], prefix)
    names = sorted(kept, key=ids.__getitem__)
    new = {piece: id_ for id_, piece in enumerate(names)}
    if model["type"] == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model["vocab"] = [scored for scored in model["vocab"] if scored[0] in kept]
        model["unk_id"] = None if unknown is None else new[unknown]
    else:
        model["vocab"] = {piece: new[piece] for piece in names if piece in model["vocab"]}
    if model["type"] == "BPE":
        model["merges"] = [pair for pair in model["merges"] if {*_pair(pair), _merged(pair, prefix)} <= kept]
    for token in state["added_tokens"]:
        token["id"] = new[token["content"]]
    _renumber(state["post_processor"], new)
    return Tokenizer.from_str(json.dumps(state))


def _is_character(piece: str) -> bool:
    """Whether a piece is one character, a byte, or the mark of a word with one."""
    if piece.startswith("<0x") and len(piece) == 6:
        return True
    for mark in _MARKS:
        if piece.startswith(mark) and len(piece) > len(mark):
            piece = piece.removeprefix(mark)
            break
    return len(piece.removesuffix("</w>")) <= 1 or piece in _MARKS


def _pair(merge: Any) -> Sequence[str]:
    """Both parts of a merge, in either form that tokenizer.json has."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _merged(merge: Any, prefix: str) -> str:
    """What a merge makes; the prefix of pieces that go on a word stands once, ahead."""
    first, second = _pair(merge)
    return first + second.removeprefix(prefix)


def _parts(pieces: set[str], merges: list[Any], prefix: str) -> set[str]:
    """Pieces that others are merged from, by any merge, down to the smallest."""
    made: dict[str, list[Sequence[str]]] = {}
    for merge in merges:
        made.setdefault(_merged(merge, prefix), []).append(_pair(merge))
    parts, waiting = set[str](), list(pieces)
    while waiting:
        for pair in made.get(waiting.pop(), []):
            waiting += [part for part in pair if part not in parts]
            parts |= set(pair)
    return parts


def _special(described: Any) -> Iterator[str]:
    """Tokens that a post-processor names, at any depth."""
    if isinstance(described, dict):
        if "ids" in described and "tokens" in described:
            yield from described["tokens"]
        yield from (described[name][0] for name in ("sep", "cls") if isinstance(described.get(name), list))
        for part in described.values():
            yield from _special(part)
    elif isinstance(described, list):
        for part in described:
            yield from _special(part)


def _renumber(described: Any, new: dict[str, int]) -> None:
    """Put new ids where a post-processor names tokens with their ids, at any depth."""
    if isinstance(described, dict):
        if "ids" in described and "tokens" in described:
            described["ids"] = [new[token] for token in described["tokens"]]
        for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
            if isinstance(described.get(name), list):
                described[name][1] = new[described[name][0]]
        for part in described.values():
            _renumber(part, new)
    elif isinstance(described, list):
        for part in described:
            _renumber(part, new)
