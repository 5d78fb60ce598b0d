"""The page of a folder of pairs: its numbers, and chosen beside rejected pictures.

Invariant: one self-contained file; the pictures shown are an even spread over the folder.
"""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

from PIL import Image

from vargpt.data.pairs import DrawnImage, Pair, PairFolder
from vargpt.preferences.prompts import spoken
from vargpt.processing.conversation import ImagePart
from vargpt.processing.images import open_image

_SHOWN = 60
_SIDE = 128
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .25em .9em .25em 0; text-align: left; }
th { font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: flex; flex-wrap: wrap; gap: 24px; margin: 1.2em 0; } figure { margin: 0; }
figcaption { font-size: 12px; color: #666; } svg { display: block; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.pair { border: 1px solid #e3e3e3; border-radius: 8px; padding: 10px; }
.pair p { margin: 0 0 6px; font-size: 13px; overflow-wrap: anywhere; } .sides { display: flex; gap: 10px; }
.side { font-size: 12px; color: #666; width: 104px; } .side b { display: block; white-space: nowrap; }
.side img { width: 96px; height: auto; border-radius: 5px; border: 1px solid #eee; display: block; }
.better b { color: #1f8a4c; } .worse b { color: #b3402f; } pre { font-size: 12px; white-space: pre-wrap; color: #666; }
"""


def page_html(folder: PairFolder, report: dict[str, Any]) -> str:
    """The page as text."""
    shown = [folder[index] for index in spread(len(folder), _SHOWN)]
    cards = "\n".join(_card(pair) for pair in shown)
    facts = [
        ("prompts", report["prompts"]), ("pairs", report["pairs"]), ("yield", f"{100 * report['yield']:.1f}%"),
        ("ties", report["ties"]), ("below the margin", report["below_margin"]), ("broken", report["broken"]),
        ("pictures sampled", report["pictures"]), ("image tokens", report["image_tokens"]),
    ]  # fmt: skip
    rows = "".join(f"<tr><th>{name}</th><td class=n>{html.escape(str(value))}</td></tr>" for name, value in facts)
    charts = "".join(_chart(name, values) for name, values in report["scores"].items())
    broken = "".join(
        f"<li>{html.escape(item['key'])}: {html.escape(item['reason'])}</li>" for item in report["broken_prompts"]
    )
    settings = html.escape(json.dumps(report["settings"], indent=1, ensure_ascii=False))
    note = f"{len(shown)} of {len(folder)} pairs" if len(shown) < len(folder) else f"All {len(folder)} pairs"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Preference pairs</title><style>{_STYLE}</style>"
        f"<h1>Preference pairs</h1><table>{rows}</table><div class=charts>{charts}</div>"
        f"<h2>{note}</h2><div class=pairs>{cards}</div>"
        + (f"<h2>Broken prompts</h2><ul>{broken}</ul>" if broken else "")
        + f"<h2>Settings</h2><pre>{settings}</pre></html>\n"
    )


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the first `count` numbers, evenly spread."""
    if count <= limit:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def _card(pair: Pair) -> str:
    sources = "".join(
        f"<div class=side><b>source</b>{_img(open_image(part.image), 'source')}</div>"
        for part in pair.prompt.messages[-1].content
        if isinstance(part, ImagePart) and isinstance(part.image, bytes)
    )
    words = html.escape(spoken(pair.prompt) or pair.key)
    return (
        f"<div class=pair><p title='{html.escape(pair.key, quote=True)}'>{words}</p><div class=sides>{sources}"
        f"{_side('chosen', 'better', pair.chosen)}{_side('rejected', 'worse', pair.rejected)}</div></div>"
    )


def _side(title: str, kind: str, drawn: DrawnImage) -> str:
    score = "" if drawn.score is None else f" {drawn.score:.3f}"
    made = "given" if drawn.seed is None else f"seed {drawn.seed}"
    return f"<div class='side {kind}' title='{made}'><b>{title}{score}</b>{_img(drawn.image(), title)}</div>"


def _img(image: Image.Image, title: str) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return f"<img alt={title} src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _chart(name: str, values: dict[str, Any]) -> str:
    """A histogram as bars."""
    counts, width, height = values["histogram"], 200, 60
    step, top = width / len(counts), max(counts)
    bars = "".join(
        f"<rect x={index * step:.1f} y={height - height * count / top:.1f} width={max(step - 1, 1):.1f} "
        f"height={height * count / top:.1f} fill='#4a78b5'/>"
        for index, count in enumerate(counts)
    )
    return (
        f"<figure><svg width={width} height={height + 1}>{bars}<rect y={height} width={width} height=1 fill='#999'/>"
        f"</svg><figcaption>{name} scores: {values['min']:.3f} to {values['max']:.3f}, mean {values['mean']:.3f}, "
        f"n = {values['count']}</figcaption></figure>"
    )
