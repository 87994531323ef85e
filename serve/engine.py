"""Answers of a search server: queries to images, labels of an image."""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.format import RejectedImageError
from ..cache.write.image_decode import ResizeCrop, decode
from ..encoders.errors import EncoderError
from ..inference.errors import InputError
from ..inference.images import reason
from ..inference.prompts import class_embeddings
from ..inference.query import embed_queries, parse_query
from ..inference.towers import Towers, ranked
from .batcher import MicroBatcher
from .catalog import Catalog, Filter, short_names

MOST_PIXELS = 40_000_000  # of an image that a client sends
QUERIES_AT_A_TIME = 64
MOST_WAITING = 2_000
TEXTS_KEPT = 20_000
MOST_RESULTS = 5_000  # that scrolling reaches

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """What a client searches for: a text for one of the models, or an embedding.

    Attributes:
        model: number of the model.
        text: sums and differences as of `inference.query`.
        emb: `[D]`, unit norm, instead of a text.
        k: images to find.
        chosen: which images to choose from.
    """

    model: int
    text: str = ""
    emb: Floats | None = None
    k: int
    chosen: Filter


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The images of a query, best first.

    Attributes:
        scores: cosines.
        rows: of the catalog.
        num_searched: images that it chose from.
    """

    scores: Floats
    rows: NDArray[np.int64]
    num_searched: int

    def without(self, row: int | None) -> "Found":
        """The others than one row."""
        others = self.rows != row
        return replace(self, scores=self.scores[others], rows=self.rows[others])


class Engine:
    """Models and caches, with a thread that computes and two that decode. D features.

    Attributes:
        models: in the order of their numbers.
        names: shown for them.
        catalog: the images.
    """

    def __init__(self, models: Sequence[Towers], catalog: Catalog, *, fold_above: float) -> None:
        """Answer queries.

        Args:
            models: text towers of one image tower.
            catalog: images that this image tower embedded.
            fold_above: cosine of two images from which the worse one is folded under the better one.
        """
        self.models, self.catalog, self._fold_above = models, catalog, fold_above
        self.names = short_names([model.name for model in models])
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._decode = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._texts: OrderedDict[tuple[int, str], Floats] = OrderedDict()
        self._batcher = MicroBatcher(self._answer, self._compute, most=QUERIES_AT_A_TIME, waiting=MOST_WAITING)
        self._embedder = MicroBatcher(self._embed, self._compute, most=QUERIES_AT_A_TIME, waiting=MOST_WAITING)
        self._labeller = MicroBatcher(self._label, self._compute, most=QUERIES_AT_A_TIME, waiting=MOST_WAITING)
        # The first forward pass and the int8 copy of the rows take a while: not from the first client's time.
        first = [Query(model=model, text="a", k=1, chosen=Filter()) for model in range(len(models))]
        self._compute.submit(self._answer, first)

    async def search(self, query: Query) -> Found:
        """The images of a query; queries that come together share a forward pass and a pass over the embeddings.

        Raises:
            InputError: a query of no text, or whose texts cancel each other.
            BusyError: too many wait.
        """
        if query.emb is None:
            parse_query(query.text)
        return await self._batcher(query)

    async def embed_image(self, content: bytes) -> Floats:
        """Embedding of an image that a client sent, `[D]`, by the image tower that all models share.

        Raises:
            InputError: no image, a damaged one, or one that is too large.
        """
        loop = asyncio.get_running_loop()
        return await self._embedder(await loop.run_in_executor(self._decode, self._decoded, content))

    async def labels(self, emb: Floats, labels: Sequence[str], model: int) -> list[dict[str, Any]]:
        """Labels with probabilities and cosines, best first."""
        return await self._labeller((emb, tuple(labels), model))

    def folded(self, found: Found, start: int, num: int) -> tuple[list[tuple[int, float, list[int]]], bool]:
        """A page of results without near-duplicates.

        Args:
            found: of a query.
            start: results to leave out at the beginning.
            num: results to give.

        Returns:
            Row, score and rows of worse near-duplicates of each result; whether results were left after them.
        """
        rows = found.rows
        kept: list[int] = []
        alike: list[list[int]] = []
        emb = self.catalog.emb(rows)
        kept_emb = np.empty((min(len(rows), start + num), self.models[0].dim), np.float32)
        for i in range(len(rows)):
            cosines = kept_emb[: len(kept)] @ emb[i]
            if len(cosines) and cosines.max() >= self._fold_above:
                alike[int(cosines.argmax())].append(int(rows[i]))
                continue
            if len(kept) == start + num:
                return self._page(found, kept, alike, start), True
            kept_emb[len(kept)] = emb[i]
            kept.append(i)
            alike.append([])
        return self._page(found, kept, alike, start), False

    def close(self) -> None:
        """Let the threads end."""
        for threads in (self._compute, self._decode):
            threads.shutdown(wait=False, cancel_futures=True)

    def _decoded(self, content: bytes) -> NDArray[np.uint8]:
        """Pixels that the image tower takes.

        Raises:
            InputError: as of `embed_image`.
        """
        try:
            return decode(BytesIO(content), ResizeCrop.from_preprocess(self.models[0].preprocess), MOST_PIXELS)
        except RejectedImageError as rejected:
            raise InputError(f"the image: {reason(rejected)}") from rejected

    @staticmethod
    def _page(found: Found, kept: list[int], alike: list[list[int]], start: int) -> list[tuple[int, float, list[int]]]:
        return [(int(found.rows[i]), float(found.scores[i]), alike[place]) for place, i in enumerate(kept)][start:]

    # In the thread that computes

    def _answer(self, queries: Sequence[Query]) -> list[Found | Exception]:
        embeddings = self._query_embeddings(queries)
        answers: list[Found | Exception] = [InputError("not answered")] * len(queries)
        groups: dict[Filter, list[tuple[int, Floats]]] = defaultdict(list)
        for i, emb in enumerate(embeddings):
            if isinstance(emb, Exception):
                answers[i] = emb
            else:
                groups[queries[i].chosen].append((i, emb))
        for chosen, members in groups.items():
            most = max(queries[i].k for i, _ in members)
            found = self.catalog.search(np.stack([emb for _, emb in members]), most, chosen)
            num = self.catalog.num_searched(chosen)
            for (i, _), (scores, rows) in zip(members, found, strict=True):
                k = queries[i].k
                answers[i] = Found(scores=scores[:k], rows=rows[:k], num_searched=num)
        return answers

    def _query_embeddings(self, queries: Sequence[Query]) -> list[Floats | Exception]:
        for number in {query.model for query in queries}:
            own = [query for query in queries if query.model == number and query.emb is None]
            with suppress(EncoderError):  # of one text; below it is raised for its query alone
                self._encode(number, [text for query in own for _, text in parse_query(query.text)])
        result: list[Floats | Exception] = []
        for query in queries:
            if query.emb is not None:
                result.append(query.emb)
                continue
            try:
                result.append(embed_queries([query.text], partial(self._encode, query.model))[0])
            except (InputError, EncoderError) as error:
                result.append(error)
        return result

    def _encode(self, model: int, texts: Sequence[str]) -> Floats:
        """Embeddings of texts `[n, D]`; those that are not known yet take one forward pass.

        Raises:
            EncoderError: a text that the tokenizer cannot read.
        """
        new = list(dict.fromkeys(text for text in texts if (model, text) not in self._texts))
        if new:
            for text, emb in zip(new, self.models[model].encode_texts(new), strict=True):
                self._texts[model, text] = emb
        emb = [self._texts[model, text] for text in texts]
        for text in texts:
            self._texts.move_to_end((model, text))
        while len(self._texts) > max(TEXTS_KEPT, len(texts)):
            self._texts.popitem(last=False)
        return np.array(emb, np.float32).reshape(len(texts), self.models[model].dim)

    def _embed(self, pixels: Sequence[NDArray[np.uint8]]) -> list[Floats | Exception]:
        features = self.models[0].encode_pixels(np.stack(pixels))
        norms = np.linalg.norm(features, axis=1)
        return [
            each / norm
            if np.isfinite(norm) and norm > 0
            else InputError("the image: the image tower's output is zero or not finite: pass another")
            for each, norm in zip(features, norms, strict=True)
        ]

    def _label(self, asked: Sequence[tuple[Floats, tuple[str, ...], int]]) -> list[list[dict[str, Any]] | Exception]:
        answers: list[list[dict[str, Any]] | Exception] = []
        for emb, labels, number in asked:
            model = self.models[number]
            try:
                cosines = class_embeddings(partial(self._encode, number), [[label] for label in labels]) @ emb
            except EncoderError as error:
                answers.append(error)
                continue
            if not np.isfinite(cosines).all():
                answers.append(
                    InputError("the embedding of a label holds NaN or infinity: the text tower has diverged")
                )
                continue
            order, probabilities = ranked(cosines, model.logit_scale)
            answers.append(
                [
                    {"label": labels[i], "probability": float(probabilities[i]), "cosine": float(cosines[i])}
                    for i in order.tolist()
                ]
            )
        return answers
