"""What a pass says while it runs: a bar for each stage in a terminal, a line now and then where there is none."""

from typing import TYPE_CHECKING

from rich.progress import Progress

from ..cache.read.cache import Cache
from ..cache.write.report import PassReport
from ..jobs.settings.cache import CacheSettings
from .main import is_first_process
from .render import PlainProgress, warn

if TYPE_CHECKING:
    from ..jobs.cache_plan import Stage


class PassProgress:
    """Shows the stages of a pass, of which each ends when the next begins: load, plan, teach, embed."""

    def __init__(self, settings: CacheSettings, progress: Progress, *, silent: bool) -> None:
        """Show at once that the towers are loaded, which takes seconds; a line says so when the source was found.

        Args:
            settings: of the pass.
            progress: the bars, not shown where there is no terminal.
            silent: whether no line is written there either.
        """
        self._settings, self._progress, self._plain = settings, progress, PlainProgress()
        self._silent = silent or not is_first_process()
        self._stage: Stage | None = None
        self._task, self._done, self._so_far = progress.add_task("load", total=None, note=settings.model), 0, ""

    def show(self, stage: "Stage", done: int, total: int | None) -> None:
        """What is done of a stage; `load` has its bar already, and `wait` has none."""
        if stage == "load":
            self._speak(f"load: {self._settings.model}", at_once=True)
            return
        if stage == "wait":
            self.end()
            warn(f"{self._settings.worker} waits until worker 0 has planned {self._settings.output}")
            return
        unit = {"plan": "records", "teach": "captions", "embed": self._unit}[stage]
        if begins := stage != self._stage:
            self.end()
            self._task = self._progress.add_task(stage, total=total, note=unit)
            self._stage = stage
        self._progress.update(self._task, completed=done, total=total)
        self._done, self._so_far = done, f"{done:,}{'' if total is None else f' of {total:,}'} {unit}"
        if begins or stage != "embed":  # of which `show_pass` tells more
            self._speak(f"{stage}: {self._so_far}", at_once=begins)

    def show_pass(self, report: PassReport) -> None:
        """How fast the stage `embed` is, after `show` was told of it, and what it waits for."""
        note = f"waits for {report.bottleneck}"
        self._progress.update(self._task, note=note)
        self._speak(f"embed: {self._so_far}, {report.num_pictures / report.wall_s:,.0f}/s, {note}")

    def end(self) -> None:
        """The present stage is over, whatever its total was; of a plan it is said what it came to."""
        if self._stage is None:
            self._progress.update(self._task, visible=False)  # what was loaded counts nothing
            return
        self._progress.update(self._task, total=self._done)
        if self._stage == "plan":
            planned = self._planned()
            self._progress.update(self._task, note=planned)
            self._speak(f"planned {planned}", at_once=True)
        self._stage = None

    def _planned(self) -> str:
        info = Cache(self._settings.output).info
        if self._settings.append:
            return f"{info.num_images - info.appended[-1].first_row:,} further images"
        return f"{info.num_images:,} {self._unit}, {info.num_captions:,} captions"

    @property
    def _unit(self) -> str:
        return "images" if self._settings.images else "texts"

    def _speak(self, line: str, *, at_once: bool = False) -> None:
        if not self._silent:
            self._plain.show(line, at_once=at_once)
