"""open_clip's own BPE, the one of OpenAI's CLIP, as a tokenizer of this package: the same ids for every text."""

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .tokenizer import CaptionTokenizer

OPEN_CLIP = "open_clip"
"""What `--extend` and `--inspect` call it in place of a folder."""


def open_clip_tokenizer() -> CaptionTokenizer:
    """The tokenizer of open_clip's text towers that name no other one; its pad token is its end token.

    open_clip pads with id 0 instead, which is `!`; towers that pool at the first end token see neither.
    """
    simple = SimpleTokenizer()
    begin, end = (simple.decoder[id_] for id_ in (simple.sot_token_id, simple.eot_token_id))
    tokenizer = Tokenizer(
        models.BPE(vocab=dict(simple.encoder), merges=list(simple.bpe_ranks), end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        # Python's `lower` knows the sigma that ends a word, the Rust one does not.
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
        # Ġ is the space of the byte-level alphabet; the one behind the last word goes.
        [decoders.Replace("</w>", "Ġ"), decoders.ByteLevel(), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in (begin, end)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {begin} $B {end}",
        special_tokens=[(begin, simple.sot_token_id), (end, simple.eot_token_id)],
    )
    special = {"pad_token": end, "bos_token": begin, "eos_token": end, "unk_token": None}
    return CaptionTokenizer(tokenizer, special)
