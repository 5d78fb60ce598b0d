"""`History`: everything a generation remembers about the sequences in flight, aligned column by column.

Invariant: the backbone cache, `valid_RS` and `hidden_RSD` have the same columns; a column that is not valid for a row
(padding, or a row that waits while others talk) is never attended to by it.

Legend: `R` sequences · `S` columns so far · `Q` new columns · `D` backbone width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vargpt.model.backbone import causal_mask, run_language_model


class History:
    """Backbone cache, validity, hidden states (after the final norm) and the next position of each sequence."""

    def __init__(self, backbone: Qwen2VLModel) -> None:
        self._backbone = backbone
        self.cache = DynamicCache()
        self.valid_RS = torch.zeros(0, 0, dtype=torch.bool)
        self.next_position_R = torch.zeros(0, dtype=torch.int64)
        self._hidden: list[Tensor] = []

    @property
    def hidden_RSD(self) -> Tensor:
        """Hidden states of all columns."""
        if len(self._hidden) > 1:
            self._hidden = [torch.cat(self._hidden, dim=1)]
        return self._hidden[0]

    def prefill(self, embeddings_RQD: Tensor, valid_RQ: Tensor, position_ids_3RQ: Tensor) -> Tensor:
        """Run whole prompts (left-padded) with their own positions; return their hidden states."""
        self.valid_RS = valid_RQ.bool()
        last = position_ids_3RQ.masked_fill(~self.valid_RS, -1).amax(dim=(0, 2))
        self.next_position_R = last + 1
        return self._run(embeddings_RQD, position_ids_3RQ)

    def append(self, embeddings_RQD: Tensor, active_R: Tensor) -> Tensor:
        """Append columns at consecutive positions (all three axes alike) for active rows, padding for the others."""
        columns = embeddings_RQD.shape[1]
        positions = self.next_position_R[:, None] + torch.arange(columns, device=self.next_position_R.device)
        self.valid_RS = torch.cat([self.valid_RS, active_R[:, None].expand(-1, columns)], dim=1)
        self.next_position_R = self.next_position_R + columns * active_R
        return self._run(embeddings_RQD, positions.expand(3, *positions.shape))

    def _run(self, embeddings_RQD: Tensor, position_ids_3RQ: Tensor) -> Tensor:
        mask = causal_mask(self.valid_RS, embeddings_RQD.shape[1])
        hidden = run_language_model(self._backbone, embeddings_RQD, position_ids_3RQ, mask, self.cache)
        self._hidden.append(hidden)
        return hidden

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows, in this order."""
        self.cache.batch_select_indices(rows)
        self.valid_RS = self.valid_RS[rows]
        self.next_position_R = self.next_position_R[rows]
        self._hidden = [self.hidden_RSD[rows]]

    def count_positions(self) -> None:
        """Continue at the number of tokens so far instead of after the last position (spec 7.2, quirk 11)."""
        self.next_position_R = self.valid_RS.sum(dim=1)
