"""Key/value cache of the decoder's self-attention, one preallocated buffer per layer.

Invariant: rows 0..length-1 of the token axis are valid; keys are stored after rotation.

Legend: `R` sequences · `N E` heads and head width · `L` image tokens.
"""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """Keys and values of one layer, allocated for all L tokens of the schedule on first use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys_RNlE: Tensor, values_RNlE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the tokens of one scale and return all keys and values so far."""
        rows, heads, added, width = keys_RNlE.shape
        if self._keys is None or self._values is None:
            self._keys = keys_RNlE.new_empty(rows, heads, self.capacity, width)
            self._values = values_RNlE.new_empty(rows, heads, self.capacity, width)
        end = self.length + added
        self._keys[:, :, self.length : end] = keys_RNlE
        self._values[:, :, self.length : end] = values_RNlE
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def keep(self, rows: int) -> None:
        """Keep only the first rows."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[:rows], self._values[:rows]


class DecoderCache:
    """The caches of all decoder layers for one image phase."""

    def __init__(self, depth: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(depth)]

    @property
    def length(self) -> int:
        """Image tokens stored so far."""
        return self.layers[0].length

    def keep(self, rows: int) -> None:
        """Keep only the first rows (the conditional branch)."""
        for layer in self.layers:
            layer.keep(rows)
