"""`clipglot train`."""

from typing import TYPE_CHECKING, Any, get_args

import click

from ..cache.errors import CacheError
from ..distill.recipes import (
    AUTO,
    FEW_IMAGES,
    NONE,
    Recipe,
    choose_recipe,
    chosen_settings,
    count_images,
    kept_away_by,
    settings_of,
)
from ..distill.train_settings import SECTIONS, TrainSettings
from .main import INTERRUPTED, is_first_process
from .options import SectionedCommand, require_kind, settings_options
from .render import friendly_errors, json_option, percent, print_json, progress_bar, say, warn
from .train_progress import TrainProgress

if TYPE_CHECKING:
    from ..distill.training.train import TrainResult


def _known(merged: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Defaults before flags and file: with --resume the settings of the run, otherwise those of the recipe."""
    if not options["resume"]:
        if options["recipe"] == AUTO:
            options["recipe"] = None
            return _chosen(merged, options)
        return {} if options["recipe"] == NONE else settings_of(options["recipe"], merged)
    if "output" not in merged:
        return {}
    from ..jobs.train import settings_to_resume

    with friendly_errors():
        return settings_to_resume(merged["output"])


def _chosen(given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the recipe that the run takes by itself, which is reported with the reason."""
    if not {"cache", "output"} <= given.keys():
        return {}
    from ..cache.read.cache import Cache

    try:
        num_images = count_images(Cache(given["cache"]).require_sealed(), given.get("captions", ()))
    except (CacheError, OSError):  # the command reports it, after bad usage
        return {}
    text, on_gpu = str(given.get("text", "scratch")), False
    if text not in ("scratch", "clip"):  # which do not ask, and torch takes seconds to import
        from ..distill.device import uses_gpu

        on_gpu = uses_gpu(given.get("device", "auto"))
    speaks = is_first_process() and not options["as_json"]
    choice = choose_recipe(num_images, text, on_gpu=on_gpu)
    if choice is None:
        return {}
    by_hand = kept_away_by(choice.recipe, given)
    if by_hand:
        if speaks:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in by_hand)
            plain = "plain settings train a larger tower, which takes several times as long; " * (
                choice.recipe == "few"
            )
            warn(f"no recipe, because of {flags}: {plain}--recipe {choice.recipe} adds its other settings")
        return {}
    options["recipe"] = choice.recipe
    settings = chosen_settings(num_images, given, on_gpu=on_gpu)
    if speaks:
        values = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
        say(f"--recipe {choice.recipe} for {choice.reason} ({values}); --recipe {NONE} turns it off")
    return settings


@click.command(
    cls=SectionedCommand,
    start="cache output val recipe text epochs batch_size lr resume",
    sections=SECTIONS,
)
@settings_options(TrainSettings, "cache", known=_known)
@click.option(
    "--recipe",
    type=click.Choice([AUTO, *get_args(Recipe), NONE]),
    default=AUTO,
    help="measured defaults: for few images, many images, a language model, LoRA (with --text clip, too), or a frozen "
    f"language model; auto, the default, is few up to {FEW_IMAGES:,} images, or frozen for a language model on the "
    "CPU, and says why; a setting of it that you give turns it off; none: plain defaults",
)
@click.option(
    "--resume",
    is_flag=True,
    help="continue from the newest checkpoint with the settings of the run; refuses settings that would change its "
    "result",
)
@json_option
def train(settings: TrainSettings, recipe: str | None, resume: bool, as_json: bool) -> None:
    """Train a text tower on the embeddings and captions in CACHE; no image is opened.

    Ctrl-C saves a checkpoint; clipglot train CACHE -o RUN --resume continues
    exactly where the run stopped.

    \b
    clipglot train train.zarr -o run --val val.zarr --recipe few
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), progress_bar() as progress:
        require_kind(settings.cache, "cache")
        if settings.val:
            require_kind(settings.val, "cache")
            if str(settings.val) == str(settings.cache) and is_first_process() and not as_json:
                warn("--val is the training cache: its recall says nothing about new images")
        if not resume and (settings.output / "run.json").exists():
            raise click.ClickException(
                f"{settings.output} holds a run already: pass --resume to go on, or choose another -o"
            )
        shown = TrainProgress(progress, silent=as_json)  # at once: the import takes seconds
        from ..jobs.train import train as run_training

        result = run_training(
            settings,
            resume=resume,
            on_progress=shown.show,
            on_metrics=shown.show_metrics,
            on_finding=shown.show_finding,
            on_outline=shown.show_outline,
            on_epoch=shown.show_epoch,
        )
    shown.end()
    if not is_first_process():
        return
    trace, traced = _trace(settings, result)
    if as_json:
        print_json(
            {
                "run": str(settings.output),
                "recipe": None if recipe in (AUTO, NONE) else recipe,
                "complete": result.complete,
                "began_at": result.began_at,
                "step": result.step,
                "num_steps": result.num_steps,
                "vocab_size": result.vocab_size,
                "context_length": result.context_length,
                "trace": trace,
                "num_trained": result.num_trained,
                "num_parameters": result.num_parameters,
                "text_features": result.text_features,
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
        click.echo(
            f"stopped and saved at step {result.step} of {result.num_steps}: to go on, the same command with --resume",
            err=True,
        )
        raise SystemExit(INTERRUPTED)


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
