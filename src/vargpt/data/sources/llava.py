"""LLaVA-style conversations: `conversations` of from/value, `image` as one name or a list, `<image>` in the text.

Invariant: the text stays as it is; the n-th `<image>` becomes the n-th image, and their numbers agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vargpt.data.sources.conversations import RecordSource
from vargpt.data.sources.parsing import images_of, inside, placeholder_conversation, turns_of, with_answer


def llava_source(name: str, paths: Sequence[Path], images: Path) -> RecordSource:
    """LLaVA-style JSON (one array, or lines); records without an image are text conversations."""
    resolve = inside(images)
    return RecordSource(
        name, paths, lambda record: with_answer(placeholder_conversation(turns_of(record), images_of(record, resolve)))
    )
