"""The demo's work: draw, read, edit and converse as a plan says, and judge what can be judged.

Invariant: every result is what the model made with the seed or scene named here, judged by the checker, which is part
of no model.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from vargpt.commands.common import open_picture
from vargpt.data.scenes.checker import Reading, read, score_edit
from vargpt.data.scenes.edits import EditKind, make_edit
from vargpt.data.scenes.facts import Facts, judge
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.questions import QUESTION_KINDS, ask
from vargpt.data.scenes.render import render_image
from vargpt.data.scenes.sampler import Kind, sample_scene
from vargpt.data.scenes.words import short_caption
from vargpt.data.scenes.world import HELD_OUT_PAIRS, HELD_OUT_RELATIONS, INVERSE, Scene, Split
from vargpt.demo.content import (
    WHAT,
    Answer,
    Demo,
    Drawing,
    Edited,
    Line,
    Look,
    Named,
    Plan,
    Row,
    Steps,
    Talk,
    Turn,
)
from vargpt.inference.dialogue import Dialogue, Drawn
from vargpt.inference.pipeline import VargptPipeline
from vargpt.processing.conversation import TextPart

LONGEST_ANSWER = 48
"""Tokens; the longest caption of a scene takes about 30."""

Say = Callable[[str], None]


def make(pipeline: VargptPipeline, plan: Plan, examples: Path, model: str, say: Say) -> Demo:
    """Do all that the plan asks of the domains that it names; progress goes to `say`.

    Raises:
        ValueError: if the examples folder is not as expected.
    """
    scenes, emoji = "scenes" in plan.domains, "emoji" in plan.domains
    records = [json.loads(line) for line in (examples / "metadata.jsonl").read_text().splitlines()] if emoji else []
    records = [record for record in records if "scene" not in record][: plan.names]
    rows: dict[str, list[Row]] = {"scenes": [], "emoji": []}
    asked = {"scenes": (plan.scene_prompts, plan.scene_seeds), "emoji": (plan.emoji_prompts, plan.emoji_seeds)}
    pipeline.draw("warm up")
    started = time.perf_counter()
    for domain in plan.domains:
        prompts, seeds = asked[domain]
        say(f"{domain}: drawing {len(prompts)} prompts with {seeds} seeds each")
        rows[domain] = draw_rows(pipeline, prompts, seeds, judged=domain == "scenes")
    say("drawing scale by scale")
    begun = time.perf_counter()
    heroes = [draw_steps(pipeline, asked[domain][0][0]) for domain in plan.domains]
    per_picture = (time.perf_counter() - begun) / len(heroes)
    looks, scene_edits, named, emoji_edits = [], [], [], []
    if scenes:
        say(f"scenes: {len(plan.looks)} fresh ones, {plan.questions} questions each")
        looks = [look_at(pipeline, kind, split, plan.questions) for kind, split in plan.looks]
        say(f"scenes: {len(plan.scene_edits)} edits")
        scene_edits = [edit_scene(pipeline, kind, split) for kind, split in plan.scene_edits]
    if emoji:
        say(f"emoji: naming {len(records)} pictures, {len(plan.emoji_edits)} edits")
        named = [name_picture(pipeline, examples, record) for record in records]
        parts = {record["file_name"]: record["part"] for record in records}
        emoji_edits = [
            edit_picture(pipeline, examples / name, instruction, parts.get(name) == "validation")
            for name, instruction in plan.emoji_edits
        ]
    say("holding a conversation")
    scripts = {"scenes": plan.scene_talk, "emoji": plan.emoji_talk}
    talks = [Talk(domain, converse(pipeline, scripts[domain])) for domain in plan.domains]
    return Demo(
        model=model,
        weights=pipeline.num_parameters,
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - started,
        per_picture=per_picture,
        heroes=heroes,
        scene_rows=rows["scenes"],
        emoji_rows=rows["emoji"],
        looks=looks,
        named=named,
        scene_edits=scene_edits,
        emoji_edits=emoji_edits,
        talks=talks,
    )


def draw_steps(pipeline: VargptPipeline, prompt: str) -> Steps:
    """Draw one picture, keeping what is known after every scale."""
    canvases, grids = [], []

    def keep(pipe: VargptPipeline, step: int, timestep: int, values: dict) -> None:
        canvases.append(values["canvas"])
        grids.append(values["grid"])

    drawn = pipeline.draw(prompt, seed=0, callback_on_step_end=keep)
    pictures = [*(pipeline.preview(canvas)[0] for canvas in canvases[:-1]), drawn.images[0]]
    return Steps(prompt, pictures, grids, "".join(drawn.drafts))


def draw_rows(pipeline: VargptPipeline, prompts: Sequence[str], seeds: int, judged: bool) -> list[Row]:
    """Draw every prompt with the seeds 0, 1, ..., in batches."""
    pictures = pipeline.draw(list(prompts), num_images_per_prompt=seeds, seed=0).images
    return [
        row_of(prompt, pictures[index * seeds : (index + 1) * seeds], judged) for index, prompt in enumerate(prompts)
    ]


def row_of(prompt: str, pictures: Sequence[Image.Image], judged: bool) -> Row:
    """Pictures of a prompt, each with the checker's verdicts where its words are of the scenes grammar."""
    facts = facts_of(prompt) if judged else None
    if facts is None:
        return Row(prompt, [Drawing(picture) for picture in pictures])
    return Row(prompt, [Drawing(picture, read(picture).judge(facts)) for picture in pictures], never_seen(facts))


