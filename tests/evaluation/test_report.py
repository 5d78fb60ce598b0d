"""The report: JSON, a table with intervals, a page that stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vargpt.evaluation.folder import Outcome, Sample
from vargpt.evaluation.intervals import bootstrap
from vargpt.evaluation.report import conditions, markdown_table, results, write_report
from vargpt.sampling import Sampling

PIXELS = torch.zeros(8, 8, 3, dtype=torch.uint8)


def outcomes() -> list[Outcome]:
    right, wrong = Sample("a <b>", "a <b>", 1.0, source=PIXELS), Sample("red", "blue", 0.0, source=PIXELS)
    psnr = [Sample(f"picture {index}", "", 20.0 + index, target=PIXELS, result=PIXELS) for index in range(20)]
    return [
        Outcome("naming", "train", bootstrap([1.0, 1.0, 1.0, 0.0]), [right, right, right, wrong]),
        Outcome("reconstruction", "validation", bootstrap([s.value for s in psnr]), psnr),
    ]


def test_json_and_table_say_the_same():
    settings = conditions("tiny", "emoji", Sampling.official(), "float32", 1.26)
    document = results(outcomes(), settings)
    assert document["measures"]["naming"]["train"]["mean"] == 0.75
    assert document["conditions"]["model"] == "tiny" and document["conditions"]["seconds"] == 1.3
    assert document["conditions"]["sampling"]["guidance_scale"] == Sampling.official().guidance_scale
    lines = markdown_table(document).splitlines()
    assert lines[2].startswith("| Naming (exact match) | 75.0% [") and lines[2].endswith("n = 4 | - |")
    assert "| - | 29.50 [" in lines[3] and lines[3].endswith("n = 20 |")


def test_the_page_stands_alone_and_escapes_names(tmp_path: Path):
    settings = conditions("tiny", "emoji", Sampling.official(), "float32", 1.0)
    page = write_report(outcomes(), settings, tmp_path / "report")
    text = page.read_text()
    assert "a &lt;b&gt;" in text and "a <b>" not in text
    assert "http" not in text and 'src="data:image/png;base64,' in text
    assert json.loads((page.parent / "results.json").read_text()) == results(outcomes(), settings)
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "results.json"]
    assert "picture 19" in text and "picture 0<" in text and "picture 5<" not in text  # best and worst, not all
