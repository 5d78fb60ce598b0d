"""What the demo shows: the plan of what is asked, and the results that the page, the banner and the sheet lay out.

Invariant: a plan is fixed before the model is seen. Results are what came, judged only where there is a judge: the
checker for scenes, the name for sample pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from vargpt.data.scenes.checker import EditScore
from vargpt.data.scenes.edits import EditKind
from vargpt.data.scenes.facts import Verdict
from vargpt.data.scenes.sampler import Kind
from vargpt.data.scenes.world import Split
from vargpt.inference.habits import Domain


@dataclass(frozen=True)
class Line:
    """One thing to do in a conversation.

    Attributes:
        kind: `draw`, `edit` or `ask`.
        shows: what the picture must show then, as a caption of the scenes grammar; None: there is no judge.
        colour_of: the shape whose colour is asked, as the checker sees it; None: the answer is a caption or unjudged.
    """

    kind: str
    words: str
    shows: str | None = None
    colour_of: str | None = None


WHAT = "what is this?"
STAR = "what color is the star?"


@dataclass(frozen=True)
class Plan:
    """What is asked of the model, in every section; sections of domains that it does not know stay empty."""

    domains: tuple[Domain, ...] = ("scenes", "emoji")
    scene_prompts: tuple[str, ...] = (
        "a small blue star left of a red ring",
        "a large striped orange circle on a night background",
        "four yellow stars",
        "a green square in front of a large purple circle",
        "two small red crosses and three small cyan diamonds",
        "a pink heart in the top right on a meadow background",
        "a red triangle above a green square",
        "a yellow star right of a blue circle",
    )
    scene_seeds: int = 5
    # People, whose names combine, come out best; two plain objects are shown so that the page does not flatter.
    emoji_prompts: tuple[str, ...] = (
        "woman superhero",
        "man pilot light skin tone",
        "judge dark skin tone",
        "princess medium skin tone",
        "hamburger",
        "rocket",
    )
    emoji_seeds: int = 5
    looks: tuple[tuple[Kind, Split], ...] = (
        ("two", "validation"),
        ("count", "validation"),
        ("overlap", "validation"),
        ("groups", "validation"),
        ("several", "validation"),
        ("two", "unseen"),
    )
    questions: int = 5
    scene_edits: tuple[tuple[EditKind, Split], ...] = (
        ("recolour", "validation"),
        ("remove", "validation"),
        ("add", "validation"),
        ("background", "validation"),
        ("move", "validation"),
        ("replace", "validation"),
        ("resize", "validation"),
        ("restyle", "validation"),
        ("recolour", "unseen"),
    )
    emoji_edits: tuple[tuple[str, str], ...] = (
        ("firefighter.png", "give it a dark skin tone"),
        ("man-guard.png", "give it a light skin tone"),
        ("mermaid.png", "make it a man"),
        ("woman-scientist.png", "give it a medium skin tone"),
        ("firefighter.png", "give it a light skin tone"),
        ("red-heart.png", "make it green"),
    )
    names: int | None = None
    scene_talk: tuple[Line, ...] = (
        Line("draw", "a small blue star left of a red ring", "a small blue star left of a red ring"),
        Line("ask", STAR, colour_of="star"),
        Line("edit", "make the blue star purple", "a small purple star left of a red ring"),
        Line("ask", STAR, colour_of="star"),
        Line("ask", WHAT),
    )
    emoji_talk: tuple[Line, ...] = (
        Line("draw", "woman superhero"),
        Line("ask", WHAT),
        Line("edit", "give it a dark skin tone"),
        Line("ask", WHAT),
    )

    def shortened(self) -> Plan:
        """The first of everything, for a look in a few seconds."""
        return replace(
            self,
            scene_prompts=self.scene_prompts[:1],
            scene_seeds=2,
            emoji_prompts=self.emoji_prompts[:1],
            emoji_seeds=2,
            looks=self.looks[:1],
            questions=3,
            scene_edits=self.scene_edits[:1],
            emoji_edits=self.emoji_edits[:1],
            names=3,
            scene_talk=self.scene_talk[:4],
            emoji_talk=self.emoji_talk[:2],
        )


@dataclass(frozen=True)
class Steps:
    """One picture as it came, scale by scale; the last one is the finished picture. `draft` is what was said first."""

    prompt: str
    pictures: Sequence[Image.Image]
    grids: Sequence[tuple[int, int]]
    draft: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture with the checker's verdict on every fact of its prompt; None where nobody can judge."""

    picture: Image.Image
    verdicts: tuple[Verdict, ...] | None = None


