"""`clipglot search`."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.cells import cell_len
from rich.text import Text

from ..cache.location import Location
from ..jobs.settings.search import SearchSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, output, print_json, say, shortened, stage_bars, table, warn
from .terminal import visible_line

if TYPE_CHECKING:
    from ..jobs.search import SearchResult
    from ..search.hits import CaptionedHit
    from .terminal_images import Graphics, TerminalImage

CAPTIONS_SHOWN = 4
THUMBNAIL_ROWS = 5  # lines of text


class _SearchCommand(click.Command):
    """A command that tells how to pass a query that begins with a minus, which looks like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name.startswith("--"):
                raise
            raise click.UsageError(f"{error.message} Write -- before a query that begins with -.", ctx) from error


@click.command(cls=_SearchCommand)
@settings_options(SearchSettings, "merged", "cache", "query", has_config=False)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=None,
    help="show the images, too; default: where the terminal can (sixel, kitty) and textual-image is installed",
)
@click.option("--image-root", help="folder or URL where the images are now, for thumbnails", metavar="PATH|URL")
@json_option
def search(settings: SearchSettings, thumbnails: bool | None, image_root: str | None, as_json: bool) -> None:
    """Find the images in CACHE that fit each QUERY best, with the CLIP in MERGED.

    Score is the cosine of the embeddings of query and image. A query adds and
    subtracts texts: + or - before a word begins one. Put -- before a query that
    begins with -, and double quotes around a text that contains + or - itself.

    \b
    clipglot search merged train.zarr "рыжий кот" "a red bicycle"
    clipglot search merged train.zarr "собака +снег -поводок" --top 20
    clipglot search merged train.zarr --image cat.jpg --caption кот
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    if as_json and thumbnails:
        raise click.UsageError("--json and --thumbnails exclude each other: pass one of them")
    with friendly_errors(), stage_bars("search") as on_progress:
        require_kind(settings.merged, "merged CLIP")
        require_kind(settings.cache, "cache")
        for image in settings.image:
            if not os.path.lexists(image):
                raise click.ClickException(f"--image {image}: no such file: leave it out, or pass an image")
        from ..jobs.search import search_images

        results = search_images(settings, on_progress)
    if as_json:
        from dataclasses import asdict

        print_json([asdict(result) for result in results])
        return
    with friendly_errors():
        _print(results, _thumbnails(settings, image_root, thumbnails))


def _print(results: Sequence["SearchResult"], thumbnails: "_Thumbnails | None") -> None:
    for number, result in enumerate(results):
        if number:
            output.print()
        output.print(Text(visible_line(result.query), style="bold"), soft_wrap=not output.is_terminal)
        if result.hits:
            _print_hits(result.hits, thumbnails)
        else:
            say("no image found: none is embedded, or none has such a caption")


def _print_hits(hits: Sequence["CaptionedHit"], thumbnails: "_Thumbnails | None") -> None:
    """One row an image, its captions below each other; of its key the end is kept, which tells most."""
    images = [thumbnails.draw(hit) for hit in hits] if thumbnails else []
    keys = [shortened(hit.key, max(12, output.width // 3), keep_end=True) for hit in hits]
    tags = [_lines(hit.languages, 12) for hit in hits]
    has_tags = any(tag for hit in hits for tag in hit.languages)
    names = ["rank", "score", *(["thumbnail"] if thumbnails else []), "image", "captions", *(["lang"] * has_tags)]
    listed = table(*names, numbers=("rank", "score"))
    widths = [len(name) for name in names if name != "captions"] + [max(map(cell_len, keys)) - len("image")]
    if thumbnails:
        listed.columns[2].width = max(thumbnails.columns, len("thumbnail"))
        widths.append(listed.columns[2].width - len("thumbnail"))
    if has_tags:
        widths.append(max(cell_len(line) for lines in tags for line in ["lang", *lines]) - len("lang"))
    left = max(10, output.width - sum(widths) - 2 * len(names))  # two columns between two
    for number, hit in enumerate(hits):
        listed.add_row(
            str(number + 1),
            f"{hit.score:.3f}",
            *images[number : number + 1],
            keys[number],
            Text("\n".join(_lines(hit.captions, left))),
            *([Text("\n".join(tags[number]))] if has_tags else []),
        )
    output.print(listed)


def _lines(texts: Sequence[str], width: int) -> list[str]:
    """The first of some texts, each on a line of so many columns, and how many more there are."""
    lines = [shortened(text, width) for text in texts[:CAPTIONS_SHOWN]]
    more = len(texts) - len(lines)
    return [*lines, shortened(f"… and {more:,} more", width)] if more else lines


def _thumbnails(settings: SearchSettings, image_root: str | None, wanted: bool | None) -> "_Thumbnails | None":
    """Images of hits, if the terminal shows any."""
    if wanted is False:
        return None
    from .terminal_images import find_graphics

    graphics = find_graphics()
    if isinstance(graphics, str):
        if wanted:
            warn(f"no thumbnails: {graphics}")
        return None
    return _Thumbnails(settings.cache, image_root, graphics)


class _Thumbnails:
    """Images of hits, for a terminal."""

    def __init__(self, cache: Location, image_root: str | None, graphics: "Graphics") -> None:
        from ..cache.read.cache import Cache
        from ..inference.thumbnails import ThumbnailReader

        side = THUMBNAIL_ROWS * graphics.cell_height
        self.columns = max(1, round(side / graphics.cell_width))
        self._side, self._graphics, self._has_warned = side, graphics, False
        self._reader = ThumbnailReader(Cache(cache), image_root)

    def draw(self, hit: "CaptionedHit") -> "TerminalImage | Text":
        """An image, or why it cannot be read."""
        from ..cache.errors import CacheError
        from ..cache.format import RejectedImageError
        from .terminal_images import TerminalImage

        try:
            image = self._reader.image(hit.row, hit.key, self._side)
        except RejectedImageError as rejected:
            return Text(rejected.status.label, style="yellow")
        except CacheError as error:  # the source is not there, or has another image there now
            if not self._has_warned:
                self._has_warned = True
                warn(f"no thumbnail: {error}")
            return Text("no such image", style="yellow")
        return TerminalImage(image, self._graphics, columns=self.columns, rows=THUMBNAIL_ROWS)
