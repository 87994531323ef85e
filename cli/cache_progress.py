"""Progress of `clipglot cache`: a bar for each stage in a terminal, a line now and then elsewhere."""

from datetime import timedelta

from rich.text import Text

from ..cache.progress import Progress
from ..cache.write.report import PassReport
from ..jobs.output_cache import OutputCache
from ..jobs.settings.cache import CacheSettings
from .main import is_first_process
from .render import Bars, PlainProgress, warn


class PassProgress:
    """Shows the stages of a pass, each of which ends when the next begins: load, plan, teach, embed."""

    def __init__(self, settings: CacheSettings, output: OutputCache, bars: Bars, *, silent: bool) -> None:
        """Show at once that the towers are being loaded, which takes seconds; the line follows when the source is open.

        Args:
            settings: of the pass.
            output: the cache.
            bars: shown only in a terminal.
            silent: whether no lines are written elsewhere either.
        """
        self._settings, self._output, self._bars, self._plain = settings, output, bars, PlainProgress()
        self._silent = silent or not is_first_process()
        self._total: int | None = None
        self._stage: str | None = None
        self._is_loading = False
        self._task, self._done, self._so_far = bars.add_task("load", total=None, note=settings.model), 0, ""

    def show(self, progress: Progress) -> None:
        """Show the progress of a stage; `load` has its bar already, and `wait` has none."""
        stage, done, total = progress
        if stage == "load":
            if not self._is_loading:
                self._speak(f"load: {self._settings.model}", at_once=True)
            self._is_loading = True
            return
        if stage == "wait":
            self.end()
            warn(f"{self._settings.own_shard} is waiting for shard 0 to plan {self._settings.output}")
            return
        unit = {"plan": "records", "teach": "captions", "embed": self._unit}[stage]
        if begins := stage != self._stage:
            self.end()
            self._task = self._bars.add_task(stage, total=total, completed=done, note=unit)
            self._stage = stage
        self._bars.update(self._task, completed=done, total=total)
        self._total = total
        self._done, self._so_far = done, f"{done:,}{'' if total is None else f' of {total:,}'} {unit}"
        if begins or stage != "embed":  # `show_report` says more of that stage
            self._speak(f"{stage}: {self._so_far}", at_once=begins)

    def show_report(self, report: PassReport) -> None:
        """Show the speed of stage `embed`, after its progress, and what it waits for."""
        speed = f"{report.num_pictures / report.wall_s:,.0f}"
        failed = ", ".join(f"{num:,} {reason}" for reason, num in report.failed.items())
        self._bars.update(self._task, note=f"{speed} {self._unit}/s")
        self._bars.footer = Text(f"{'':>9}waits for {report.bottleneck}", style="dim")
        if failed:
            self._bars.footer.append(f"; failed: {failed}", style="not dim yellow")
        told = [f"{speed}/s", *self._remaining(report), f"waits for {report.bottleneck}", *filter(None, [failed])]
        self._speak(f"embed: {self._so_far}, {', '.join(told)}")

    def _remaining(self, report: PassReport) -> list[str]:
        """Time that the stage will take at the speed so far."""
        if self._total is None or not report.num_pictures:
            return []
        seconds = (self._total - self._done) / report.num_pictures * report.wall_s
        return [f"{timedelta(seconds=round(seconds))} left"]

    def end(self) -> None:
        """End the present stage, whatever its total was; of a plan, say what was planned."""
        if self._stage is None:
            self._bars.update(self._task, visible=False)  # loading counts nothing
            return
        self._bars.update(self._task, total=self._done)
        self._bars.footer = None
        if self._stage == "plan":
            planned = self._planned()
            self._bars.update(self._task, note=planned)
            self._speak(f"planned {planned}", at_once=True)
        self._stage = None

    def _planned(self) -> str:
        info = self._output.require().info
        if self._settings.append:
            return f"{info.num_images - info.appended[-1].first_row:,} further images"
        return f"{info.num_images:,} {self._unit}, {info.num_captions:,} captions"

    @property
    def _unit(self) -> str:
        return "images" if self._settings.images else "texts"

    def _speak(self, line: str, *, at_once: bool = False) -> None:
        if not self._silent:
            self._plain.show(line, at_once=at_once)
