"""What the loop is told: the settings of one stage, with units.

Invariant: plain values, complete and immutable; the schema of recipes (`vargpt.training.recipes.schema`) makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoopSettings:
    """Hyper-parameters of one stage; `log_every` and `evaluate_every` in steps, `checkpoint_every` in seconds.

    The learning rate is scheduled over `steps`. `stop_at` ends the stage before that, at a rate that is still high,
    where a following stage goes on with the same weights. `batch_size` counts samples of a step over all ranks; a
    task cuts a rank's share into micro-batches of at most `micro_batch_size` samples (and `micro_batch_tokens`
    tokens). `ema` is the decay of an exponential moving average of the weights, None for none.
    `trackers` None means tensorboard where it is installed.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.02
    final_learning_rate: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    precision: str = "bf16"
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: float = 120.0
    stop_at: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    micro_batch_size: int = 12
    micro_batch_tokens: int | None = None
    ema: float | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] | None = None
    seed: int = 0

    @property
    def last_step(self) -> int:
        """The step at which the stage is finished."""
        return self.steps if self.stop_at is None else min(self.stop_at, self.steps)
