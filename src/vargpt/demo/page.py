"""The demo's page: one HTML file with all pictures inside it, and nothing loaded from elsewhere.

Invariant: whatever a model says is escaped; the file opens offline; a section without content is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TypeVar

from PIL import Image

from vargpt.commands.common import SMALL_MODEL
from vargpt.data.scenes.facts import Verdict
from vargpt.demo.content import WHAT, Answer, Demo, Drawing, Edited, Look, Named, Row, Score, Steps, Talk, Turn
from vargpt.demo.diagram import pyramid
from vargpt.demo.style import STYLE, growing_style
from vargpt.inference.pictures import png_bytes

SCENE_COMMANDS = (
    'vargpt draw "a small blue star left of a red ring" -o star.png',
    'vargpt chat examples/scene-stars.png "how many stars are there?"',
    'vargpt edit examples/scene-star-ring.png "make the star purple" -o purple.png',
)
EMOJI_COMMANDS = (
    'vargpt draw "woman superhero" -o hero.png -n 4 --previews steps/',
    'vargpt chat examples/fox.png "what is this?"',
    'vargpt edit examples/firefighter.png "give it a dark skin tone" -o edited.png',
)
TALK_COMMANDS = ("vargpt chat                 # a conversation: /draw, /image and /edit work in it",)
TRAIN_COMMANDS = (
    '# pictures/ holds image files and metadata.jsonl: {"file_name": "fox.png", "text": "fox"} per line',
    "vargpt train recipes/emoji-small.yaml --data pictures/ --out runs/mine",
    'vargpt draw "fox" --model runs/mine/model -o fox.png',
)
DOCUMENTS = ("docs/architecture.md", "docs/training.md", "docs/scenes.md")
MOST_NAMED = 3
"""Facts that fail are named up to so many; their dots tell of all."""

_Item = TypeVar("_Item")


def render(demo: Demo, documents: str | None = None) -> str:
    """The whole page as HTML text; `documents` is where the project's folder lies from it, for links."""
    seeds = len(demo.scene_rows[0].drawings) if demo.scene_rows else 0
    plain_edit = "Picture in, instruction in, new picture out: no mask, no second model."
    body = [
        _header(demo),
        _section(
            "It draws emoji",
            "The same words with other seeds. A picture depends on its own seed alone, whatever is drawn beside it.",
            _grid(440, _row, demo.emoji_rows),
        ),
        _section(
            "It names pictures",
            f"Real files, and the question “{WHAT}” Tagged ones were kept out of training.",
            _grid(150, _named, demo.named, share=28),
        ),
        _section("It edits emoji", plain_edit, _grid(300, _edit, demo.emoji_edits)),
        _section(
            "It draws scenes",
            "A checker that knows nothing of the model reads every picture back from its pixels and compares it with "
            "each fact that the words assert. One dot is one fact: a round one holds, a hollow diamond does not. "
            f"Shown is what came, seeds 0 to {seeds - 1}.",
            _grid(440, _row, demo.scene_rows),
        ),
        _section(
            "It answers questions",
            "About fresh scenes that it never met. Ticks compare with what the scene really is.",
            _grid(440, _look, demo.looks),
        ),
        _section(
            "It edits scenes",
            f"{plain_edit} The checker says whether the change is there, and how much of the rest stayed as it was.",
            _grid(300, _edit, demo.scene_edits),
        ),
        _section(
            "All in one conversation",
            "It draws, is asked about its own drawing, changes it, and is asked again.",
            _grid(400, _talk, demo.talks),
        ),
        _how(demo),
        _section("Do it yourself", "In the project's folder, after “source .venv/bin/activate”:", _commands(demo)),
        _footer(demo, documents),
    ]
    growing = "\n".join(map(growing_style, sorted({len(hero.grids) for hero in demo.heroes})))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>vargpt: draws, reads, edits</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{growing}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _footer(demo: Demo, documents: str | None) -> str:
    names = [f"<code>{name}</code>" for name in DOCUMENTS]
    if documents is not None:
        names = [f'<a href="{documents}/{name}">{code}</a>' for name, code in zip(DOCUMENTS, names, strict=True)]
    credit = "Emoji: Noto Emoji, © Google, Apache License 2.0. " if demo.named else ""
    return (
        f"<footer>Made by <code>make demo</code> with {escape(demo.model)}: one run, fixed seeds, nothing picked by "
        f"hand. {credit}More in {', '.join(names)}.</footer>"
    )


