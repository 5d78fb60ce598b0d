"""The demo's page: one HTML file with all pictures inside it, and nothing loaded from elsewhere.

Invariant: whatever a model says is escaped; the file opens offline.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from vargpt.inference.pictures import png_bytes

STYLE = """
:root { --ink: #1d1d22; --soft: #6b6b76; --line: #e6e6ec; --paper: #fbfbfd; --card: #fff; --accent: #3a5bd9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf1; --soft: #9a9aa6; --line: #2c2c35; --paper: #141418; --card: #1d1d23; --accent: #8ea4ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 40px; letter-spacing: -0.02em; margin: 0 0 4px; }
h2 { font-size: 22px; letter-spacing: -0.01em; margin: 56px 0 4px; }
p { margin: 4px 0 16px; color: var(--soft); max-width: 46em; }
.lead { font-size: 19px; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0 0; padding: 0; list-style: none; }
.facts li { border: 1px solid var(--line); background: var(--card); border-radius: 999px; padding: 4px 12px;
  font-size: 14px; color: var(--soft); }
.grid { display: grid; gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px; }
.name { font-weight: 600; margin: 0 0 10px; color: var(--ink); }
.strip { display: flex; gap: 10px; align-items: center; flex-wrap: wrap; }
.strip figure { flex: 0 0 104px; }
.strip .arrow { color: var(--soft); font-size: 20px; }
figure { margin: 0; text-align: center; }
figure img { width: 100%; max-width: 112px; aspect-ratio: auto; border-radius: 10px; background: #fff;
  border: 1px solid var(--line); display: block; margin: 0 auto; }
figcaption { font-size: 12.5px; color: var(--soft); margin-top: 5px; line-height: 1.35; overflow-wrap: anywhere; }
.ok { color: #1f9d55; font-weight: 600; } .no { color: #c9574a; font-weight: 600; }
.said { color: var(--ink); font-weight: 600; display: block; }
.tag { display: inline-block; font-size: 11px; color: var(--accent); border: 1px solid currentColor;
  border-radius: 999px; padding: 0 7px; }
.talk { display: flex; flex-direction: column; gap: 10px; max-width: 640px; }
.turn { border-radius: 16px; padding: 10px 14px; width: fit-content; max-width: 85%; border: 1px solid var(--line); }
.turn.user { align-self: flex-end; background: var(--accent); color: var(--paper); border-color: transparent; }
.turn.assistant { background: var(--card); }
.turn img { display: block; width: 128px; border-radius: 10px; background: #fff; }
.turn p { margin: 0; color: inherit; }
code { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 1px 6px; font-size: 14px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; overflow-x: auto;
  font-size: 14px; }
footer { margin-top: 64px; color: var(--soft); font-size: 14px; }
"""


@dataclass(frozen=True)
class Steps:
    """One picture as it came, scale by scale; the last one is the finished picture."""

    prompt: str
    pictures: Sequence[Image.Image]
    grids: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Row:
    """Pictures of one prompt with different seeds."""

    prompt: str
    pictures: Sequence[Image.Image]


@dataclass(frozen=True)
class Caption:
    """A real picture, what the model calls it and what it is called."""

    picture: Image.Image
    said: str
    name: str
    held_out: bool


@dataclass(frozen=True)
class Edit:
    """A picture, what was asked for and what came."""

    before: Image.Image
    instruction: str
    after: Image.Image
    held_out: bool


@dataclass(frozen=True)
class Turn:
    """One turn of the conversation: words, a picture, or both."""

    role: str
    text: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Demo:
    """Everything on the page."""

    model: str
    parameters: int
    seconds: float
    per_picture: float
    steps: Sequence[Steps]
    rows: Sequence[Row]
    captions: Sequence[Caption]
    edits: Sequence[Edit]
    turns: Sequence[Turn]
    commands: Sequence[str]


def render(demo: Demo) -> str:
    """The whole page as HTML text."""
    height, width = demo.steps[0].pictures[-1].size[::-1]
    facts = (
        f"{demo.parameters / 1e6:.1f}M parameters",
        f"{width}x{height} pixels",
        f"{len(demo.steps[0].grids)} scales",
        f"{demo.per_picture:.2f} s per picture on this machine's CPU",
        f"this page in {demo.seconds:.0f} s",
    )
    body = [
        "<header><h1>vargpt</h1>",
        '<p class="lead">One model that reads, draws and edits pictures. It predicts words one by one, and pictures '
        "scale by scale: a coarse guess first, then finer and finer ones on top.</p>",
        '<ul class="facts">' + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul></header>",
        _section(
            "Drawn scale by scale",
            "Each step predicts all tokens of one grid at once. The pictures between are what is known so far.",
            _grid(250, (_steps(item) for item in demo.steps)),
        ),
        _section(
            "The same words, other dice",
            "Every picture has its own seed, and comes out the same whatever else is drawn beside it.",
            _grid(440, (_row(item) for item in demo.rows)),
        ),
        _section(
            "It tells what it sees",
            "Asked “what is this?” about real files. Tagged ones were kept out of training.",
            _grid(140, (_caption(item) for item in demo.captions)),
        ),
        _section(
            "It changes what it sees",
            "The picture goes in, the instruction goes in, a new picture comes out. No mask, no second model.",
            _grid(270, (_edit(item) for item in demo.edits)),
        ),
        _section(
            "And it does so in conversation",
            "One model, one talk: it draws, is asked about its own picture, and changes it.",
            '<div class="talk">' + "".join(_turn(turn) for turn in demo.turns) + "</div>",
        ),
        _section(
            "Do it yourself",
            "The same from the command line:",
            f"<pre>{escape(chr(10).join(demo.commands))}</pre>",
        ),
        f"<footer>Made by <code>make demo</code> with {escape(demo.model)}. Sample pictures and training data: "
        "Noto Emoji, © Google, Apache License 2.0.</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>vargpt: reads, draws, edits</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{content}</section>"


def _grid(least: int, cards: Iterable[str]) -> str:
    columns = f"repeat(auto-fill, minmax(min({least}px, 100%), 1fr))"
    return f'<div class="grid" style="grid-template-columns: {columns}">{"".join(cards)}</div>'


def _image(picture: Image.Image, text: str) -> str:
    data = base64.b64encode(png_bytes(picture)).decode("ascii")
    return f'<img alt="{escape(text, quote=True)}" src="data:image/png;base64,{data}">'


def _figure(picture: Image.Image, text: str, caption: str = "") -> str:
    return f"<figure>{_image(picture, text)}<figcaption>{caption}</figcaption></figure>"


def _columns(figures: Sequence[str]) -> str:
    style = f"grid-template-columns: repeat({len(figures)}, 1fr); gap: 8px"
    return f'<div class="grid" style="{style}">{"".join(figures)}</div>'


def _steps(item: Steps) -> str:
    figures = [
        _figure(picture, f"{item.prompt}, scale {index + 1}", f"{grid[1]}×{grid[0]}")
        for index, (picture, grid) in enumerate(zip(item.pictures, item.grids, strict=True))
    ]
    return f'<div class="card"><p class="name">{escape(item.prompt)}</p>{_columns(figures)}</div>'


def _row(item: Row) -> str:
    figures = [_figure(picture, item.prompt) for picture in item.pictures]
    return f'<div class="card"><p class="name">{escape(item.prompt)}</p>{_columns(figures)}</div>'


def _caption(item: Caption) -> str:
    right = item.said.strip() == item.name
    verdict = '<span class="ok">✓</span>' if right else f'<span class="no">✗</span> {escape(item.name)}'
    tag = ' <span class="tag">held out</span>' if item.held_out else ""
    text = f'<span class="said">“{escape(item.said.strip())}”</span>{verdict}{tag}'
    return f'<div class="card">{_figure(item.picture, item.name, text)}</div>'


def _edit(item: Edit) -> str:
    tag = ' <span class="tag">held out</span>' if item.held_out else ""
    pair = _figure(item.before, "before") + '<span class="arrow">→</span>' + _figure(item.after, "after")
    return f'<div class="card"><p class="name">{escape(item.instruction)}{tag}</p><div class="strip">{pair}</div></div>'


def _turn(turn: Turn) -> str:
    picture = _image(turn.picture, turn.text or "picture") if turn.picture is not None else ""
    text = f"<p>{escape(turn.text)}</p>" if turn.text else ""
    return f'<div class="turn {escape(turn.role, quote=True)}">{text}{picture}</div>'
