"""From a benchmark's prompt to the request that the model gets: rewriting, then a template, both explicit data.

Invariant: a request is a function of (prompt, number of the prompt, seed, wording) alone, and every wording that was
chosen is recorded with it. The benchmark's own prompt is never changed: scorers see it as it was given.

    draw      the wording of `vargpt draw` for this model
    plain     the prompt and nothing else
    depict    "Can you depict a scene of {prompt}."
    trained   wordings as in the model's training, chosen per prompt
    FILE      .txt: a template a line; .json: a list of strings or of {"user": ..., "assistant": ...}; chosen per prompt
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargpt.configuration import VargptConfig
from vargpt.data.instructions import Style, draw_conversation
from vargpt.inference.habits import Habits
from vargpt.inference.requests import draw_request, speaks_published
from vargpt.processing.conversation import Conversation, Message, TextPart, assistant, user

FIELD = "{prompt}"
NAMES = ("draw", "plain", "depict", "trained")
_ENDS = (".", "?", "!", ",", ";", ":")


@dataclass(frozen=True)
class Template:
    """A request with `{prompt}` in it, and the opening of the answer ('' for none)."""

    user: str
    assistant: str = ""

    def request(self, prompt: str) -> Conversation:
        """The conversation for a prompt; the prompt's full stop gives way to punctuation of the template."""
        turns = [user(_filled(self.user, prompt))]
        if self.assistant:
            turns.append(assistant(_filled(self.assistant, prompt)))
        return Conversation(messages=tuple(turns))

    def as_text(self) -> str:
        """The template in a line, for records."""
        return self.user + (f" -> {self.assistant}" if self.assistant else "")


_FIXED = {"plain": (Template(FIELD),), "depict": (Template(f"Can you depict a scene of {FIELD}."),)}


@dataclass(frozen=True)
class TemplateChoice:
    """A `--template` that was read: one of `NAMES`, or the templates of a file with its SHA-256."""

    name: str
    templates: tuple[Template, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True)
class TrainedWording:
    """How a model's drawing requests were worded in training: the chance and the family of other than canonical forms.

    `known` is False where nothing says so; then all requests come from the family.
    """

    variety: float
    style: Style
    known: bool

    def describe(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"variety": self.variety, "style": self.style, "from": "recipe.yaml" if self.known else "assumed"}


@dataclass(frozen=True)
class Request:
    """What is asked for one prompt of a benchmark, and the template that it came from."""

    conversation: Conversation
    template: str


class Wording:
    """Words the prompts of one run.

    Args:
        choice: the template asked for.
        seed: of the choice among several templates.
        config, habits: of the model, for its own wording.
        trained: how it was trained, for the template `trained`.
    """

    def __init__(
        self, choice: TemplateChoice, seed: int, config: VargptConfig, habits: Habits, trained: TrainedWording
    ) -> None:
        self._choice, self._seed, self._config, self._habits, self._trained = choice, seed, config, habits, trained

    def request(self, index: int, prompt: str) -> Request:
        """The request for the prompt at this place of the list."""
        name = self._choice.name
        if name == "draw":
            return Request(draw_request(self._config, self._habits.subject(prompt)), name)
        chance = random.Random(f"{self._seed}:template:{index}")
        if name == "trained":
            subject, trained = self._habits.subject(prompt), self._trained
            worded = draw_conversation(subject, None, chance, trained.variety, trained.style)
            return Request(_unanswered(worded), name)
        template = chance.choice(self._choice.templates)
        return Request(template.request(prompt), template.as_text())

    def describe(self) -> dict[str, Any]:
        """What decides the wording, JSON-ready."""
        templates = [template.as_text() for template in self._choice.templates]
        facts: dict[str, Any] = {"name": self._choice.name, "sha256": self._choice.sha256, "templates": templates}
        return {**facts, "trained": self._trained.describe() if self._choice.name == "trained" else None}