def never_seen(facts: Facts) -> str:
    """The first combination among facts that training never shows, in words; empty where there is none."""
    looks = [(mention.colour, mention.shape) for mention in facts.mentions]
    for colour, shape in looks:
        if (colour, shape) in HELD_OUT_PAIRS:
            return f"{colour} {shape}"
    for first, relation, second in facts.relations:
        for index, told in ((first, relation), (second, INVERSE[relation])):
            if (*looks[index], told) in HELD_OUT_RELATIONS:
                return f"{' '.join(word for word in looks[index] if word)} {told} something"
    return ""


def tell(pipeline: VargptPipeline, picture: Image.Image, question: str) -> str:
    """The model's answer to a question about a picture."""
    words = pipeline.chat([{"role": "user", "content": [picture, question]}], max_new_tokens=LONGEST_ANSWER)
    return "".join(words).strip()


def render_for(pipeline: VargptPipeline, scene: Scene) -> Image.Image:
    """A scene at the model's size."""
    height, width = pipeline.model.config.schedule().image_size
    return render_image(scene, height, width)


def look_at(pipeline: VargptPipeline, kind: Kind, split: Split, questions: int) -> Look:
    """Caption a fresh scene and answer questions of different kinds about it."""
    generator = random.Random(f"demo look {kind} {split}")
    scene = sample_scene(generator, split, kind)
    picture = render_for(pipeline, scene)
    kinds = list(QUESTION_KINDS)
    generator.shuffle(kinds)
    answers = []
    for question in [found for found in (ask(scene, generator, name) for name in kinds) if found][:questions]:
        said = tell(pipeline, picture, question.text)
        answers.append(Answer(question.text, said, question.answer, said == question.answer))
    return Look(picture, judge_caption(tell(pipeline, picture, WHAT), scene), answers, split == "unseen")


def judge_caption(said: str, scene: Scene) -> Answer:
    """How much of a caption is true of a scene; words outside the grammar are wrong."""
    facts = facts_of(said)
    truth = short_caption(scene)
    if facts is None:
        return Answer(WHAT, said, truth, False, "not understood by the checker")
    holds = [verdict.holds for verdict in judge(facts, scene)]
    return Answer(WHAT, said, truth, all(holds), f"{sum(holds)} of {len(holds)} facts true")


def edit_scene(pipeline: VargptPipeline, kind: EditKind, split: Split) -> Edited:
    """Edit a fresh scene; an unseen one starts from a known scene and ends in a combination that training never has."""
    generator = random.Random(f"demo edit {kind} {split}")
    source: Split = "train" if split == "unseen" else split
    edit = None
    while edit is None:
        edit = make_edit(sample_scene(generator, source, generator.choice(("two", "several"))), generator, kind, split)
    before = render_for(pipeline, edit.source)
    drawn = pipeline.edit(before, edit.instruction, seed=0)
    after, draft = drawn.images[0], "".join(drawn.drafts)
    return Edited(before, edit.instruction, after, split == "unseen", score_edit(after, edit), draft)


def name_picture(pipeline: VargptPipeline, examples: Path, record: dict[str, str]) -> Named:
    """Ask what a sample picture shows."""
    picture = open_picture(examples / record["file_name"])
    return Named(picture, tell(pipeline, picture, WHAT), record["text"], record["part"] == "validation")


def edit_picture(pipeline: VargptPipeline, path: Path, instruction: str, held_out: bool) -> Edited:
    """Edit a sample picture."""
    picture = open_picture(path)
    return Edited(picture, instruction, pipeline.edit(picture, instruction, seed=0).images[0], held_out)


def converse(pipeline: VargptPipeline, script: Sequence[Line]) -> list[Turn]:
    """Hold one conversation; answers about a drawing are judged by what the checker sees in that drawing."""
    dialogue, turns = Dialogue(pipeline, seed=0, max_new_tokens=LONGEST_ANSWER), []
    judged = any(line.shows for line in script)
    for line in script:
        turns.append(Turn("user", f"draw {line.words}" if line.kind == "draw" else line.words))
        if line.kind == "ask":
            said = "".join(piece for piece in dialogue.say(line.words) if not isinstance(piece, Drawn)).strip()
            seen = read(dialogue.picture) if judged and dialogue.picture is not None else None
            turns.append(Turn("assistant", said, None, *(judge_answer(said, line, seen) if seen else (None, ""))))
            continue
        picture = (dialogue.draw(line.words) if line.kind == "draw" else dialogue.edit(line.words)).image
        said = "".join(part.text for part in dialogue.messages[-1].content if isinstance(part, TextPart))
        turns.append(Turn("assistant", said, picture, *judge_picture(picture, line.shows)))
    return turns


def judge_picture(picture: Image.Image, shows: str | None) -> tuple[bool | None, str]:
    """Whether a picture shows all that it should, and how much; None where there is nothing to judge by."""
    facts = facts_of(shows) if shows else None
    if facts is None:
        return None, ""
    verdicts = read(picture).judge(facts)
    held = sum(verdict.holds for verdict in verdicts)
    return held == len(verdicts), f"{held} of {len(verdicts)} facts"


def judge_answer(said: str, line: Line, reading: Reading) -> tuple[bool | None, str]:
    """Whether an answer is true of a picture as the checker reads it; None where it sees no one right answer."""
    if line.colour_of is None:
        caption = facts_of(said)
        if caption is None:
            return False, "not understood by the checker"
        holds = [verdict.holds for verdict in reading.judge(caption)]
        return all(holds), f"{sum(holds)} of {len(holds)} facts"
    colours = {thing.colour for thing in reading.scene.things if thing.shape == line.colour_of}
    if len(colours) != 1:
        return None, f"the checker sees no one {line.colour_of}"
    return said in colours, "" if said in colours else f"the checker sees {min(colours)}"
