"""Source of embeddings that were computed elsewhere, with the captions of their rows, for `clipglot import`.

N rows of D features in one file or in several, one after the other. Only the rows that are read come into memory.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import ATTRIBUTE, IMPORTED, SourceInfo
from ..location import did_you_mean, is_hdf5
from ..storage.atomic import sha256_file
from .parquet import ParquetSource
from .source import ROWS_AT_A_TIME, Source, SourceRow
from .table import SUFFIXES, TableSource


class Part(NamedTuple):
    """The embeddings of one file and the captions of the same rows.

    Attributes:
        path: of the embeddings.
        captions: the table of their captions.
        num_rows: of embeddings.
        read: reads the rows from a start to a stop.
    """

    path: Path
    captions: Path
    num_rows: int
    read: Callable[[int, int], NDArray[Any]]


class EmbeddingFileSource(Source):
    """Files of embeddings, and tables with the captions of the same rows.

    Attributes:
        dim: D.
    """

    kind = IMPORTED

    def __init__(self, info: SourceInfo, parts: Sequence[tuple[Part, int]], *, named: bool) -> None:
        """Use `open_embeddings` to make one.

        Args:
            info: complete but for its sha256.
            parts: in order, each with its width.
            named: whether the tables name the image of each row.

        Raises:
            CacheError: widths differ.
        """
        super().__init__(info)
        self._parts, self._named = [part for part, _ in parts], named
        (first, self.dim), *_ = parts
        for part, dim in parts:
            if dim != self.dim:
                raise CacheError(f"{part.path} has {dim} features, {first.path} has {self.dim}: import them apart")
        self._starts = [0, *np.cumsum([part.num_rows for part in self._parts]).tolist()]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self) -> Iterator[SourceRow]:
        """Every row, named by its number where the tables do not name it.

        Raises:
            CacheError: a table is not as promised, or has another length than its embeddings.
        """
        for part, start in zip(self._parts, self._starts, strict=False):
            count = 0
            for row in _table_rows(part.captions, self.info, self._named):
                yield row if self._named else row._replace(key=str(start + count))
                count += 1
                if count > part.num_rows:
                    break
            if count != part.num_rows:
                found = f"{count:,}" if count < part.num_rows else f"more than {part.num_rows:,}"
                raise CacheError(
                    f"{part.captions} has {found} rows, {part.path} has {part.num_rows:,}: "
                    "row i of one must be row i of the other"
                )

    def sha256(self) -> str:
        """Digest of all files, in order."""
        files = [file for part in self._parts for file in (part.path, part.captions)]
        return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()

    def where(self, row: int) -> str:
        """Name the file of a row and its place there, for messages."""
        i = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"row {row - self._starts[i]} of {self._parts[i].path}"

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Read the embeddings of some rows, ascending, as they were stored, `[n, D]`.

        Raises:
            CacheError: a file cannot be read.
        """
        emb = np.empty((len(rows), self.dim))
        for part, (start, stop) in zip(self._parts, pairwise(self._starts), strict=True):
            for at in range(start, stop, ROWS_AT_A_TIME):
                first, last = np.searchsorted(rows, [at, min(at + ROWS_AT_A_TIME, stop)])
                if first < last:
                    block = _readable(part.path, part.read, at - start, min(at + ROWS_AT_A_TIME, stop) - start)
                    emb[first:last] = block[rows[first:last] - at]
        return emb


def open_embeddings(
    info: SourceInfo, *, captions: Path | None = None, dataset: str | None = None, named: bool = True
) -> EmbeddingFileSource:
    """Open embeddings and captions: clip-retrieval's folder, or an .npy or HDF5 file with a table.

    Args:
        info: path and fields; empty fields are the kind's own, and an empty root is the source's folder.
        captions: JSON lines, CSV, TSV or Parquet, row by row as the embeddings; the folder has its own.
        dataset: of an HDF5 file.
        named: whether the captions name the image of each row.

    Raises:
        CacheError: nothing there, no known kind, or files that do not belong together.
    """
    path = Path(info.path)
    if not path.exists():
        raise CacheError(f"{path}: no such file or folder{did_you_mean(path)}")
    if path.is_dir():
        if captions or dataset:
            raise CacheError(f"{path} is a folder: --captions and --dataset are for an .npy or .h5 file")
        parts = [_npy(emb, table) for emb, table in _folder_files(path)]
        image_field, text_fields, root = "image_path", ["caption"], path
    else:
        if captions is None:
            raise CacheError(f"{path}: pass --captions FILE, a table with the caption of each of its rows, in order")
        if not captions.is_file():
            raise CacheError(f"{captions}: no such file{did_you_mean(captions)}")
        parts = [_hdf5(path, captions, dataset) if is_hdf5(path) else _npy(path, captions)]
        image_field, text_fields, root = "image", ["text"], path.parent
    complete = replace(
        info,
        kind=EmbeddingFileSource.kind,
        image_root=info.image_root or str(root),
        image_field=info.image_field or image_field,
        text_fields=info.text_fields or text_fields,
    )
    return EmbeddingFileSource(complete, parts, named=named)


