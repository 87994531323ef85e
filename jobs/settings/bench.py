"""Settings of `clipglot bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...cache.location import Location
from ...distill.settings import Device, require_at_least_one
from ...distill.train_settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """`clipglot bench`: how fast this machine trains. The text tower is that of ViT-B/32 by default."""

    cache: Annotated[Location | None, "cache to read and to take captions from (default: a synthetic one)"] = None
    vocab_size: Annotated[int, "tokens in the vocabulary of the text tower"] = 49_408
    context_length: Annotated[int, "maximum number of tokens of a caption, BOS and EOS included"] = 77
    width: Annotated[int, "width of the text tower"] = 512
    layers: Annotated[int, "layers of the text tower"] = 12
    heads: Annotated[int, "attention heads of the text tower"] = 8
    batch_size: Annotated[int | None, "captions of a step (default: 64, and 4,096 on a GPU)"] = None
    steps: Annotated[int | None, "steps to measure after warm-up (default: 11, and 110 on a GPU)"] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "autocast; auto is bf16 on a GPU and fp32 elsewhere"
    ] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], "torch.compile tower and loss; auto does so on a GPU"] = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        require_at_least_one(self, "steps")
        self.training(2 if self.batch_size is None else self.batch_size)

    def training(self, batch_size: int) -> TrainSettings:
        """Settings of a training run whose steps are measured; its learning rate hardly moves the weights.

        Raises:
            DistillError: a value that training refuses.
        """
        return TrainSettings(
            cache=self.cache or Path(),
            output=Path(),
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            batch_size=batch_size,
            lr=1e-6,
            schedule="constant",
            warmup=0,
            precision=self.precision,
            compile=self.compile,
            device=self.device,
        )