@dataclass(frozen=True)
class Row:
    """Pictures of one prompt with different seeds; `unseen`: what training never shows of it, in words."""

    prompt: str
    drawings: Sequence[Drawing]
    unseen: str = ""


@dataclass(frozen=True)
class Answer:
    """A question, what the model said and what is true; for a caption, how many of its facts are (`share`)."""

    question: str
    said: str
    truth: str
    right: bool
    share: str = ""


@dataclass(frozen=True)
class Look:
    """A fresh scene and what the model said of it."""

    picture: Image.Image
    caption: Answer
    answers: Sequence[Answer]
    unseen: bool = False


@dataclass(frozen=True)
class Named:
    """A sample picture, what the model calls it and what it is called."""

    picture: Image.Image
    said: str
    name: str
    held_out: bool

    @property
    def right(self) -> bool:
        """Whether it was named exactly."""
        return self.said == self.name


@dataclass(frozen=True)
class Edited:
    """A picture, what was asked for and what came; `score` where there is a judge."""

    before: Image.Image
    instruction: str
    after: Image.Image
    unseen: bool = False
    score: EditScore | None = None
    draft: str = ""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: words, a picture, or both; `right` and `note` where there is a judge."""

    role: str
    text: str
    picture: Image.Image | None = None
    right: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Talk:
    """A conversation."""

    domain: Domain
    turns: Sequence[Turn]


@dataclass(frozen=True)
class Score:
    """So many right of so many."""

    label: str
    right: int
    total: int


@dataclass(frozen=True)
class Demo:
    """Everything that is shown; empty sections are left out.

    Attributes:
        model: what the page says that it was made with.
        seconds: of the whole run, without loading.
        per_picture: seconds that one picture takes when drawn alone.
    """

    model: str
    weights: int
    threads: int
    seconds: float
    per_picture: float
    heroes: Sequence[Steps]
    scene_rows: Sequence[Row] = ()
    emoji_rows: Sequence[Row] = ()
    looks: Sequence[Look] = ()
    named: Sequence[Named] = ()
    scene_edits: Sequence[Edited] = ()
    emoji_edits: Sequence[Edited] = ()
    talks: Sequence[Talk] = ()

    @property
    def scores(self) -> list[Score]:
        """The judged results in numbers; what was not asked is left out."""
        verdicts = [verdict for row in self.scene_rows for item in row.drawings for verdict in item.verdicts or ()]
        edits = [edit.score for edit in self.scene_edits if edit.score is not None]
        scores = [
            _score("emoji named exactly", (item.right for item in self.named)),
            _score("facts of scenes drawn right", (verdict.holds for verdict in verdicts)),
            _score("questions answered right", (answer.right for look in self.looks for answer in look.answers)),
            _score("scenes captioned truly", (look.caption.right for look in self.looks)),
            _score("scene edits done", (score.asked for score in edits)),
            _score("scene edits that kept all the rest", (score.kept == 1 for score in edits)),
        ]
        return [score for score in scores if score.total]

    @property
    def score_line(self) -> str:
        """The same in one line."""
        return ", ".join(f"{score.right} of {score.total} {score.label}" for score in self.scores)


def _score(label: str, rights: Iterable[bool]) -> Score:
    verdicts = list(rights)
    return Score(label, sum(verdicts), len(verdicts))
