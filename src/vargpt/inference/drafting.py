"""Drafts: a model says in words what its picture will show before it draws it (docs/scenes.md).

Invariant: a draft depends on its own request and seed only, and is never longer than `_INVENTED` says; one of an
edit depends on the request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vargpt.inference.requests import opened
from vargpt.inputs import ModelInputs
from vargpt.model.events import Finished
from vargpt.processing.conversation import Conversation, ImagePart

if TYPE_CHECKING:
    from vargpt.inference.pipeline import VargptPipeline

Draft = bool | str | None
"""Whether a model says what its picture will show before it draws it: None its habit, or the words themselves."""

_INVENTED: dict[str, Any] = {"text_temperature": 0.7, "text_top_p": 0.9, "max_new_tokens": 192}
_READ: dict[str, Any] = {**_INVENTED, "text_temperature": 0.0}
"""Of a draft that is read off a picture (an edit's): most of it is there to be seen, and other seeds see the same."""


def continue_drafts(
    pipeline: VargptPipeline, inputs: ModelInputs, seeds: Sequence[int], *, read: bool = False
) -> list[str]:
    """Let the model go on with conversations that ask for a picture, up to where the picture would start.

    Args:
        read: whether the drafts are of edits, and so the likeliest words are wanted.
    """
    settings = replace(
        pipeline.sampling, max_images=0, images_per_prompt=1, seeds=list(seeds), guidance_scale=1.0,
        force_image=False, stop_after_image=False, **(_READ if read else _INVENTED),
    )  # fmt: skip
    said = {
        event.sequence: pipeline.processor.tokenizer.decode(event.token_ids, skip_special_tokens=True).strip()
        for event in pipeline.model.generate(inputs, settings)
        if isinstance(event, Finished)
    }
    return [said[index] for index in range(len(seeds))]


def write_drafts(
    pipeline: VargptPipeline, requests: Sequence[Conversation], seeds: Sequence[int], batch_size: int = 8
) -> list[str]:
    """Let the model say, for every request and its seed, what its picture will show; it may say nothing."""
    drafts = [""] * len(requests)
    for read in (False, True):
        wanted = [index for index, request in enumerate(requests) if shows_a_picture(request) == read]
        for first in range(0, len(wanted), batch_size):
            batch = wanted[first : first + batch_size]
            inputs = pipeline.inputs([requests[index] for index in batch])
            said = continue_drafts(pipeline, inputs, [seeds[index] for index in batch], read=read)
            for index, words in zip(batch, said, strict=True):
                drafts[index] = words
    return drafts


def shows_a_picture(request: Conversation) -> bool:
    """Whether a request comes with a picture, as that for an edit does."""
    return any(isinstance(part, ImagePart) for message in request.messages for part in message.content)


def with_drafts(
    pipeline: VargptPipeline, requests: Sequence[Conversation], seeds: Sequence[int], batch_size: int = 8
) -> list[Conversation]:
    """Every request with its own draft as the opening of its answer."""
    return list(map(opened, requests, write_drafts(pipeline, requests, seeds, batch_size)))


def choose_drafts(
    pipeline: VargptPipeline, conversations: list[Conversation], seeds: list[int], draft: Draft, batch_size: int
) -> list[str]:
    """The draft of every picture (each conversation with each seed); none where the model is to draw at once.

    Raises:
        ValueError: for given words that are empty or meant for several prompts.
    """
    if isinstance(draft, str):
        if len(conversations) > 1 or not draft.strip():
            raise ValueError(f"a given draft is for one prompt and not empty, got {len(conversations)} prompts")
        return [draft.strip()] * len(seeds)
    if not (pipeline.habits.draft if draft is None else draft):
        return []
    each = [conversation for conversation in conversations for _ in seeds]
    return write_drafts(pipeline, each, seeds * len(conversations), batch_size)
