"""Hook of mkdocs: pages from outside docs/, pages generated from the code, and the links between all of them.

Links are written for the repository, where they lead to files. On the site those to pages lead to pages; those to other
files become the path as code, since the project has no public address to link to.
"""

import html
import inspect
import json
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Page of the site: file of the repository outside docs/.
OUTSIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "notebook.md": "examples/clip_in_python.ipynb",
    **{f"benchmarks/{file.name}": f"benchmarks/{file.name}" for file in sorted(ROOT.glob("benchmarks/*.md"))},
}
_PAGE_OF = {path: page for page, path in OUTSIDE.items()}
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^()\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections of the navigation that list a folder, and link the package where mkdocstrings finds it."""
    lists = {
        "Tutorials": sorted(f"tutorials/{file.name}" for file in (ROOT / "docs/tutorials").glob("*.md")),
        "Benchmarks": sorted(_PAGE_OF[path] for path in OUTSIDE.values() if path.startswith("benchmarks/")),
        "Decisions": sorted(f"decisions/{file.name}" for file in (ROOT / "docs/decisions").glob("*.md")),
    }
    assert config.nav is not None
    for section in config.nav:
        for name, pages in lists.items():
            if name in section:  # the page of the section itself comes first
                section[name] = sorted(pages, key=lambda page: not page.endswith("README.md"))
    link_package(ROOT / "build" / "site" / "clipglot")
    return config


def link_package(folder: Path) -> None:
    """The repository's root as a folder called clipglot, made of links (docs/decisions/001)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for entry in [*ROOT.glob("*.py"), *(file.parent for file in ROOT.glob("[a-z]*/__init__.py"))]:
        (folder / entry.name).symlink_to(entry)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for page, path in OUTSIDE.items():
        if path.endswith(".ipynb"):
            files.append(File.generated(config, page, content=notebook_page(ROOT / path)))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write what is generated into its place, and rewrite links."""
    uri = page.file.src_uri
    if uri == "benchmarks/README.md":
        page.meta["hide"] = ["toc"]  # one table, which needs the width
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: _on_site(link, uri, files), part) for part in parts[::2]]
    return "".join(parts)


def _on_site(link: re.Match[str], uri: str, files: Files) -> str:
    """A link as it is written on the page `uri`."""
    text, target = link.groups()
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"\w+:", path):
        return link.group()
    here = OUTSIDE.get(uri, f"docs/{uri}")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    candidates = [_PAGE_OF.get(there), _PAGE_OF.get(f"{there}/README.md")]
    candidates += [name.removeprefix("docs/") for name in (there, f"{there}/README.md") if name.startswith("docs/")]
    for candidate in candidates:
        if candidate and files.get_file_from_path(candidate):
            return f"[{text}]({posixpath.relpath(candidate, posixpath.dirname(uri) or '.')}{hash_}{anchor})"
    if not (ROOT / there).exists():
        return link.group()  # mkdocs warns of it
    return f"`{there}`" if there in text or path in text else f"{text} (`{there}`)"


# Commands


class _Recorder(click.HelpFormatter):
    """Takes the options of a command section by section instead of writing them."""

    def __init__(self) -> None:
        super().__init__()
        self.sections = dict[str, list[tuple[str, str]]]()
        self._section = "Options"

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """The options that follow stand under this heading."""
        self._section = name
        yield

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        """Take the options of a section."""
        self.sections.setdefault(self._section, []).extend(rows)


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its full name, groups too."""
    from clipglot.cli.main import main

    def walk(name: str, command: click.Command, parent: click.Context | None) -> Iterator[Any]:
        context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
        yield context.command_path, command, context
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found is not None
                yield from walk(child, found, context)

    yield from list(walk("clipglot", main, None))[1:]


def commands_page() -> str:
    """Usage, description and options of every command."""
    parts = []
    for name, command, context in commands():
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        parts.append(f"## {name}\n\n```text\n{usage}\n```\n\n{_text(command.help or '')}\n")
        if isinstance(command, click.Group):
            continue
        recorder = _Recorder()
        command.format_options(context, recorder)
        sections = {heading: rows for heading, rows in recorder.sections.items() if rows}
        for heading, rows in sections.items():
            if len(sections) > 1:
                parts.append(f"**{heading}**\n")
            parts.append(_table([(_code(flag), _inline(help_)) for flag, help_ in rows], ("option", "does")))
    return "\n".join(parts)