def read_template(choice: str) -> TemplateChoice:
    """Read a `--template`: one of `NAMES`, or a file.

    Raises:
        ValueError: for an unknown name, an unreadable file, a template without `{prompt}`.
    """
    if choice in NAMES:
        return TemplateChoice(choice, _FIXED.get(choice, ()))
    path = Path(choice)
    if not path.is_file():
        raise ValueError(f"--template {choice}: is neither one of {', '.join(NAMES)} nor a file")
    data, text = _read(path)
    templates = _json_templates(path, text) if path.suffix.lower() == ".json" else _text_templates(path, text)
    if not templates:
        raise ValueError(f"{path}: holds no template; expected one a line, such as: Draw {FIELD}.")
    return TemplateChoice(path.name, templates, hashlib.sha256(data).hexdigest())


def read_rewritten(path: Path) -> tuple[dict[str, str], str]:
    """Read rewritten prompts, one {"prompt": ..., "rewritten": ...} a line.

    Returns:
        The rewritten prompt of each prompt, and the SHA-256 of the file.

    Raises:
        ValueError: naming file and line, for a broken line or a prompt rewritten in two ways.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of rewritten prompts")
    data, text = _read(path)
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        record = parse_object(line, place)
        prompt, rewritten = (words_of(record, key, place) for key in ("prompt", "rewritten"))
        if found.setdefault(prompt, rewritten) != rewritten:
            raise ValueError(f"{place}: {prompt!r} was rewritten in another way before; keep one of the two")
    if not found:
        raise ValueError(f'{path}: holds no rewritten prompt; expected lines of {{"prompt": ..., "rewritten": ...}}')
    return found, hashlib.sha256(data).hexdigest()


def rewrite(prompts: Sequence[str], rewritten: Mapping[str, str], path: Path) -> list[str]:
    """Every prompt as rewritten.

    Raises:
        ValueError: naming the first prompt that the file lacks.
    """
    missing = [prompt for prompt in prompts if prompt not in rewritten]
    if missing:
        raise ValueError(f"{path}: lacks {len(missing)} of {len(prompts)} prompts, the first is {missing[0]!r}")
    return [rewritten[prompt] for prompt in prompts]


def assumed_wording(config: VargptConfig) -> TrainedWording:
    """The wording where no recipe says how a model was trained: wide for a published one (the paper's manner)."""
    return TrainedWording(1.0, "rich" if speaks_published(config) else "short", known=False)


def parse_object(line: str, place: str) -> dict[str, Any]:
    """One JSON object of a line; `place` names the line in errors."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(record).__name__}")
    return record


def words_of(record: Mapping[str, Any], key: str, place: str) -> str:
    """The text of a key that must be there and not empty."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "no such key" if key not in record else repr(value)
        raise ValueError(f"{place}: expected words under {key!r}, got {found}")
    return value


def _filled(template: str, prompt: str) -> str:
    parts = template.split(FIELD)
    trimmed = prompt.removesuffix(".")
    text = parts[0]
    for part in parts[1:]:
        text += (trimmed if part.startswith(_ENDS) else prompt) + part
    return text


def _unanswered(conversation: Conversation) -> Conversation:
    """A drawing conversation without its picture: what is asked, and the words before the picture if any."""
    *earlier, last = conversation.messages
    words = tuple(part for part in last.content if isinstance(part, TextPart))
    kept = [*earlier, Message(role=last.role, content=words)] if words else earlier
    return Conversation(messages=tuple(kept))


def _read(path: Path) -> tuple[bytes, str]:
    data = path.read_bytes()
    try:
        return data, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text") from error


def _text_templates(path: Path, text: str) -> tuple[Template, ...]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return tuple(_checked(Template(line), f"{path}, line {number}") for number, line in lines)


def _json_templates(path: Path, text: str) -> tuple[Template, ...]:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from error
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a JSON list of templates, got {type(items).__name__}")
    templates = []
    for number, item in enumerate(items, 1):
        place = f"{path}, entry {number}"
        if isinstance(item, str):
            templates.append(_checked(Template(item), place))
            continue
        if not isinstance(item, dict) or not set(item) <= {"user", "assistant"}:
            raise ValueError(f'{place}: expected a string or {{"user": ..., "assistant": ...}}, got {item!r}')
        opening = words_of(item, "assistant", place) if "assistant" in item else ""
        templates.append(_checked(Template(words_of(item, "user", place), opening), place))
    return tuple(templates)


def _checked(template: Template, place: str) -> Template:
    if FIELD not in template.user:
        raise ValueError(f"{place}: the template has no {FIELD}, got {template.user!r}")
    return template
