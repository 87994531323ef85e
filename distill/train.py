"""`clipglot train`: teach a text tower to find its cached picture. No picture is opened, no loader runs.

Reads top to bottom: the data in memory, the student, then the loop.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..cache.files import whole_directory
from ..cache.store import Cache
from ..encoders.text import TextConfig, TextTower
from ..encoders.tokenizer import CaptionTokenizer, train_bpe
from .batches import BatchPlan
from .caching import resolve_device
from .data import load_data
from .errors import DistillError
from .final import write_final
from .infonce import InfoNCE
from .optimizer import learning_rate, make_optimizer
from .provenance import require_same_encoder, run_provenance
from .run import Run
from .settings import TrainSettings
from .validation import validate

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called after each step with the steps done, their number, and the step's metrics (or a validation's)."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended: complete, or stopped by a signal after a checkpoint."""

    run: Run
    step: int
    num_steps: int
    validation: dict[str, Any] | None

    @property
    def complete(self) -> bool:
        """Whether the last step was reached."""
        return self.step == self.num_steps


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    on_progress: OnProgress = lambda step, total, metrics: None,
) -> TrainResult:
    """Train a text tower from scratch on a sealed cache.

    Args:
        settings: of the run; a resumed run takes the same.
        resume: go on from the newest checkpoint; the result equals that of an uninterrupted run.
        on_progress: called after each step and each validation.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    # Set-up: cache, run folder, tokenizer, data.
    run, cache = Run(settings.output), Cache(settings.cache).require_sealed()
    provenance = run_provenance(cache)
    val_cache = Cache(settings.val).require_sealed() if settings.val else None
    if val_cache:
        require_same_encoder(cache.info.encoder, val_cache.info.encoder, f"the encoder of {settings.val}")
    run.begin(settings, provenance, resume=resume)
    device = resolve_device(settings.device)
    tokenizer = _tokenizer(run, settings, cache)
    data = load_data(cache, tokenizer, settings.context_length, device)
    val_data = load_data(val_cache, tokenizer, settings.context_length, device) if val_cache else None
    plan = BatchPlan(data.caption_image, batch_size=settings.batch_size, seed=settings.seed)
    num_steps = settings.epochs * len(plan)

    # The student, its loss and its optimizer.
    torch.manual_seed(settings.seed)
    config = TextConfig(
        embed_dim=cache.info.encoder.dim,
        vocab_size=tokenizer.vocab_size,
        context_length=settings.context_length,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        quick_gelu=cache.info.encoder.quick_gelu,
    )
    tower = TextTower(config).to(device)
    loss_fn = InfoNCE(temperature=settings.temperature, max_logit_scale=settings.max_logit_scale).to(device)
    optimizer = make_optimizer([tower, loss_fn], settings)
    use_bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16) if use_bf16 else nullcontext()

    step = 0
    if checkpoint := run.load_checkpoint():
        tower.load_state_dict(checkpoint["tower"])
        loss_fn.load_state_dict(checkpoint["loss"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step = checkpoint["step"]
    run.rewind_metrics(step)
    validation = run.last_validation()

    def save() -> None:
        state = {
            "tower": tower.state_dict(),
            "loss": loss_fn.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        run.save_checkpoint(step, state)

    # The loop.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with _stop_on_signal() as stop:
        while step < num_steps and not stop.is_set():
            started = time.perf_counter()
            epoch, index = divmod(step, len(plan))
            batch = plan.batch(epoch, index)
            captions = data.tokens.take(batch.captions)
            rows = torch.from_numpy(batch.rows).to(device)
            group = torch.from_numpy(data.caption_group[batch.captions]).to(device)
            image_emb = data.image_emb[rows].float()  # [B, D]
            data_s = time.perf_counter() - started

            lr = learning_rate(step, num_steps, settings)
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = lr
            with autocast:
                text_emb = F.normalize(tower(captions).float(), dim=-1)  # [B, D]
            loss = loss_fn(image_emb, text_emb, group)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip or float("inf"))
            optimizer.step()
            loss_fn.clamp_()
            step += 1

            metrics: dict[str, Any] = {"step": step, "epoch": epoch}
            if step % settings.log_every == 0 or step == num_steps:
                metrics |= {
                    "loss": loss.item(),
                    "lr": lr,
                    "logit_scale": loss_fn.logit_scale.exp().item(),
                    "grad_norm": grad_norm.item(),
                }
                if not np.isfinite(metrics["loss"]):
                    raise DistillError(f"the loss is {metrics['loss']} at step {step}: lower --lr or raise --warmup")
                step_s = time.perf_counter() - started
                timing = {"pairs_per_s": settings.batch_size / step_s, "data_s": data_s, "step_s": step_s}
                metrics |= timing
                run.log(metrics)
            on_progress(step, num_steps, metrics)

            if val_data is not None and index + 1 == len(plan):
                validation = {"step": step, "epoch": epoch} | validate(tower, val_data)
                run.log(validation)
                on_progress(step, num_steps, validation)
            if step % settings.checkpoint_every == 0 or step == num_steps:
                save()
        if step < num_steps:
            save()
    if step == num_steps:
        write_final(run, tower, loss_fn.logit_scale.exp().item())
    return TrainResult(run=run, step=step, num_steps=num_steps, validation=validation)


def _tokenizer(run: Run, settings: TrainSettings, cache: Cache) -> CaptionTokenizer:
    """The run's tokenizer: kept from before, else given, else trained on the cache's captions; copied into the run."""
    if not run.tokenizer.exists():
        given = CaptionTokenizer.load(settings.tokenizer) if settings.tokenizer else None
        tokenizer = given or train_bpe(cache.captions(), settings.vocab_size)
        with whole_directory(run.tokenizer) as folder:
            tokenizer.save(folder)
    return CaptionTokenizer.load(run.tokenizer)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT (Ctrl-C) and SIGTERM (a scheduler's preemption) set; a second signal acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
