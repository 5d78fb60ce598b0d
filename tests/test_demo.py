"""The demo: one page with every picture inside, sections by what the model knows, verdicts that can say no."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image

from vargpt.cli import app
from vargpt.commands.common import BUNDLED, bundled_model
from vargpt.data.scenes.checker import read, score_edit
from vargpt.data.scenes.edits import make_edit
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.questions import ask
from vargpt.data.scenes.render import render, render_image
from vargpt.data.scenes.words import short_caption
from vargpt.data.scenes.world import Scene, Thing, split_of
from vargpt.demo.__main__ import main
from vargpt.demo.banner import MOST_BYTES, banner
from vargpt.demo.content import STAR, WHAT, Answer, Demo, Edited, Line, Look, Named, Plan, Row, Steps, Talk, Turn
from vargpt.demo.make import judge_answer, judge_caption, judge_picture, never_seen, row_of
from vargpt.demo.page import EMOJI_COMMANDS, SCENE_COMMANDS, TALK_COMMANDS, TRAIN_COMMANDS
from vargpt.demo.page import render as render_page
from vargpt.demo.style import growing_style
from vargpt.inference.habits import read_habits
from vargpt.inference.pictures import png_bytes

SCENE = Scene(
    (Thing("star", "blue", "small", "plain", 0.25, 0.5), Thing("ring", "red", "medium", "plain", 0.7, 0.5)), "sky"
)
PROMPT = "a small blue star left of a red ring"
WRONG = Scene((replace(SCENE.things[0], colour="green"), SCENE.things[1]), "sky")
SECTIONS = {
    "scenes": ["It draws scenes", "It answers questions", "It edits scenes"],
    "emoji": ["It draws emoji", "It names pictures", "It edits emoji"],
}


def picture(scene: Scene = SCENE) -> Image.Image:
    """A scene as a perfect model would draw it."""
    return render_image(scene, 128, 128)


def titles(page: str) -> list[str]:
    """Heads of the page's sections."""
    return re.findall(r"<h2>(.*?)</h2>", page)


def pictures_in(plan: Plan, domains: Mapping[str, int]) -> int:
    """How many pictures a page of this plan has."""
    count = 0
    if "scenes" in domains:
        count += len(plan.scene_prompts) * plan.scene_seeds + len(plan.looks) + 2 * len(plan.scene_edits)
        count += sum(line.kind != "ask" for line in plan.scene_talk)
    if "emoji" in domains:
        count += len(plan.emoji_prompts) * plan.emoji_seeds + (plan.names or 12) + 2 * len(plan.emoji_edits)
        count += sum(line.kind != "ask" for line in plan.emoji_talk)
    return count + 2 * sum(domains.values())


def check_page(page: str, plan: Plan, scales: Mapping[str, int]) -> None:
    """Everything of the domains with so many scales is there, and nothing is loaded from elsewhere."""
    domains = tuple(scales)
    expected = [title for domain in domains for title in SECTIONS[domain]]
    assert sorted(titles(page)) == sorted([*expected, "All in one conversation", "How it works", "Do it yourself"])
    assert len(re.findall(r'<img alt="[^"]*" src="data:image/png;base64,', page)) == pictures_in(plan, scales)
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script|<link', page)
    assert page.count("<svg") == 1


def test_the_bundled_model_makes_a_page_that_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundled_model()
    if folder is None:
        pytest.skip(f"the bundled model models/{BUNDLED} is not in this checkout")
    assert set(read_habits(folder).domains) == {"scenes", "emoji"}
    number = json.loads((folder / "config.json").read_text())["num_scales"]
    monkeypatch.delenv("VARGPT_MODEL", raising=False)
    picture_file = tmp_path / "banner.png"
    assert main(["--short", "--output", str(tmp_path / "out"), "--banner", str(picture_file)]) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    check_page(page, Plan().shortened(), {"scenes": number, "emoji": number})
    assert f"models/{BUNDLED}" in page and str(tmp_path) not in page
    assert f"@keyframes grow-{number}-{number - 1} " in page
    assert picture_file.stat().st_size < 400_000
    with Image.open(picture_file) as image, Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert image.width > 1000 and image.height > 250
        assert sheet.width > 200
    assert re.search(r"\d of \d+ .*; all in \d+ s\n\nopen .*index\.html\n", capsys.readouterr().out)


@pytest.mark.parametrize("domains", [("scenes", "emoji"), ("scenes",)], ids=" ".join)
def test_a_model_is_shown_at_what_it_knows(domains: tuple[str, ...], tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "generation_config.json").write_text(json.dumps({"domains": domains}))
    picture_file = tmp_path / "banner.png"
    call = ["--short", "--model", str(model), "--output", str(tmp_path / "out"), "--banner", str(picture_file)]
    assert main(call) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    check_page(page, Plan().shortened(), dict.fromkeys(domains, 3))
    assert ("Noto Emoji" in page) == ("emoji" in domains)
    assert 'class="miss"' in page and "not done" in page, "an untrained model got everything right"
    with Image.open(picture_file) as image:
        assert image.width > image.height > 250