def _folder_files(folder: Path) -> list[tuple[Path, Path]]:
    """The pairs of files of clip-retrieval's output, `img_emb/img_emb_7.npy` and `metadata/metadata_7.parquet`."""
    by_number = {
        int(match[1]): file
        for file in (folder / "img_emb").glob("img_emb_*.npy")
        if (match := re.fullmatch(r"img_emb_(\d+)\.npy", file.name))
    }
    if not by_number:
        raise CacheError(f"{folder}: no img_emb/img_emb_0.npy as clip-retrieval writes it: pass its output folder")
    pairs = []
    for _, emb in sorted(by_number.items()):
        table = folder / "metadata" / emb.with_suffix(".parquet").name.replace("img_emb_", "metadata_")
        if not table.is_file():
            raise CacheError(f"{emb} has no captions: {table} is absent: copy it there")
        pairs.append((emb, table))
    return pairs


def _npy(path: Path, captions: Path) -> tuple[Part, int]:
    if path.suffix.lower() != ".npy":
        raise CacheError(f"{path}: no known kind of embeddings; known are .npy, .h5 and clip-retrieval's folder")

    def read(start: int, stop: int) -> NDArray[Any]:
        # Opened anew each time: a folder may have more files than a process may have open.
        return np.array(open_memmap(path, mode="r")[start:stop])

    emb = _readable(path, lambda: open_memmap(path, mode="r"))  # np.load would take archives and pickles, too
    return _part(path, captions, emb.shape, emb.dtype, read)


def _hdf5(path: Path, captions: Path, dataset: str | None) -> tuple[Part, int]:
    def read(start: int, stop: int) -> NDArray[Any]:
        with h5py.File(path, "r", locking=False) as file:
            return np.asarray(file[dataset][start:stop])

    def shape_and_dtype() -> tuple[Any, Any]:
        with h5py.File(path, "r", locking=False) as file:
            if ATTRIBUTE in file.attrs:
                raise CacheError(f"{path} is a cache already: `clipglot convert {path} OUT.zarr` makes it a Zarr one")
            names: list[str] = []
            file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
            if dataset not in names:
                has = f"its datasets are {', '.join(names)}" if names else "it has no datasets"
                raise CacheError(f"{path}: pass --dataset NAME of the embeddings; {has}")
            return file[dataset].shape, file[dataset].dtype

    shape, dtype = _readable(path, shape_and_dtype)
    return _part(path, captions, shape, dtype, read)


def _part(
    path: Path, captions: Path, shape: tuple[int, ...], dtype: Any, read: Callable[[int, int], NDArray[Any]]
) -> tuple[Part, int]:
    if len(shape) != 2 or dtype.kind != "f":
        raise CacheError(f"{path} holds {dtype} of shape {tuple(shape)}, expected floating-point rows [N, D]")
    return Part(path, captions, shape[0], read), shape[1]


def _readable(path: Path, read: Callable[..., Any], *arguments: int) -> Any:
    try:
        return read(*arguments)
    except (OSError, ValueError, EOFError, KeyError, RuntimeError) as error:
        raise CacheError(
            f"{path} cannot be read ({error}): it is damaged, or not a {path.suffix} file: write it again"
        ) from error


def _table_rows(path: Path, info: SourceInfo, named: bool) -> Iterator[SourceRow]:
    sources = {**dict.fromkeys(SUFFIXES, TableSource), **dict.fromkeys(ParquetSource.suffixes, ParquetSource)}
    source = next((kind for suffix, kind in sources.items() if path.name.lower().endswith(suffix)), None)
    if source is None:
        raise CacheError(f"{path}: no known kind of table; known are {', '.join(sources)}")
    for row in source(replace(info, path=str(path), images=named)).rows():
        if row.locator is not None:
            raise CacheError(
                f"{path}: {info.image_field!r} holds images, expected their names: pass --image-field NAME, or "
                "--no-keys"
            )
        yield row
