"""Checks of settings by which captions are read from a source."""

from typing import Protocol

from ...cache.errors import CacheError
from ...cache.format import is_language_tag
from ...cache.sources.text_files import is_text_encoding
from ...cache.sources.where import WhereFilter
from ...distill.errors import DistillError
from ...distill.settings import require


class CaptionSettings(Protocol):
    """Settings of a command that reads captions."""

    @property
    def language(self) -> tuple[str, ...]:
        """Tags of the captions."""

    @property
    def language_field(self) -> str | None:
        """Field with the tag of a record."""

    @property
    def text_field(self) -> tuple[str, ...]:
        """Fields with captions."""

    @property
    def encoding(self) -> str:
        """Of text files."""

    @property
    def where(self) -> str | None:
        """Condition on records."""


def require_readable_captions(settings: CaptionSettings) -> None:
    """Refuse language tags, encodings and conditions that cannot be meant.

    Raises:
        DistillError: names the flag.
    """
    bad_tags = [tag for tag in settings.language if not is_language_tag(tag)]
    require(not bad_tags, f"--language {', '.join(bad_tags)}: expected a tag of BCP 47 such as zh or pt-BR")
    require(not (settings.language and settings.language_field), "--language and --language-field exclude each other")
    require(
        len(settings.language) in (0, 1, max(1, len(settings.text_field))),
        f"--language is given {len(settings.language)} times: give it once, or once for each --text-field",
    )
    require(
        is_text_encoding(settings.encoding),
        f"--encoding {settings.encoding}: no encoding of texts, expected e.g. gb18030, utf-16 or cp1252",
    )
    if settings.where is not None:
        try:
            WhereFilter(settings.where)
        except CacheError as error:
            raise DistillError(str(error)) from error