def test_a_drawing_is_marked_fact_by_fact() -> None:
    row = row_of(PROMPT, [picture(), picture(WRONG)], judged=True)
    page = render_page(demo(scene_rows=[row]))
    assert page.count('class="hit"') == 13 and page.count('class="miss" title="blue"') == 1
    assert '<span class="ok">✓</span> 7 of 7' in page
    assert '<span class="no">✗</span> 6 of 7: not blue' in page
    assert demo(scene_rows=[row]).score_line == "13 of 14 facts of scenes drawn right"
    assert row_of(PROMPT, [picture()], judged=False).drawings[0].verdicts is None
    assert row_of("woman superhero", [picture()], judged=True).drawings[0].verdicts is None


def test_edits_are_judged() -> None:
    generator = random.Random(3)
    edit = make_edit(SCENE, generator, "recolour")
    assert edit is not None
    target, source = (render_image(scene, 128, 128) for scene in (edit.target, edit.source))
    good, bad = (Edited(source, edit.instruction, after, score=score_edit(after, edit)) for after in (target, source))
    both = demo(scene_edits=[good, bad])
    page = render_page(both)
    assert page.count("✓</span> done") == page.count("✗</span> not done") == 1
    assert page.count("all the rest kept") == 2
    assert both.score_line == "1 of 2 scene edits done, 2 of 2 scene edits that kept all the rest"
    lost = Edited(source, "x", source, score=score_edit(render_image(Scene((), "night"), 128, 128), edit))
    assert "✗</span> 0% of the rest kept" in render_page(demo(scene_edits=[lost]))


@pytest.mark.parametrize(
    "said, right, share",
    [
        (PROMPT, True, "7 of 7 facts true"),
        ("a small green star left of a red ring", False, "6 of 7 facts true"),
        ("two blue stars", False, "3 of 5 facts true"),
        ("a fox", False, "not understood by the checker"),
    ],
)
def test_captions_are_judged(said: str, right: bool, share: str) -> None:
    answer = judge_caption(said, SCENE)
    assert (answer.right, answer.share, answer.truth) == (right, share, PROMPT)


def test_answers_about_a_drawing_are_compared_with_what_the_checker_sees_in_it() -> None:
    ask_colour, ask_what = Line("ask", STAR, colour_of="star"), Line("ask", WHAT)
    seen = read(picture(WRONG))
    assert judge_answer("green", ask_colour, seen) == (True, "")
    assert judge_answer("blue", ask_colour, seen) == (False, "the checker sees green")
    assert judge_answer("green", ask_colour, read(picture(Scene((), "sky")))) == (
        None,
        "the checker sees no one star",
    )
    assert judge_answer("a small green star left of a red ring", ask_what, seen) == (True, "7 of 7 facts")
    assert judge_answer(PROMPT, ask_what, seen) == (False, "6 of 7 facts")
    assert judge_answer("superhero", ask_what, seen) == (False, "not understood by the checker")
    assert judge_picture(picture(), PROMPT) == (True, "7 of 7 facts")
    assert judge_picture(picture(WRONG), PROMPT) == (False, "6 of 7 facts")
    assert judge_picture(picture(), None) == (None, "")


@pytest.mark.parametrize(
    "prompt, unseen",
    [
        ("a red triangle above a green square", "red triangle"),
        ("a yellow star right of a blue circle", "yellow star right of something"),
        ("a blue circle left of a yellow star", "yellow star right of something"),
        ("a small blue star left of a red ring", ""),
        ("three pink diamonds", "pink diamond"),
    ],
)
def test_combinations_that_training_never_shows_are_named(prompt: str, unseen: str) -> None:
    facts = facts_of(prompt)
    assert facts is not None and never_seen(facts) == unseen


def test_the_plan_is_in_the_grammar_and_has_unseen_combinations() -> None:
    plan = Plan()
    facts = [facts_of(prompt) for prompt in plan.scene_prompts]
    assert all(facts) and sum(bool(never_seen(found)) for found in facts if found) == 2
    assert all(facts_of(line.shows) for line in plan.scene_talk if line.shows)
    assert len({line.words for line in plan.scene_talk if line.kind == "draw"}) == 1


