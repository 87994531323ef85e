"""`clipglot train`."""

from typing import TYPE_CHECKING, Any, get_args

import click

from ..cache.errors import CacheError
from ..cache.format import Status
from ..cache.progress import Progress
from ..distill.recipes import FEW_IMAGES, RECIPES, Recipe, recipe_for, settings_by_size, settings_of
from ..distill.train_settings import SECTIONS, TrainSettings
from .main import is_first_process
from .options import SectionedCommand, require_kind, settings_options
from .render import PlainProgress, friendly_errors, json_option, percent, print_json, progress_bar, say, warn

if TYPE_CHECKING:
    from ..distill.training.diagnosis import Finding
    from ..distill.training.train import TrainResult

NO_RECIPE = "none"


def _known(merged: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Defaults before flags and file: with --resume the settings of the run, otherwise those of the recipe."""
    if not options["resume"]:
        if options["recipe"] is None:
            return _settings_by_size(merged, options)
        return {} if options["recipe"] == NO_RECIPE else settings_of(options["recipe"], merged)
    if "output" not in merged:
        return {}
    from ..jobs.train import settings_to_resume

    with friendly_errors():
        return settings_to_resume(merged["output"])


def _settings_by_size(given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the recipe for the number of images, which is reported; none where a setting of it is given."""
    if not {"cache", "output"} <= given.keys() or given.get("text", "scratch") != "scratch":
        return {}
    from ..cache.read.cache import Cache

    try:
        num_images = Cache(given["cache"]).require_sealed().info.counts.get(Status.EMBEDDED.label, 0)
    except (CacheError, OSError):  # the command reports it, after bad usage
        return {}
    speaks = is_first_process() and not options["as_json"]
    recipe = recipe_for(num_images, given)
    if recipe is None:
        if speaks and recipe_for(num_images, {}):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in RECIPES["few"] if name in given)
            warn(f"no recipe, because {flags} is given; --recipe few has the other settings for {num_images:,} images")
        return {}
    options["recipe"] = recipe
    settings = settings_by_size(num_images, given) or {}
    if speaks:
        values = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
        say(f"--recipe {recipe} for {num_images:,} images ({values}); --recipe {NO_RECIPE} leaves it out")
    return settings


