"""Parsing of records: from named values, as a table, a sidecar or a dataset has them, to a row."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CacheError
from ..format import SourceInfo, is_language_tag
from .reader import Locator
from .source import SourceRow
from .where import WhereFilter

SPLIT = "split"  # the column that --split filters by
SHOWN_FIELDS = 40  # in a message


class RecordParser:
    """Takes the asked-for fields out of records; leaves out those of another split or that do not fulfil `--where`."""

    def __init__(self, info: SourceInfo, *, has_key: bool = True, left_out: Counter[str] | None = None) -> None:
        """Remember what was asked for.

        Args:
            info: the fields.
            has_key: whether records name their image, rather than the source itself.
            left_out: the source's count of records that are left out, by the flag that did so.

        Raises:
            CacheError: `--where` cannot be parsed.
        """
        self._info = info
        self._condition = WhereFilter(info.where) if info.where is not None else None
        self._left_out = Counter() if left_out is None else left_out
        self._image_field = info.image_field if has_key and info.images else None
        fields = [*([self._image_field] if self._image_field else []), *info.text_fields, *info.teacher_fields]
        self._flags = dict.fromkeys(fields, "--text-field")
        self._flags |= dict.fromkeys(info.teacher_fields, "--teacher-field")
        if self._image_field:
            self._flags[self._image_field] = "--image-field"
        if info.language_field:
            self._flags[info.language_field] = "--language-field"
        if info.split is not None:
            self._flags.setdefault(SPLIT, "--split")

    @property
    def fields(self) -> list[str]:
        """The fields that a record must have."""
        return list(self._flags)

    def row(
        self, record: Mapping[str, Any], line: int, where: str, *, key: str = "", locator: Locator | None = None
    ) -> SourceRow | None:
        """The row of a record; None if it is left out.

        Args:
            record: its fields.
            line: its number.
            where: file and line, for messages.
            key: of the image, if records do not name it.
            locator: of the image.

        Raises:
            CacheError: a field is absent, or not of the type it must be.
        """
        for name, flag in self._flags.items():
            if name not in record:
                remedy = "leave out --split" if flag == "--split" else f"pass {flag} NAME"
                found = ", ".join(map(str, list(record)[:SHOWN_FIELDS]))
                raise CacheError(f"{where}: no field {name!r} (found: {found}): {remedy}")
        if self._info.split is not None and record[SPLIT] != self._info.split:
            self._left_out["--split"] += 1
            return None
        if self._condition and not self._condition.holds(record, where):
            self._left_out["--where"] += 1
            return None
        if self._image_field:
            key = _key_of(record, self._image_field, where)
        by_field = [texts_of(record[name], name, where) for name in self._info.text_fields]
        texts = [text for texts in by_field for text in texts]
        translations = [text for name in self._info.teacher_fields for text in texts_of(record[name], name, where)]
        languages = self._languages(record, by_field, where)
        if None in texts or None in translations:
            return SourceRow(line, key, *_without_null(texts, translations, languages), locator)
        return SourceRow(line, key, texts, translations, languages, locator)  # type: ignore[arg-type]

    def _languages(self, record: Mapping[str, Any], by_field: list[list[str | None]], where: str) -> list[str]:
        """The tag of each caption; empty where no language is given."""
        info, num = self._info, sum(map(len, by_field))
        if info.language_field:
            value = record[info.language_field]
            tags = value if isinstance(value, list) else [value] * num
            if len(tags) != num or not all(tag in (None, "") or is_language_tag(tag) for tag in tags):
                raise CacheError(
                    f"{where}: {info.language_field!r} must be a tag such as 'zh' or 'pt-BR', or one for each of {num} "
                    f"captions, found {value!r:.100}"
                )
            return [tag or "" for tag in tags]
        if len(info.languages) == 1:
            return info.languages * num
        return [tag for tag, captions in zip(info.languages, by_field, strict=bool(info.languages)) for _ in captions]


def _key_of(record: Mapping[str, Any], field: str, where: str) -> str:
    key = record[field]
    if not isinstance(key, str) or not key:
        raise CacheError(
            f"{where}: {field!r} must be the path of an image, found {'null' if key is None else repr(key)}: mend or "
            f'drop the record, or leave out those without by --where "{field} is not None"'
        )
    if not is_unicode(key):
        raise CacheError(f"{where}: {field!r} holds half of a surrogate pair: {key!r}")
    return key


def texts_of(value: Any, field: str, where: str) -> list[str | None]:
    """The texts that a field holds: one, a list of texts and nulls, or none.

    Raises:
        CacheError: something else.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(text is None or isinstance(text, str) for text in value):
        raise CacheError(f"{where}: {field!r} must be a string or a list of strings, found {value!r:.100}")
    return value


def _without_null(
    texts: list[str | None], translations: list[str | None], languages: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """Captions, translations and languages without the nulls among the texts, and without what belongs to those."""
    captions = [text for text in texts if text is not None]
    if len(translations) == len(texts):  # they belong together one by one
        translations = [other or "" for text, other in zip(texts, translations, strict=True) if text is not None]
    translated = [text for text in translations if text is not None]
    if languages:
        languages = [tag for text, tag in zip(texts, languages, strict=True) if text is not None]
    return captions, translated, languages


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def choose_split(names: Iterable[str], split: str | None, where: object) -> str:
    """Choose the part of a source that is read, where splits are files or folders.

    Args:
        names: of the parts; "" for what belongs to no split.
        split: the one that was asked for; may be None where there is only one.
        where: the source, for messages.

    Raises:
        CacheError: no such split, or several to choose from.

    >>> choose_split(["train", "test"], "test", "pairs")
    'test'
    """
    known = sorted(set(names))
    if split is None and len(known) == 1:
        return known[0]
    if split is not None and split in known:
        return split
    listed = ", ".join(filter(None, known)) or "none"
    if split is not None:
        raise CacheError(f"{where}: no split {split!r} in it (found: {listed}): pass --split NAME")
    raise CacheError(f"{where}: has several splits ({listed}): pass --split NAME, one of them")
