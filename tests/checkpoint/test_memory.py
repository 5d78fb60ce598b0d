"""Loading peaks at the weights' size plus a little; the benchmark measures the same at 1 GB."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc (Linux)")
def test_loading_in_bfloat16_peaks_at_most_15_percent_above_the_weights() -> None:
    import loading_memory

    for result in loading_memory.run(gigabytes=0.6, max_shard_size="200MB"):
        assert float(str(result["peak_over_weights"])) <= 1.15, result