def test_what_a_model_says_is_escaped() -> None:
    image = picture()
    evil = '<script>alert("x")</script>'
    answer = Answer(evil, evil, evil, False, evil)
    row = Row(evil, row_of(PROMPT, [picture(WRONG)], judged=True).drawings, evil)
    everything = demo(
        model=evil, heroes=[Steps(evil, [image], [(1, 1)], evil)], scene_rows=[row], emoji_rows=[row],
        looks=[Look(image, answer, [answer], True)], named=[Named(image, evil, evil, True)],
        emoji_edits=[Edited(image, evil, image, True, None, evil)],
        talks=[Talk("emoji", [Turn(evil, evil, image, False, evil), Turn("x", evil, None, True, evil)])],
    )  # fmt: skip
    page = render_page(everything)
    assert "<script" not in page and "alert(&quot;" in page


def test_what_a_model_says_before_it_draws_is_shown() -> None:
    image, draft = picture(), "on a sand background: a star at 5 4"
    shown = demo(
        heroes=[Steps(PROMPT, [image], [(1, 1)], draft)], scene_edits=[Edited(image, "move it", image, draft=draft)],
        talks=[Talk("scenes", [Turn("user", "draw it"), Turn("assistant", draft, image)])],
    )  # fmt: skip
    assert render_page(shown).count(f"says first: {draft}") == 3
    silent = demo(heroes=[Steps(PROMPT, [image], [(1, 1)])], scene_edits=[Edited(image, "move it", image)])
    assert "says first" not in render_page(silent)


@pytest.mark.parametrize("line", [*SCENE_COMMANDS, *EMOJI_COMMANDS, *TALK_COMMANDS, *TRAIN_COMMANDS[1:]])
def test_the_commands_on_the_page_are_right(line: str, repo_root: Path) -> None:
    program, verb, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    group.commands[verb].make_context(verb, arguments.copy())  # type: ignore[attr-defined]
    files = [word for word in arguments if word.startswith(("examples/", "recipes/"))]
    assert program == "vargpt" and all((repo_root / name).is_file() for name in files)


def test_a_banner_of_noise_is_small_enough_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    noises = [Image.fromarray(part) for part in pixels]
    noise = noises[0]
    rows = [Row(PROMPT, row_of(PROMPT, noises, judged=False).drawings)] * 2
    edits = [Edited(noise, "make it blue", noise)] * 2
    looks = [Look(noise, Answer(WHAT, "", "", False), [])] * 2
    noisy = demo(
        heroes=[Steps(PROMPT, noises, [(1, 1)] * 5)] * 2, scene_rows=rows, emoji_rows=rows, looks=looks,
        scene_edits=edits, emoji_edits=edits,
    )  # fmt: skip
    assert len(png_bytes(banner(noisy))) < MOST_BYTES == 400_000
    assert banner(noisy).mode == "P" and banner(demo(scene_rows=rows[:1])).mode == "RGB"


def test_documents_are_linked_where_they_are_near(repo_root: Path) -> None:
    links = re.findall(r'href="(?!data:)([^"]*)"', render_page(demo(), ".."))
    assert len(links) == 3 and all((repo_root / link.removeprefix("../")).is_file() for link in links)
    assert not re.search(r'href="(?!data:)', render_page(demo()))


def test_the_drawing_grows_scale_by_scale() -> None:
    style = growing_style(3)
    assert "@keyframes grow-3-1 { 0%, 20.00% { opacity: 0 } 27.00%, 100% { opacity: 1 } }" in style
    assert "animation: grow-3-2 4.5s" in style and "prefers-reduced-motion: no-preference" in style
    assert style.count("@keyframes lit-3-") == 3 and "grow-3-3" not in style


def test_sample_scenes_are_as_their_metadata_says(repo_root: Path) -> None:
    folder = repo_root / "examples"
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    scenes = [record for record in records if "scene" in record]
    assert len(scenes) == 4 and len(records) == 16
    for record in scenes:
        things = tuple(Thing(*thing) for thing in record["scene"]["things"])
        scene = Scene(things, record["scene"]["background"])
        with Image.open(folder / record["file_name"]) as image:
            assert np.array_equal(np.asarray(image), render(scene, 128, 128))
        assert (record["text"], record["part"]) == (short_caption(scene), split_of(scene))
        known = {(found.text, found.answer) for seed in range(400) if (found := ask(scene, random.Random(seed)))}
        assert {(question["text"], question["answer"]) for question in record["questions"]} <= known


def test_no_model_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no config.json" in error
    assert not (tmp_path / "out").exists()


def test_no_examples_is_one_line_and_status_2(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--model", str(tiny_model), "--examples", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metadata.jsonl" in error
    assert not (tmp_path / "out").exists()


def demo(**parts: object) -> Demo:
    """A demo with one picture and these parts."""
    basics = {"model": "m", "weights": 1, "threads": 1, "seconds": 1.0, "per_picture": 0.1}
    heroes = [Steps(PROMPT, [picture()], [(1, 1)])]
    return Demo(**{**basics, "heroes": heroes, **parts})  # type: ignore[arg-type]
