"""From a record, i.e. named values as a table, a sidecar or a dataset has them, to a row."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CacheError
from ..format import SourceInfo, is_language_tag
from .source import Locator, SourceRow
from .where import WhereFilter

SPLIT = "split"  # the column that --split asks


class RecordParser:
    """Takes the asked-for fields out of records; leaves out those of another split or that do not fulfil `--where`."""

    def __init__(self, info: SourceInfo, *, has_key: bool = True, left_out: Counter[str] | None = None) -> None:
        """Remember what was asked for.

        Args:
            info: the fields.
            has_key: whether records name their image, rather than the source itself.
            left_out: the source's count of records that are left out, by the flag that did so.

        Raises:
            CacheError: the condition is none.
        """
        self._info = info
        self._condition = WhereFilter(info.where) if info.where is not None else None
        self._left_out = Counter() if left_out is None else left_out
        self._image_field = info.image_field if has_key and info.images else None
        fields = [*([self._image_field] if self._image_field else []), *info.text_fields, *info.teacher_fields]
        self._options = dict.fromkeys(fields, "--text-field")
        self._options |= dict.fromkeys(info.teacher_fields, "--teacher-field")
        if self._image_field:
            self._options[self._image_field] = "--image-field"
        if info.language_field:
            self._options[info.language_field] = "--language-field"
        if info.split is not None:
            self._options.setdefault(SPLIT, "--split")

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
            CacheError: a field is absent, or not of the kind it must be.
        """
        for name, option in self._options.items():
            if name not in record:
                found = ", ".join(map(str, record))
                remedy = "leave out --split" if option == "--split" else f"pass {option} NAME"
                raise CacheError(f"{where}: no field {name!r} (found: {found}): {remedy}")
        if self._info.split is not None and record[SPLIT] != self._info.split:
            self._left_out["--split"] += 1
            return None
        if self._condition and not self._condition.holds(record, where):
            self._left_out["--where"] += 1
            return None
        if self._image_field:
            key = record[self._image_field]
            if not isinstance(key, str) or not key:
                found = "null" if key is None else repr(key)
                raise CacheError(
                    f"{where}: {self._image_field!r} must be the path of an image, found {found}: mend or drop the "
                    f'record, or leave out those without by --where "{self._image_field} is not None"'
                )
            if not is_unicode(key):
                raise CacheError(f"{where}: {self._image_field!r} holds half of a surrogate pair: {key!r}")
        by_field = [captions_of(record[name], name, where) for name in self._info.text_fields]
        captions = [caption for captions in by_field for caption in captions]
        translations = [text for name in self._info.teacher_fields for text in captions_of(record[name], name, where)]
        return SourceRow(line, key, captions, translations, self._languages(record, by_field, where), locator)

    def _languages(self, record: Mapping[str, Any], by_field: list[list[str]], where: str) -> list[str]:
        """The tag of each caption; none where nobody tells them."""
        info, num = self._info, sum(map(len, by_field))
        if info.language_field:
            given = record[info.language_field]
            tags = given if isinstance(given, list) else [given] * num
            if len(tags) != num or not all(tag in (None, "") or is_language_tag(tag) for tag in tags):
                raise CacheError(
                    f"{where}: {info.language_field!r} must be a tag such as 'zh' or 'pt-BR', or one for each of {num} "
                    f"captions, found {given!r:.100}"
                )
            return [tag or "" for tag in tags]
        if len(info.languages) == 1:
            return info.languages * num
        return [tag for tag, captions in zip(info.languages, by_field, strict=bool(info.languages)) for _ in captions]


def captions_of(value: Any, field: str, where: str) -> list[str]:
    """The captions that a field holds: a text, a list of texts, or nothing.

    Raises:
        CacheError: something else.
    """
    if value is None:
        return []
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise CacheError(f"{where}: {field!r} must be a string or a list of strings, found {value!r:.100}")
    return captions


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def chosen_split(found: Iterable[str], wanted: str | None, where: object) -> str:
    """The part to read.

    Args:
        found: names of the parts; "" for what belongs to none.
        wanted: what was asked for; may be absent where there is one part alone.
        where: the source, for messages.

    Raises:
        CacheError: no such part, or several to choose from.

    >>> chosen_split(["train", "test"], "test", "pairs")
    'test'
    """
    names = sorted(set(found))
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is not None and wanted in names:
        return wanted
    listed = ", ".join(filter(None, names)) or "none"
    if wanted is not None:
        raise CacheError(f"{where}: no split {wanted!r} in it (found: {listed}): pass --split NAME")
    raise CacheError(f"{where}: has several splits ({listed}): pass --split NAME, one of them")