def _header(demo: Demo) -> str:
    sizes = dict.fromkeys("×".join(map(str, hero.pictures[-1].size)) for hero in demo.heroes)
    scales = dict.fromkeys(str(len(hero.grids)) for hero in demo.heroes)
    chips = (
        f"{demo.weights / 1e6:.1f} million weights",
        f"{' and '.join(sizes)} pixels",
        f"{' and '.join(scales)} scales",
        f"{demo.per_picture:.2f} s per picture on {demo.threads} CPU thread{'s' if demo.threads > 1 else ''}",
        f"this page in {demo.seconds:.0f} s",
    )
    tiles = "".join(map(_tile, demo.scores))
    title = f"One {'small ' if demo.weights < SMALL_MODEL else ''}model that draws, reads and edits pictures"
    return (
        f'<header><p class="brand">vargpt</p><h1>{title}</h1>'
        '<p class="lead">Words come token by token, pictures scale by scale: a coarse guess first, then finer and '
        "finer ones on top, until the picture stands.</p>"
        f'<div class="heroes grid">{"".join(map(_hero, demo.heroes))}</div>'
        f'<ul class="chips">{"".join(f"<li>{escape(chip)}</li>" for chip in chips)}</ul>'
        f'{f"""<ul class="tiles">{tiles}</ul>""" if tiles else ""}</header>'
    )


def _tile(score: Score) -> str:
    share = 100 * score.right / score.total
    return (
        f"<li><b>{score.right}<small> / {score.total}</small></b>"
        f'<span class="bar"><span style="width: {share:.0f}%"></span></span>{escape(score.label)}</li>'
    )


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{content}</section>" if content else ""


def _grid(least: int, card: Callable[[_Item], str], items: Iterable[_Item], share: int = 100) -> str:
    """Cards at least so many pixels wide, or that share (percent) of a narrow screen."""
    cards = "".join(card(item) for item in items)
    columns = f"repeat(auto-fit, minmax(min({least}px, {share}%), 1fr))"
    return f'<div class="grid" style="grid-template-columns: {columns}">{cards}</div>' if cards else ""


def _image(picture: Image.Image, text: str) -> str:
    data = base64.b64encode(png_bytes(picture)).decode("ascii")
    return f'<img alt="{escape(text, quote=True)}" src="data:image/png;base64,{data}">'


def _figure(picture: Image.Image, text: str, caption: str = "") -> str:
    return f"<figure>{_image(picture, text)}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def _side_by_side(figures: Sequence[str], name: str = "strip") -> str:
    return f'<div class="{name}" style="grid-template-columns: repeat({len(figures)}, 1fr)">{"".join(figures)}</div>'


def _mark(right: bool) -> str:
    return f'<span class="{"ok" if right else "no"}">{"✓" if right else "✗"}</span>'


def _tag(text: str) -> str:
    return f' <span class="tag">{escape(text)}</span>'


def _hero(item: Steps) -> str:
    growing = "".join(_image(picture, f"{item.prompt}, growing") for picture in item.pictures)
    strip = [
        _figure(picture, f"{item.prompt}, scale {index + 1}", f"{grid[1]}×{grid[0]}")
        for index, (picture, grid) in enumerate(zip(item.pictures, item.grids, strict=True))
    ]
    return (
        f'<div class="card hero scales-{len(item.grids)}"><p class="prompt">“{escape(item.prompt)}”</p>'
        f'{_draft(item.draft)}<div class="growing">{growing}</div>{_side_by_side(strip)}</div>'
    )


def _draft(words: str) -> str:
    """What the model said before it drew."""
    return f'<p class="draft">says first: {escape(words)}</p>' if words else ""


def _row(item: Row) -> str:
    tag = _tag(f"never in training: {item.unseen}") if item.unseen else ""
    figures = [_drawing(drawing, item.prompt) for drawing in item.drawings]
    return f'<div class="card"><p class="prompt">“{escape(item.prompt)}”{tag}</p>{_side_by_side(figures)}</div>'


def _drawing(item: Drawing, prompt: str) -> str:
    if item.verdicts is None:
        return _figure(item.picture, prompt)
    dots = "".join(
        f'<i class="{"hit" if verdict.holds else "miss"}" title="{escape(in_words(verdict), quote=True)}"></i>'
        for verdict in item.verdicts
    )
    missing = list(dict.fromkeys(in_words(verdict) for verdict in item.verdicts if not verdict.holds))
    told = ", ".join(missing[:MOST_NAMED]) + (" …" if len(missing) > MOST_NAMED else "")
    count = f"{sum(verdict.holds for verdict in item.verdicts)} of {len(item.verdicts)}"
    text = f"{_mark(not missing)} {count}" + (f": not {escape(told)}" if missing else "")
    return (
        f'<figure>{_image(item.picture, prompt)}<div class="facts">{dots}</div><figcaption>{text}</figcaption></figure>'
    )


