"""Settings of `clipglot captions`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.format import OWN_CAPTIONS, SourceInfo, is_set_name
from ...cache.location import Location, Url
from ...distill.settings import require
from .text_fields import require_readable_captions

SUFFIXES = (".gz", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq", ".arrow", ".feather", ".ipc")


@dataclass(frozen=True, kw_only=True)
class CaptionsSettings:
    """`clipglot captions`: give a cache a further set of captions, or delete one; no image is read."""

    cache: Annotated[Location, "complete cache"]
    file: Annotated[
        Path | Url | None,
        "table of captions with a column of the images' keys: CSV, TSV, JSON, JSON lines, COCO, Parquet or Arrow",
    ] = None
    name: Annotated[str | None, "name of the set (default: the language, or the name of FILE)"] = None
    language: Annotated[
        tuple[str, ...], "language of the captions, a BCP 47 tag such as ru; once for all, or once per --text-field"
    ] = ()
    language_field: Annotated[str | None, "column with the language tag of a row's captions, or of each caption"] = None
    text_field: Annotated[
        tuple[str, ...], "column with the caption or captions; repeat for several (default: text)"
    ] = ()
    image_field: Annotated[
        str | None, "column with the images' keys, as `clipglot inspect` shows them (default: image)"
    ] = None
    where: Annotated[str | None, "use only records that satisfy this, e.g. \"score > 0.3 and source == 'human'\""] = (
        None
    )
    split: Annotated[
        str | None, "use only this split, e.g. train; of a table, the rows with this value in the column split"
    ] = None
    encoding: Annotated[str, "text encoding of FILE, e.g. gb18030 or utf-16"] = "utf-8"
    replace: Annotated[bool, "write a set of that name anew"] = False
    add: Annotated[bool, "add the captions of FILE to a set of that name"] = False
    drop: Annotated[bool, "delete the set --name; without FILE"] = False

    def __post_init__(self) -> None:
        actions = [f"--{name}" for name in ("replace", "add", "drop") if getattr(self, name)]
        require(len(actions) < 2, f"{' and '.join(actions)} exclude each other: pass one")
        if self.drop:
            require(
                self.file is None and self.name is not None, "--drop deletes the set --name NAME, and takes no FILE"
            )
        else:
            require(self.file is not None, "FILE is missing: pass the table of the captions, or --drop --name NAME")
        require(
            is_set_name(self.set_name),
            f"--name {self.set_name!r}: pass a --name of at most 64 letters from a to z, digits, dots, hyphens and "
            f"underscores, not {OWN_CAPTIONS!r}, which is the captions that the cache was made with",
        )
        require_readable_captions(self)

    @property
    def set_name(self) -> str:
        """Name of the set: the one given, the language if there is one, or the file's without suffixes."""
        if self.name is not None:
            return self.name
        if len(set(self.language)) == 1:
            return self.language[0]
        name = self.file.name if self.file else ""
        while name.lower().endswith(SUFFIXES):
            name = name.rpartition(".")[0]
        return name

    @property
    def source_info(self) -> SourceInfo:
        """Description of the table; the kind of table fills in what is not given."""
        assert self.file is not None, "checked above, as --drop is not given"
        return SourceInfo(
            path=str(self.file.absolute()),
            sha256="",
            image_root="",
            image_field=self.image_field or "",
            text_fields=list(self.text_field),
            where=self.where,
            split=self.split,
            languages=list(self.language),
            language_field=self.language_field,
            encoding=self.encoding,
        )
