"""Early warnings of preference training: what goes wrong long before samples show it.

Invariant: what is said depends on the metrics that were fed in alone, and every kind of warning is said once.

Rewards are beta times (policy minus reference), both on the same bits, so their level does not depend on which pictures
a step happens to hold; log-probabilities themselves do, and are not used.
"""

from __future__ import annotations

from collections.abc import Mapping

FALL = 0.05
"""Nats per bit by which the chosen pictures may become less likely. A bit of a trained model costs 0.3 to 0.6."""
SATURATION = 8.0
"""Mean of beta times the margin beyond which the sigmoid's gradient is below 1/3000 of its start."""


class PreferenceWatch:
    """Looks at the metrics of a preference stage as they are logged.

    Args:
        beta: strength of the pull towards the reference.
        nats_per_bit: how much a log-probability changes when that of every bit changes by 1
            (`preference_logps.nats_per_bit`).
        fall: nats per bit, see `FALL`. saturation: see `SATURATION`.
    """

    def __init__(self, beta: float, nats_per_bit: float, fall: float = FALL, saturation: float = SATURATION) -> None:
        self._beta, self._per_bit = beta, nats_per_bit
        self._fall, self._saturation = fall, saturation
        self._said: set[str] = set()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Return a line to print, or None; metrics without rewards (a validation entry) are passed over."""
        if "rewards/margins" not in metrics:
            return None
        for kind, message in (
            ("collapse", self._collapse(metrics)),
            ("saturation", self._saturated(metrics)),
            ("reversal", self._reversed(metrics)),
        ):
            if message is not None and kind not in self._said:
                self._said.add(kind)
                return f"warning at step {step}: {message}"
        return None

    def _collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Both sides become less likely, the rejected one faster: the margin grows and the pictures fall apart."""
        chosen, rejected = (self._change(metrics[f"rewards/{side}"]) for side in ("chosen", "rejected"))
        if chosen >= -self._fall or rejected >= chosen:
            return None
        return (
            f"the log-probability of chosen pictures fell by {-chosen:.3f} nats per bit since the start of the stage, "
            f"of rejected ones by {-rejected:.3f}: the model unlearns both; raise sft_weight or beta, or lower "
            f"learning_rate"
        )

    def _saturated(self, metrics: Mapping[str, float]) -> str | None:
        """Every pair is right by so much that little is left to learn, while the rewards still grow."""
        margin = metrics["rewards/margins"]
        if margin <= self._saturation or metrics["rewards/accuracies"] < 1.0:
            return None
        return (
            f"rewards diverge: beta times the margin is {margin:.1f} and every pair is right, so the loss is flat "
            f"while the model goes on moving; stop here, or lower learning_rate or beta"
        )

    def _reversed(self, metrics: Mapping[str, float]) -> str | None:
        """The rejected side wins by far: a rate that is far too high, or sides that are swapped."""
        margin = metrics["rewards/margins"]
        if margin >= -self._saturation:
            return None
        return (
            f"rewards diverge: beta times the margin is {margin:.1f}, so the rejected pictures win; lower "
            f"learning_rate, and see that chosen and rejected are not swapped"
        )

    def _change(self, reward: float) -> float:
        """Change of a side's log-probability since the start, in nats per bit."""
        return reward / (self._beta * self._per_bit)