@click.command(cls=SectionedCommand, sections=SECTIONS)
@settings_options(TrainSettings, "cache", known=_known)
@click.option(
    "--recipe",
    type=click.Choice([*get_args(Recipe), NO_RECIPE]),
    help="measured defaults: for few images, many images, a language model, one with LoRA, or a frozen one "
    f"(default: few up to {FEW_IMAGES:,} images if no setting of it is given; none: plain defaults)",
)
@click.option(
    "--resume",
    is_flag=True,
    help="continue from the newest checkpoint with the settings of the run; settings that would change its result are "
    "refused",
)
@json_option
def train(settings: TrainSettings, recipe: str | None, resume: bool, as_json: bool) -> None:
    """Train a text tower on the images and captions of CACHE; no image is opened.

    Ctrl-C saves a checkpoint; clipglot train CACHE -o RUN --resume continues
    exactly where the run stopped.

    \b
    clipglot train train.zarr -o run --val val.zarr --recipe few
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    plain = PlainProgress()
    with friendly_errors(), progress_bar() as progress:
        require_kind(settings.cache, "cache")
        if settings.val:
            require_kind(settings.val, "cache")
            if str(settings.val) == str(settings.cache) and is_first_process() and not as_json:
                warn("--val is the cache that is trained on: its recall says nothing of new images")
        if not resume and (settings.output / "run.json").exists():
            raise click.ClickException(
                f"{settings.output} holds a run already: pass --resume to go on, or choose another -o"
            )
        if settings.live_because and is_first_process() and not as_json:
            say(f"the frozen language model runs in every step, because of {settings.live_because}")
        task = progress.add_task("load", note="", total=None)  # at once: the import takes seconds
        from ..jobs.train import train as run_training

        latest = {"step": "", "validation": ""}
        num_steps = 0

        def show(at: Progress) -> None:
            nonlocal num_steps
            num_steps = at.total or 0
            progress.update(task, description=at.stage, completed=at.done, total=at.total)

        def show_metrics(line: dict[str, Any]) -> None:
            kind = line["kind"]
            if kind == "step":
                latest[kind] = f"loss {line['loss']:.3f}, {line['pairs_per_s']:,.0f} pairs/s"
            elif kind == "validation":
                latest[kind] = f"R@10 {percent(line['r_at_10'])}"
            else:
                return
            progress.update(task, note=", ".join(filter(None, latest.values())))
            if is_first_process() and not as_json:  # a line has the figures of its own step alone
                plain.show(f"step {line['step']:,} of {num_steps:,}: {latest[kind]}", at_once=kind == "validation")

        def show_finding(finding: "Finding") -> None:
            warn(f"{finding.kind.replace('_', ' ')}: {finding.message}: {finding.advice} (docs/diagnosis.md)")

        result = run_training(
            settings, resume=resume, on_progress=show, on_metrics=show_metrics, on_finding=show_finding
        )
    if not is_first_process():
        return
    trace, traced = _trace(settings, result)
    if as_json:
        print_json(
            {
                "run": str(settings.output),
                "recipe": None if recipe == NO_RECIPE else recipe,
                "complete": result.complete,
                "began_at": result.began_at,
                "step": result.step,
                "num_steps": result.num_steps,
                "vocab_size": result.vocab_size,
                "context_length": result.context_length,
                "trace": trace,
                "num_trained": result.num_trained,
                "num_parameters": result.num_parameters,
                "validation": result.validation,
                "best": result.best,
                "stopped_early": result.stopped_early,
                "findings": [finding.to_json() for finding in result.findings],
            }
        )
    elif result.complete:
        recall = f": {_recall(result.validation)}" if result.validation else ""
        if result.began_at == result.step:
            say(f"{settings.output} was already finished, after {result.step:,} steps: nothing to do{recall}")
        else:
            share = percent(result.num_trained / result.num_parameters)
            trained = f"{result.num_trained:,} of {result.num_parameters:,} parameters ({share})"
            steps = f"{result.step:,} of {result.num_steps:,}" if result.stopped_early else f"{result.num_steps:,}"
            say(f"{settings.output}: trained {trained} in {steps} steps{recall}")
        if result.stopped_early:
            say(f"stopped early: {settings.patience} validations in a row brought no better mean of R@1, R@5 and R@10")
        if result.best and result.validation and result.best["step"] != result.validation["step"]:
            at = "before the first step" if result.best["step"] == 0 else f"after step {result.best['step']:,}"
            taken = "; export takes its weights" if result.run.best.exists() else ""
            say(f"best validation (mean of R@1, R@5 and R@10): {_recall(result.best)} {at}{taken}")
        if settings.tokenizer is None and settings.text == "scratch" and result.vocab_size < settings.vocab_size:
            asked = f"--vocab-size {settings.vocab_size:,}"
            say(
                f"tokenizer: {result.vocab_size:,} tokens, fewer than {asked}: the captions have no more pairs to merge"
            )
        if result.context_length < settings.context_length:
            say(f"context length: {result.context_length} tokens, all that the tower has positions for")
        if traced:
            say(traced)
        if result.has_learned:
            say(f"next: clipglot export {settings.output} -o merged")
        else:
            say("recall is no better than guessing: change what the findings name and train again (docs/diagnosis.md)")
    if not result.complete:
        click.echo(f"stopped and saved at step {result.step} of {result.num_steps}: continue with --resume", err=True)
        raise SystemExit(130)


def _trace(settings: TrainSettings, result: "TrainResult") -> tuple[str | None, str]:
    """Path of the profiler's trace, or None, and a line for the user."""
    from ..distill.training.throughput import WARM_UP, trace_file

    if not settings.profile:
        return None, ""
    num_recorded = min(settings.profile, result.step - result.began_at - WARM_UP)
    if num_recorded < 1:
        done = result.step - result.began_at
        return None, f"profile: nothing recorded in {done} steps: the first {WARM_UP} are warm-up"
    trace = str(trace_file(settings.output))
    return (
        trace,
        f"profile: {num_recorded} of {settings.profile} steps in {trace}, for ui.perfetto.dev or chrome://tracing",
    )


def _recall(validation: dict[str, Any]) -> str:
    return (
        f"R@1 {percent(validation['r_at_1'])}, R@5 {percent(validation['r_at_5'])}, "
        f"R@10 {percent(validation['r_at_10'])}, median rank {validation['median_rank']:g}"
    )