# Python


def functions_page() -> str:
    """Every function of a command: what it does, its keyword arguments, what it returns."""
    from clipglot.jobs import functions

    parts = []
    for name, (job, settings, *_) in functions.FUNCTIONS.items():
        run, settings_type = functions._attribute(job), functions._attribute(settings)
        first = functions._first(settings_type)
        summary, _, _ = inspect.cleandoc(run.__doc__ or "").partition("\n\n")
        returned = _type_name(inspect.signature(run).return_annotation)
        parts.append(f"### {name} {{ #clipglot.{name} }}\n\n```python\nclipglot.{name}({first}, *, …)\n```\n")
        parts.append(f"{_text(summary)}\n\nReturns {_linked(returned)}.\n")
        hints = get_type_hints(settings_type, include_extras=True)
        rows = []
        for field in sorted(fields(settings_type), key=lambda field: field.name != first):
            type_, help_ = get_args(hints[field.name])[:2]
            default = "required" if field.default is MISSING else f"<code>{html.escape(repr(field.default))}</code>"
            rows.append((_code(field.name), _code(_type_name(type_)), default, _inline(help_)))
        table = _table(rows, ("argument", "type", "default", "is"))
        parts.append(f"<details><summary>{len(rows)} arguments</summary>\n{table}</details>\n")
    return "\n".join(parts)


def results_page() -> str:
    """The classes that functions return."""
    return "\n\n".join(f"::: {module}.{name}" for name, module in sorted(_results().items()))


def _results() -> dict[str, str]:
    """Classes that the functions of commands return, with their modules."""
    from clipglot.jobs import functions

    found = dict[str, str]()
    for job, *_ in functions.FUNCTIONS.values():
        run = functions._attribute(job)
        returned = inspect.signature(run).return_annotation
        for kind in [returned, *get_args(returned)]:
            if isinstance(kind, type) and kind.__module__.startswith("clipglot."):
                found[kind.__name__] = kind.__module__
    return found


def _type_name(kind: Any) -> str:
    """A type as a reader writes it, without modules."""
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r"[\w.]+\.(?=\w)", "", text).replace("'", '"')


def _linked(type_name: str) -> str:
    """The type with a link to each result in it."""
    results = _results()

    def link(word: re.Match[str]) -> str:
        module = results.get(word[0])
        return f"[{word[0]}][{module}.{word[0]}]" if module else word[0]

    return re.sub(r"\w+", link, re.sub(r"^list\[(.*)\]$", r"a list of \1", type_name))


def _text(help_: str) -> str:
    """Help as Markdown: paragraphs, and what is preformatted."""
    paragraphs = []
    for paragraph in inspect.cleandoc(help_).split("\n\n"):
        if paragraph.startswith("\b"):
            lines = paragraph.removeprefix("\b").strip("\n")
            paragraphs.append(f"```text\n{lines}\n```")
        else:
            paragraphs.append(re.sub(r"([<*_])", r"\\\1", " ".join(paragraph.split())))
    return "\n\n".join(paragraphs)


def _inline(text: str) -> str:
    """A line of help as HTML, with `code`."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _code(text: str) -> str:
    return f"<code>{html.escape(text, quote=False)}</code>"


def _table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A table in HTML, where a pipe or an asterisk means nothing."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="reference"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'


def notebook_page(file: Path) -> str:
    """Cells of a notebook, texts and code; its results are not kept in it."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)


def decisions_list() -> str:
    """A line for each decision, by its heading."""
    files = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    titles = [file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files]
    return "\n".join(f"- [{title}]({file.name})" for title, file in zip(titles, files, strict=True))


GENERATED = {
    "<!-- commands -->": commands_page,
    "<!-- functions -->": functions_page,
    "<!-- results -->": results_page,
    "<!-- decisions -->": decisions_list,
}
