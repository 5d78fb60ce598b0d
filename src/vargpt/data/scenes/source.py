"""Scenes as training examples: conversations that draw, caption, question and edit, without end.

Invariant: an example is a function of (seed, index, task, split, size) and of nothing else, so that training can be
resumed, repeated and shared out in any way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from vargpt.data.instructions import caption_conversation, drafted, draw_conversation, edit_conversation
from vargpt.data.scenes.drafts import DRAFT_QUESTION, draft
from vargpt.data.scenes.edits import Edit, make_edit
from vargpt.data.scenes.inventories import inventory
from vargpt.data.scenes.questions import QUESTION_KINDS, Question, QuestionKind, ask_several
from vargpt.data.scenes.render import render_image
from vargpt.data.scenes.sampler import Kind, sample_scene
from vargpt.data.scenes.words import long_caption, short_caption
from vargpt.data.scenes.world import Scene, Split
from vargpt.processing.conversation import Conversation, ImagePart, assistant, user

SceneTask = Literal["draw", "caption", "question", "edit"]
TASKS: tuple[SceneTask, ...] = get_args(SceneTask)


@dataclass(frozen=True)
class SceneExample:
    """One training example and what it was made from.

    Attributes:
        conversation: complete; the image to understand and the image to draw are PIL images.
        scene: what is in the image asked about, or what is to be drawn; for an edit, its source.
        prompt: the caption, question or instruction alone.
        question, edit: set for their tasks; the first question of several.
    """

    task: SceneTask
    conversation: Conversation
    scene: Scene
    prompt: str
    question: Question | None = None
    edit: Edit | None = None

    @property
    def target(self) -> Scene | None:
        """The scene to be drawn; None where the answer is words."""
        if self.task == "draw":
            return self.scene
        return self.edit.target if self.edit is not None else None


def scene_example(
    seed: int | str,
    index: int,
    task: SceneTask,
    *,
    height: int = 64,
    width: int = 64,
    split: Split = "train",
    kind: Kind | None = None,
    variety: float = 0.3,
    long_captions: float = 0.0,
    questions: int = 1,
    question_kinds: Sequence[QuestionKind] = QUESTION_KINDS,
    drafts: float = 0.0,
    inventories: float = 0.0,
) -> SceneExample:
    """Make one example.

    Args:
        kind: of the scene (of the source, for an edit); by chance where None.
        variety: chance of another wording than the canonical one, of the caption and of the request each.
        long_captions: chance of a caption of full sentences in `draw` and `caption`.
        questions: how many a conversation of `question` asks, each at most once; fewer where chance finds fewer.
        question_kinds: what they are about; a scene that allows none of them is asked about something else.
        drafts: chance that `draw` and `edit` say what they will show first, that `caption` says it of its picture, and
            that `question` is asked after its picture was described so (`vargpt.data.scenes.drafts`).
        inventories: chance that `caption` says of every shape what it is like (`vargpt.data.scenes.inventories`).

    Raises:
        ValueError: for an unknown task, split or kind.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}, expected one of {', '.join(TASKS)}")
    generator = random.Random(f"scene example {seed} {index} {task} {split}")
    aspect = width / height
    if task == "edit":
        return _edit_example(generator, height, width, split, kind, variety, drafts)
    scene = sample_scene(generator, split, kind, aspect)
    image = render_image(scene, height, width)
    if task == "question":
        asked = ask_several(scene, generator, questions, question_kinds)
        conversation = question_conversation(image, *asked)
        if generator.random() < drafts:
            conversation = noted(conversation, draft(scene))
        return SceneExample("question", conversation, scene, asked[0].text, question=asked[0])
    worded = generator if generator.random() < variety else None
    caption = (long_caption if generator.random() < long_captions else short_caption)(scene, worded)
    if task == "draw":
        conversation = draw_conversation(caption, image, generator, variety)
        if generator.random() < drafts:
            conversation = drafted(conversation, draft(scene, caption))
    elif inventories and generator.random() < inventories:  # without any, captions stay what they were
        asked_for, caption = inventory(scene, generator)
        conversation = Conversation(messages=(user(ImagePart(image=image), asked_for), assistant(caption)))
    elif generator.random() < drafts:
        caption = draft(scene)
        conversation = Conversation(messages=(user(ImagePart(image=image), DRAFT_QUESTION), assistant(caption)))
    else:
        conversation = caption_conversation(image, caption, generator, variety)
    return SceneExample(task, conversation, scene, caption)


def question_conversation(image: Image.Image, question: Question, *more: Question) -> Conversation:
    """Questions about an image, one after the other, answered."""
    messages = [user(ImagePart(image=image), question.text), assistant(question.answer)]
    for other in more:
        messages += [user(other.text), assistant(other.answer)]
    return Conversation(messages=tuple(messages))


def noted(conversation: Conversation, notes: str) -> Conversation:
    """A conversation about one picture, which now begins with what is where in it."""
    (picture, *words), *rest = conversation.messages[0].content, *conversation.messages[1:]
    opening = (user(picture, DRAFT_QUESTION), assistant(notes), user(*words))
    return Conversation(messages=(*opening, *rest))


def _edit_example(
    generator: random.Random,
    height: int,
    width: int,
    split: Split,
    kind: Kind | None,
    variety: float,
    drafts: float,
) -> SceneExample:
    """An edit; in the unseen split the target shows a held-out combination and the source is any training scene."""
    source_split: Split = "train" if split == "unseen" else split
    while True:
        edit = make_edit(sample_scene(generator, source_split, kind, width / height), generator, split=split)
        if edit is not None:
            break
    source, target = (render_image(scene, height, width) for scene in (edit.source, edit.target))
    conversation = edit_conversation(source, target, edit.instruction, generator, variety)
    if generator.random() < drafts:
        conversation = drafted(conversation, draft(edit.target))
    return SceneExample("edit", conversation, edit.source, edit.instruction, edit=edit)
