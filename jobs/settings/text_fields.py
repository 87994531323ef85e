"""Checks of settings by which captions are read from a source."""

from collections.abc import Sequence

from ...cache.errors import CacheError
from ...cache.format import is_language_tag
from ...cache.sources.text_files import is_text_encoding
from ...cache.sources.where import WhereFilter
from ...distill.errors import DistillError
from ...distill.settings import require


def require_readable_captions(
    *, language: Sequence[str], language_field: str | None, text_field: Sequence[str], encoding: str, where: str | None
) -> None:
    """Refuse language tags, encodings and conditions that cannot be meant.

    Args:
        language: tags of the captions.
        language_field: field with the tag of a record.
        text_field: fields with captions.
        encoding: of text files.
        where: condition on records.

    Raises:
        DistillError: names the flag.
    """
    bad_tags = [tag for tag in language if not is_language_tag(tag)]
    require(not bad_tags, f"--language {', '.join(bad_tags)}: expected a tag of BCP 47 such as zh or pt-BR")
    require(not (language and language_field), "--language and --language-field exclude each other")
    require(
        len(language) in (0, 1, max(1, len(text_field))),
        f"--language is given {len(language)} times: give it once, or once for each --text-field",
    )
    require(
        is_text_encoding(encoding),
        f"--encoding {encoding}: no encoding of texts, expected e.g. gb18030, utf-16 or cp1252",
    )
    if where is not None:
        try:
            WhereFilter(where)
        except CacheError as error:
            raise DistillError(str(error)) from error