def in_words(verdict: Verdict) -> str:
    """What a fact says, in a word or two."""
    if verdict.kind == "total":
        return f"{verdict.said} thing{'' if verdict.said == '1' else 's'} in all"
    if verdict.kind == "place":
        return f"place {verdict.said}"
    return f"{verdict.said} background" if verdict.kind == "background" else verdict.said


def _look(item: Look) -> str:
    caption = item.caption
    lines = [
        f'<li><span class="cap">{_mark(caption.right)} “{escape(caption.said)}”</span>'
        f'<span class="truth">{escape(caption.share)}</span></li>',
        *map(_answer, item.answers),
    ]
    tag = _tag("never in training") if item.unseen else ""
    return (
        f'<div class="card look">{_figure(item.picture, caption.truth, tag)}'
        f'<ul class="answers">{"".join(lines)}</ul></div>'
    )


def _answer(item: Answer) -> str:
    truth = "" if item.right else f'<span class="truth">it is {escape(item.truth)}</span>'
    return (
        f'<li><span class="q">{escape(item.question)}</span>'
        f'<span class="a">{escape(item.said)} {_mark(item.right)}</span>{truth}</li>'
    )


def _named(item: Named) -> str:
    truth = _mark(True) if item.right else f"{_mark(False)} {escape(item.name)}"
    tag = _tag("held out") if item.held_out else ""
    text = f'<span class="said">{escape(item.said)}</span>{truth}{tag}'
    return f'<div class="card named">{_figure(item.picture, item.name, text)}</div>'


def _edit(item: Edited) -> str:
    unseen = "never in training" if item.score is not None else "held out"
    tag = _tag(unseen) if item.unseen else ""
    pair = (
        f'<div class="edit">{_figure(item.before, "before")}<span class="arrow">→</span>'
        f"{_figure(item.after, f'after: {item.instruction}')}</div>"
    )
    verdict = ""
    if item.score is not None:
        done, kept = item.score.asked, item.score.kept
        rest = "all the rest kept" if kept == 1 else f"{100 * kept:.0f}% of the rest kept"
        verdict = (
            f'<p class="verdict">{_mark(done)} {"done" if done else "not done"} &nbsp; {_mark(kept == 1)} {rest}</p>'
        )
    asked = f'<p class="prompt">“{escape(item.instruction)}”{tag}</p>{_draft(item.draft)}'
    return f'<div class="card">{asked}{pair}{verdict}</div>'


def _talk(item: Talk) -> str:
    return f'<div class="card talk">{"".join(map(_turn, item.turns))}</div>'


def _turn(turn: Turn) -> str:
    picture = _image(turn.picture, turn.text or "picture") if turn.picture is not None else ""
    mark = f" {_mark(turn.right)}" if turn.right is not None else ""
    note = escape(turn.note)
    if picture:
        below = f'<p class="verdict">{mark} {note}</p>' if mark else ""
        said = _draft(turn.text)
        return f'<div class="turn {escape(turn.role, quote=True)} picture">{said}{picture}{below}</div>'
    below = f'<p class="verdict">{note}</p>' if note else ""
    return f'<div class="turn {escape(turn.role, quote=True)}"><p>{escape(turn.text)}{mark}</p>{below}</div>'


def _how(demo: Demo) -> str:
    hero = demo.heroes[0]
    tokens = sum(rows * columns for rows, columns in hero.grids)
    steps = (
        "<b>One sequence.</b> Words are tokens; a picture that it looks at becomes tokens too. A language model reads "
        "them in order and says what comes next: a word, or “here begins a picture”.",
        f"<b>Next scale, not next pixel.</b> A picture takes {len(hero.grids)} steps. Each predicts a whole grid of "
        f"tokens at once, every token a few bits, and adds it to what is known: {tokens} tokens in all.",
        "<b>Bits to pixels.</b> A decoder turns the sum into the picture. It can be read again at once, which is why "
        "the model can answer about its own drawing and change it.",
    )
    cards = "".join(f'<div class="card"><p>{text}</p></div>' for text in steps)
    diagram = f'<div class="card pyramid">{pyramid(hero.pictures[-1], hero.grids)}</div>'
    return f'<section><h2>How it works</h2><p></p><div class="grid how">{cards}</div>{diagram}</section>'


def _commands(demo: Demo) -> str:
    lines = [
        *(EMOJI_COMMANDS if demo.emoji_rows else ()),
        *(SCENE_COMMANDS if demo.scene_rows else ()),
        *TALK_COMMANDS,
    ]
    return "<h3>Use it</h3>" + _code(lines) + "<h3>Train your own</h3>" + _code(TRAIN_COMMANDS)


def _code(lines: Sequence[str]) -> str:
    return f'<div class="card" style="padding: 0"><pre>{escape(chr(10).join(lines), quote=False)}</pre></div>'
