"""`vargpt chat`: one question about a picture, or a conversation that sees, draws and edits pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vargpt.commands.common import ScaleProgress, find_model, load_pipeline, open_picture, require_words

if TYPE_CHECKING:
    from vargpt.inference.dialogue import Dialogue, Drawn

HELP = """\
  text                 say something about the current picture
  /image FILE          look at a picture
  /draw WORDS          draw one; it becomes the current picture
  /edit WORDS          change the current picture
  /save FILE.png       save the current picture
  /seed NUMBER         seed of the next picture
  /new                 forget the conversation
  /help, /quit"""


@dataclass(frozen=True)
class ChatOptions:
    """How to answer."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    model: str | None = None
    dtype: str | None = None
    device: str | None = None


def chat(picture: Path | None, question: str | None, options: ChatOptions) -> None:
    """Answer one question, or hold a conversation when there is none."""
    if options.max_tokens < 1:
        raise ValueError(f"--max-tokens must be at least 1, got {options.max_tokens}")
    words = require_words(question, "question") if question is not None else None
    image = open_picture(picture) if picture is not None else None
    find_model(options.model)
    pipeline = load_pipeline(options.model, options.dtype, options.device)
    from vargpt.inference.dialogue import Dialogue

    dialogue = Dialogue(pipeline, max_new_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    if image is not None:
        dialogue.show(image)
    if words is not None:
        answer(dialogue, words)
    else:
        converse(dialogue, sys.stdin)


def answer(dialogue: Dialogue, words: str) -> None:
    """Stream the answer to stdout and count its tokens on stderr; pictures are saved beside."""
    from vargpt.inference.dialogue import Drawn

    progress, tokens = ScaleProgress(), 0
    status = progress.status
    for piece in dialogue.say(words, progress):
        if isinstance(piece, Drawn):
            status.clear()
            print(f"[{_keep(dialogue, piece, words)}]", end="", flush=True)
        else:
            tokens += 1
            print(piece, end="", flush=True)
            if status.live and not sys.stdout.isatty():
                status.show(f"{tokens} tokens")
    print(flush=True)
    status.say(f"{tokens} tokens in {status.seconds:.1f} s")


def converse(dialogue: Dialogue, lines: Iterable[str]) -> None:
    """Read lines until the end of input or /quit; a mistake is reported and the conversation goes on."""
    live = sys.stdin.isatty()
    print(HELP if live else "", file=sys.stderr, end="\n" if live else "")
    prompt = "> " if live else ""
    print(prompt, end="", file=sys.stderr, flush=True)
    for line in lines:
        text = line.strip()
        if text in ("/quit", "/exit"):
            break
        if text:
            try:
                obey(dialogue, text)
            except ValueError as error:
                print(f"vargpt: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        print(prompt, end="", file=sys.stderr, flush=True)


def obey(dialogue: Dialogue, text: str) -> None:
    """Carry out one line of a conversation."""
    command, _, rest = text.partition(" ")
    rest = rest.strip()
    if command == "/help":
        print(HELP, file=sys.stderr)
    elif command == "/image":
        dialogue.show(open_picture(Path(require_words(rest, "file name"))))
    elif command == "/draw":
        _picture(dialogue, dialogue.draw, require_words(rest, "prompt"))
    elif command == "/edit":
        _picture(dialogue, dialogue.edit, require_words(rest, "instruction"))
    elif command == "/save":
        _save(dialogue, Path(require_words(rest, "file name")))
    elif command == "/seed":
        if not rest.isdecimal():
            raise ValueError(f"/seed takes a whole number, got {rest!r}")
        dialogue.seed = int(rest)
    elif command == "/new":
        dialogue.reset()
    elif command.startswith("/"):
        raise ValueError(f"unknown command {command}; /help lists them")
    else:
        answer(dialogue, text)


def _save(dialogue: Dialogue, path: Path) -> None:
    from vargpt.commands.common import check_output
    from vargpt.inference.pictures import save_png

    if dialogue.picture is None:
        raise ValueError("there is no picture yet: /draw one or look at one with /image")
    save_png(check_output(path), dialogue.picture, {"model": dialogue.pipeline.name, "software": "vargpt"})
    print(path, flush=True)


def _picture(dialogue: Dialogue, act: Callable[[str, ScaleProgress], Drawn], words: str) -> None:
    """Draw or edit with progress on stderr, and print the name of the file."""
    progress = ScaleProgress()
    drawn = act(words, progress)
    progress.status.clear()
    print(_keep(dialogue, drawn, words), flush=True)


def _keep(dialogue: Dialogue, drawn: Drawn, words: str) -> Path:
    """Write a picture of the conversation under the first free name of the form chat-1.png."""
    from vargpt.inference.pictures import save_png

    number = drawn.number
    path = Path(f"chat-{number}.png")
    while path.exists():
        number += 1
        path = Path(f"chat-{number}.png")
    about = {"prompt": words, "seed": str(drawn.seed), "model": dialogue.pipeline.name, "software": "vargpt"}
    save_png(path, drawn.image, about)
    return path
