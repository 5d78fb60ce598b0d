"""What `test_distributed` runs on one rank and, under torchrun, on two: `two_ranks.py FOLDER RANKS`.

FOLDER holds `recipe.yaml` and `data/`; results go to `whole-RANKS/`, `replicas-2/`, `handed-1-to-2/` and
`facts-RANKS.pt`.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training_helpers import sft_task

from vargpt.processing.processor import VargptProcessor
from vargpt.training import distributed
from vargpt.training.loop import trainer
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.loop.stopping import StopRequest, TimeLimitReached
from vargpt.training.loop.trainer import Trainer
from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.run import train
from vargpt.training.weights.build import build_model
from vargpt.training.weights.trainable import set_trainable

HANDOVER = LoopSettings(
    steps=6, batch_size=4, learning_rate=3e-3, precision="fp32", log_every=1, evaluate_every=5, ema=0.7, trackers=(),
    activation_checkpointing=True,
)  # fmt: skip
MUON = replace(HANDOVER, steps=3, optimizer="muon")


class StopAfter(StopRequest):
    """Asks for an end after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def reason(self) -> str | None:
        """Looked at once per step."""
        self._left -= 1
        return "a test" if self._left == 0 else None


def hand_over(
    folder: Path,
    directory: Path,
    stop_after: int | None,
    settings: LoopSettings = HANDOVER,
    replicate: bool = False,
) -> dict[str, Tensor]:
    """Train the SFT stage of the recipe, from wherever `directory` stands; return all weights."""
    recipe = load_recipe(folder / "recipe.yaml")
    processor = VargptProcessor.from_pretrained(folder / "processor")
    model = build_model(recipe, processor)
    set_trainable(model, "generation")
    if not replicate:
        distributed.shard(model)
    task = sft_task(recipe, folder / "data", processor, model, stage_index=0)
    loop = Trainer("sft", task, settings, directory)
    if stop_after is None:
        loop.run()
    else:
        with contextlib.suppress(TimeLimitReached):
            loop.run(StopAfter(stop_after))
    return distributed.full_state(model)


class Rows:
    """Least squares over the rows 0 to 4, of which two ranks get two and three; only rank 0 has poison, if any."""

    def __init__(self, poison: bool = False) -> None:
        self.module = nn.Linear(1, 1)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        self._poison = float("nan") if poison and distributed.is_main() else 1.0

    def batch(self, step: int) -> list[Tensor]:
        """This rank's rows, one by one."""
        return [torch.full((1, 1), float(row) * self._poison) for row in distributed.share(5)]

    def counts(self, batch: list[Tensor]) -> dict[str, float]:
        """Rows."""
        return {"rows": float(len(batch))}

    def loss(self, micro: Tensor, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Share of the mean squared error; odd rows have a metric of their own."""
        share = (self.module(micro) - 2 * micro).square().sum() / counts["rows"]
        odd = {"odd": micro.sum() / counts["rows"]} if float(micro.sum()) % 2 == 1 else {}
        return share, odd

    def evaluate(self) -> dict[str, float]:
        """Different on every rank: rank 0's counts."""
        return {"rank": float(distributed.rank())}


def diverge(directory: Path) -> str:
    """The error of a run whose rank 0 alone sees NaN, as this rank sees it."""
    settings = LoopSettings(steps=2, batch_size=5, learning_rate=0.1, precision="fp32", log_every=1, trackers=())
    try:
        Trainer("rows", Rows(poison=True), settings, directory).run()
    except RuntimeError as error:
        return str(error)
    return "no error"


def rows(directory: Path) -> list[float]:
    """Weight and bias after three plain steps."""
    task = Rows()
    settings = LoopSettings(
        steps=3, batch_size=5, learning_rate=0.1, grad_clip=1e9, precision="fp32", log_every=1, trackers=()
    )
    Trainer("rows", task, settings, directory).run()
    return [float(p.detach()) for p in task.module.parameters()]


def main(folder: Path, ranks: int) -> None:
    """Everything with this number of ranks."""
    trainer.plot_curves = lambda directory: None
    distributed.setup()
    assert distributed.world_size() == ranks
    facts: dict[str, Any] = {
        "rows": rows(folder / f"rows-{ranks}"),
        "diverge": distributed.gather_objects(diverge(folder / f"diverge-{ranks}")),
        "sum": distributed.sum_counts({"a": 1.0, f"only {distributed.rank()}": 2.0}),
        "max": distributed.max_int(10 * distributed.rank()),
        "share": distributed.gather_objects(list(distributed.share(5))),
    }
    if ranks == 2:
        hand_over(folder, folder / "handed-2-to-1", stop_after=3)
        facts["handed"] = hand_over(folder, folder / "handed-1-to-2", stop_after=None)
        facts["muon"] = hand_over(folder, folder / "muon-2", stop_after=None, settings=MUON)
        facts["muon replicas"] = hand_over(folder, folder / "muon-replicas", None, settings=MUON, replicate=True)
        train(folder / "recipe.yaml", folder / "data", folder / "replicas-2", replicate=True)
    train(folder / "recipe.yaml", folder / "data", folder / f"whole-{ranks}")
    if distributed.is_main():
        torch.save(facts, folder / f"facts-{ranks}.pt")
    distributed.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
