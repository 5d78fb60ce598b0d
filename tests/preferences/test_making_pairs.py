"""The whole way from prompts to a folder: stopped and killed runs, policies, given pictures, the report."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageStat

from vargpt.data.instructions import canonical_draw, canonical_edit, draw_prompt
from vargpt.data.pairs import PairFolder, image_tokenizer_hash
from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.build import PairPlan, PairsMade, make_pairs
from vargpt.preferences.prompts import PairPrompt, from_conversation
from vargpt.preferences.report import finish_pairs, histogram
from vargpt.preferences.sample import ModelPainter, picture_seed
from vargpt.preferences.scorers import Context
from vargpt.processing.conversation import Conversation, assistant, user
from vargpt.sampling import Sampling

WILD = Sampling(guidance_scale=1.0, temperature=1.0, top_p=1.0)
NAMES = ("fox", "red heart", "blue box", "cat", "dog", "snail", "a hat")


def redness(prompt: Conversation, images: list[Image.Image], context: Context) -> list[float]:
    """A scorer: mean red minus mean blue."""
    del prompt, context
    means = [ImageStat.Stat(image).mean for image in images]
    return [mean[0] - mean[2] for mean in means]


def too_few(prompt: Conversation, images: list[Image.Image], context: Context) -> list[float]:
    """A scorer that forgets a picture."""
    del prompt, context
    return [1.0] * (len(images) - 1)


def constant(prompt: Conversation, images: list[Image.Image], context: Context) -> list[float]:
    """A scorer for which all pictures are equal."""
    del prompt, context
    return [1.0] * len(images)


PROMPTS = [PairPrompt(name, draw_prompt(name), caption=name) for name in NAMES]
PLAN = PairPlan(num_samples=3, batch_size=6, seed=4, prompts_per_shard=3)


def make(pipeline: VargptPipeline, folder: Path, plan: PairPlan = PLAN, prompts: Any = None, **more: Any) -> PairsMade:
    arguments = {"scorer_name": "redness", "identity": {"set": "names"}, **more}
    scorer = arguments.pop("scorer", redness)
    return make_pairs(ModelPainter(pipeline, WILD), scorer, prompts or PROMPTS, folder, plan, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the versions."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    header = json.loads(found.pop("pairs.json"))
    return {**found, "settings": json.dumps(header["settings"]).encode()}


@pytest.fixture(scope="module")
def whole(pipeline: VargptPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    assert make(pipeline, folder) == PairsMade(True, 7, folder)
    return folder


def test_best_and_worst_of_each_prompt_are_paired(whole: Path, pipeline: VargptPipeline) -> None:
    folder = PairFolder(whole)
    assert [pair.key for pair in folder] == list(NAMES)
    assert folder.image_tokenizer == image_tokenizer_hash(pipeline.model.image_tokenizer)
    outcomes = []
    for number in range(3):
        with zipfile.ZipFile(whole / f"pairs-{number:05d}.zip") as archive:
            outcomes += json.loads(archive.read("shard.json"))["outcomes"]
    painter = ModelPainter(pipeline, WILD)
    for number, (pair, outcome) in enumerate(zip(folder, outcomes, strict=True)):
        seeds = [picture_seed(4, number, sample) for sample in range(3)]
        assert outcome["seeds"] == seeds
        assert pair.chosen.score == max(outcome["scores"]) > pair.rejected.score == min(outcome["scores"])
        assert pair.chosen.seed == seeds[outcome["chosen"]]
        assert pair.rejected.seed == seeds[outcome["rejected"]]
        assert redness(pair.prompt, [pair.chosen.image()], Context()) == [pair.chosen.score]
        assert pair.chosen.bits is not None
        canvas = pipeline.model.image_tokenizer.canvas(pair.chosen.bits[None], painter.schedule)
        with torch.no_grad():
            decoded = pipeline.model.image_tokenizer.decode(canvas)
        assert pipeline.to_output(list(decoded), "pil")[0].tobytes() == pair.chosen.image().tobytes()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_changes_no_bit(batch_size: int, whole: Path, pipeline: VargptPipeline, tmp_path: Path) -> None:
    make(pipeline, tmp_path, PairPlan(num_samples=3, batch_size=batch_size, seed=4, prompts_per_shard=3))
    for one, two in zip(PairFolder(whole), PairFolder(tmp_path), strict=True):
        assert (one.chosen.seed, one.rejected.seed) == (two.chosen.seed, two.rejected.seed)
        assert one.chosen.bits is not None and two.chosen.bits is not None
        assert torch.equal(one.chosen.bits, two.chosen.bits)


def calls(limit: int) -> Callable[[], bool]:
    """A wish to stop that comes with the given question."""
    asked = [0]

    def should_stop() -> bool:
        asked[0] += 1
        return asked[0] > limit

    return should_stop


def test_processes_that_score_change_no_file(whole: Path, pipeline: VargptPipeline, tmp_path: Path) -> None:
    assert make(pipeline, tmp_path, replace(PLAN, workers=2)).finished
    assert contents(tmp_path) == contents(whole)


def test_an_error_of_a_scorer_in_another_process_is_its_own(pipeline: VargptPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="redness"):
        make(pipeline, tmp_path, replace(PLAN, workers=1), scorer=too_few)


def test_stopped_after_any_batch_it_goes_on_to_the_same_files(
    whole: Path, pipeline: VargptPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = []
    for _ in range(30):
        made = make(pipeline, tmp_path, should_stop=calls(3))
        reached.append(made.prompts)
        if made.finished:
            break
        with pytest.raises(ValueError, match="not finished"):
            PairFolder(tmp_path)
    assert len(reached) > 2
    assert reached == sorted(reached)
    assert all(prompts in (0, 3, 6, 7) for prompts in reached)
    assert contents(tmp_path) == contents(whole)
    assert "going on at prompt 3 of 7" in capsys.readouterr().err


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("place", range(7))
def test_killed_at_any_prompt_it_goes_on_to_the_same_files(
    place: int, whole: Path, pipeline: VargptPipeline, tmp_path: Path
) -> None:
    def dying(prompt: Conversation, images: list[Image.Image], context: Context) -> list[float]:
        if context.key == NAMES[place]:
            raise _KilledError
        return redness(prompt, images, context)

    with pytest.raises(_KilledError):
        make(pipeline, tmp_path, scorer=dying)
    assert len(list(tmp_path.glob("pairs-*.zip"))) == place // 3
    make(pipeline, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_two_processes_share_the_work(whole: Path, pipeline: VargptPipeline, tmp_path: Path) -> None:
    for rank in (0, 1):
        made = make(pipeline, tmp_path, PairPlan(3, seed=4, batch_size=6, prompts_per_shard=3, share=(rank, 2)))
        assert made.finished
        assert not (tmp_path / "index.json").exists()
    finish_pairs(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_other_settings_in_the_same_folder_are_refused(whole: Path, pipeline: VargptPipeline) -> None:
    before = contents(whole)
    for change, message in (
        ({"plan": PairPlan(3, margin=0.5, seed=4, prompts_per_shard=3)}, "another margin: 0.0 there, 0.5 now"),
        ({"plan": PairPlan(3, seed=5, prompts_per_shard=3)}, "another seed: 4 there, 5 now"),
        ({"prompts": PROMPTS[:6]}, "another prompts: 7 there, 6 now"),
        ({"identity": {"set": "other"}}, "another set: names there, other now"),
        ({"scorer_name": "other"}, "another scorer"),
    ):
        with pytest.raises(ValueError, match=message):
            make(pipeline, whole, **change)
    weight = pipeline.model.lm_head.weight
    with torch.no_grad():
        weight[0, 0] += 1
        with pytest.raises(ValueError, match="another model"):
            make(pipeline, whole)
        weight[0, 0] -= 1
    assert contents(whole) == before


def test_the_report_counts(whole: Path, pipeline: VargptPipeline, tmp_path: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert {name: report[name] for name in ("prompts", "pairs", "ties", "below_margin", "broken", "yield")} == {
        "prompts": 7, "pairs": 7, "ties": 0, "below_margin": 0, "broken": 0, "yield": 1.0,
    }  # fmt: skip
    assert (report["pictures"], report["image_tokens"]) == (21, 21 * 21)
    sampled, difference = report["scores"]["sampled"], report["scores"]["difference"]
    assert sampled["count"] == sum(sampled["histogram"]) == 21
    pairs = list(PairFolder(whole))
    gaps = [pair.chosen.score - pair.rejected.score for pair in pairs]  # type: ignore[operator]
    assert difference["mean"] == pytest.approx(sum(gaps) / 7)
    middle = sorted(gaps)[3]
    make(pipeline, tmp_path / "margin", PairPlan(3, margin=middle, seed=4))
    report = json.loads((tmp_path / "margin" / "report.json").read_text())
    assert (report["pairs"], report["below_margin"]) == (4, 3)
    assert [pair.key for pair in PairFolder(tmp_path / "margin")] == [
        pair.key for pair, gap in zip(pairs, gaps, strict=True) if gap >= middle
    ]
    make(pipeline, tmp_path / "ties", scorer=constant, plan=PairPlan(2))
    report = json.loads((tmp_path / "ties" / "report.json").read_text())
    assert (report["pairs"], report["ties"], report["yield"]) == (0, 7, 0.0)
    assert len(PairFolder(tmp_path / "ties")) == 0


def test_histograms_on_literal_values() -> None:
    assert histogram([0.0, 1.0, 0.09, 0.95]) == {
        "count": 4, "mean": 0.51, "min": 0.0, "max": 1.0, "histogram": [1, 1, *[0] * 17, 2],
    }  # fmt: skip
    assert histogram([2.0, 2.0])["histogram"] == [2]


def test_the_page_is_whole_in_itself(whole: Path) -> None:
    page = (whole / "index.html").read_text()
    assert page.count("<img ") == 14
    assert page.count("src='data:image/png;base64,") == 14
    assert "http" not in page
    assert "red heart" in page


def test_given_pictures_are_chosen(pipeline: VargptPipeline, repo_root: Path, tmp_path: Path) -> None:
    fox, heart = (repo_root / "examples" / f"{name}.png" for name in ("fox", "red-heart"))
    prompts = [
        from_conversation("draw", canonical_draw("fox", fox)),
        from_conversation("edit", canonical_edit(heart, fox, "make it a fox")),
    ]
    painter = ModelPainter(pipeline, WILD)
    given = painter.encode(fox)
    make(pipeline, tmp_path / "plain", PairPlan(1, chosen="given"), prompts, scorer=None, scorer_name=None)
    pairs = list(PairFolder(tmp_path / "plain"))
    assert [pair.key for pair in pairs] == ["draw", "edit"]
    assert pairs[1].prompt.messages[0].content[0].image == heart.read_bytes()  # type: ignore[union-attr]
    for number, pair in enumerate(pairs):
        assert pair.chosen.image().tobytes() == given.image.tobytes()
        assert pair.chosen.bits is not None
        assert torch.equal(pair.chosen.bits, given.bits_Ld)
        assert (pair.chosen.seed, pair.chosen.score) == (None, None)
        assert (pair.rejected.seed, pair.rejected.score) == (picture_seed(0, number, 0), None)
    page = (tmp_path / "plain" / "index.html").read_text()
    assert page.count("<img ") == 5
    assert "<b>source</b>" in page
    make(pipeline, tmp_path / "scored", PairPlan(3, chosen="given"), prompts)
    for number, pair in enumerate(PairFolder(tmp_path / "scored")):
        drawings = painter.draw([prompts[number].request], [[picture_seed(0, number, sample) for sample in range(3)]])
        found = redness(pair.prompt, [drawing.image for drawing in drawings[0]], Context())
        assert pair.rejected.score == min(found)
        assert pair.chosen.score == redness(pair.prompt, [given.image], Context())[0]


def test_a_broken_prompt_stops_or_is_counted(pipeline: VargptPipeline, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"no picture")
    broken = from_conversation("torn", canonical_edit(tmp_path / "torn.png", tmp_path / "gone.png", "make it blue"))
    prompts = [PROMPTS[0], broken, PROMPTS[1]]
    with pytest.raises(ValueError, match=r"torn\.png: not an image"):
        make(pipeline, tmp_path / "stop", prompts=prompts)
    make(pipeline, tmp_path / "skip", PairPlan(2, on_error="skip"), prompts)
    assert [pair.key for pair in PairFolder(tmp_path / "skip")] == ["fox", "red heart"]
    report = json.loads((tmp_path / "skip" / "report.json").read_text())
    assert (report["pairs"], report["broken"], report["pictures"]) == (2, 1, 4)
    assert report["broken_prompts"][0]["key"] == "torn"
    assert "not an image" in report["broken_prompts"][0]["reason"]
    later = PairFolder(tmp_path / "skip")[1]
    assert later.chosen.seed in [picture_seed(0, 2, sample) for sample in range(2)]


def test_plans_that_cannot_work(pipeline: VargptPipeline, tmp_path: Path) -> None:
    for plan, scorer, message in (
        (PairPlan(1), redness, "num_samples must be at least 2"),
        (PairPlan(2), None, "need a scorer"),
        (PairPlan(2, chosen="given"), None, "set num_samples to 1"),
        (PairPlan(1, chosen="given", margin=0.1), None, "a margin needs a scorer"),
        (PairPlan(2, margin=-1), redness, "must not be negative"),
        (PairPlan(1, chosen="given"), redness, "fox: has no picture of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            make(pipeline, tmp_path, plan, scorer=scorer)
    with pytest.raises(ValueError, match="there is no prompt"):
        make_pairs(ModelPainter(pipeline), redness, [], tmp_path, PLAN)


def test_conversations_are_cut_before_their_picture() -> None:
    picture = Image.new("RGB", (4, 4))
    prompt = from_conversation("k", Conversation(messages=(user("draw fox"), assistant("Here: ", picture))))
    assert (prompt.answer, prompt.caption, prompt.words) == ("Here: ", "fox", "fox")
    assert prompt.request == Conversation(messages=(user("draw fox"), assistant("Here: ")))
    assert isinstance(prompt.target, Image.Image)
    asked = from_conversation("k", Conversation(messages=(user("could you paint  a fox"),)))
    assert (asked.answer, asked.caption, asked.words, asked.target) == ("", "", "could you paint a fox", None)
    with pytest.raises(ValueError, match="draws 2 pictures"):
        from_conversation("k", Conversation(messages=(user("a"), assistant(picture, picture))))
    with pytest.raises(ValueError, match="draws nothing, an earlier one does"):
        from_conversation("k", Conversation(messages=(user("a"), assistant(picture), user("b"), assistant("c"))))
