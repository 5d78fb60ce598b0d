"""`Pair`: two pictures of one prompt, the better one named, and how a pair is written as files.

Invariant: `from_members(to_members(pair))` gives the same prompt, bytes, bits, scores and seeds; the same pair always
gives the same bytes.

Members of a pair (all names start with the pair's place in its shard):

    00000.json          key, prompt, answer, schedule, scores, seeds; pictures to read are named, not embedded
    00000.chosen.png    the better picture, at the schedule's size
    00000.chosen.bits   its bits [L, d], row-major, eight to a byte, first bit highest (`numpy.packbits`)
    00000.rejected.png  and 00000.rejected.bits, likewise
    00000.source-0      the first picture of the prompt, encoded as it came (a PIL image as PNG)
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vargpt.image_tokenizer import ImageTokenizer
from vargpt.processing.conversation import Conversation, ImagePart, Message, TextPart
from vargpt.processing.images import PreparedImage, open_image, to_signed
from vargpt.scales import ScaleSchedule


@dataclass(frozen=True)
class DrawnImage:
    """One side of a pair.

    Attributes:
        png: the picture as an encoded PNG, at the schedule's size.
        bits: uint8 [L, d], what the image tokenizer of the folder wrote or what was sampled; None where unknown.
        score: what the scorer gave; None where nothing was scored.
        seed: of the sampling; None for a picture that was not sampled.
    """

    png: bytes
    bits: Tensor | None = None
    score: float | None = None
    seed: int | None = None

    def image(self) -> Image.Image:
        """The picture as 8-bit RGB."""
        return open_image(self.png)

    def pixels(self) -> Tensor:
        """The picture as float32 [3, H, W] in [-1, 1]."""
        return to_signed(self.image())


@dataclass(frozen=True)
class Pair:
    """A better and a worse picture for the same prompt.

    Attributes:
        key: names the prompt, unique in a folder.
        prompt: ends with the user's turn; may hold pictures to read (an edit), none that were drawn.
        answer: what the assistant says before the picture, the same on both sides.
        schedule: grids of both pictures.
    """

    key: str
    prompt: Conversation
    answer: str
    chosen: DrawnImage
    rejected: DrawnImage
    schedule: ScaleSchedule


def image_tokenizer_hash(tokenizer: ImageTokenizer) -> str:
    """A fingerprint of the tokenizer's weights rounded to bfloat16, so that storing them shorter does not change it.

    Bits mean something to the tokenizer that made them only: use them where this agrees with the folder's.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def to_members(pair: Pair, prefix: str) -> dict[str, bytes]:
    """Write a pair as named files.

    Raises:
        ValueError: for a prompt that does not end with the user's turn or holds a picture without a file, and for a
            picture, bits or a score that do not fit the schedule.
    """
    members: dict[str, bytes] = {}
    record = {
        "key": pair.key,
        "prompt": _messages_to_json(pair, prefix, members),
        "answer": pair.answer,
        "schedule": schedule_to_json(pair.schedule),
    }
    for side, drawn in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        where = f"pair {pair.key!r}, {side}"
        _check_picture(drawn.png, pair.schedule, where)
        if drawn.score is not None and not math.isfinite(drawn.score):
            raise ValueError(f"{where}: a score must be finite, got {drawn.score}")
        members[f"{prefix}.{side}.png"] = drawn.png
        width = None
        if drawn.bits is not None:
            width = _check_bits(drawn.bits, pair.schedule, where)
            members[f"{prefix}.{side}.bits"] = np.packbits(drawn.bits.cpu().numpy().reshape(-1)).tobytes()
        record[side] = {"score": drawn.score, "seed": drawn.seed, "bits_per_token": width}
    members[f"{prefix}.json"] = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
    return members


def from_members(read: Callable[[str], bytes], prefix: str) -> Pair:
    """Read a pair; `read(name)` gives the bytes of a member.

    Raises:
        KeyError, TypeError, ValueError: for members that are no pair (the caller says where).
    """
    record = json.loads(read(f"{prefix}.json").decode("utf-8"))
    schedule = schedule_from_json(record["schedule"])
    sides = []
    for side in ("chosen", "rejected"):
        facts = record[side]
        bits = None
        if facts["bits_per_token"] is not None:
            bits = _unpack(read(f"{prefix}.{side}.bits"), schedule, facts["bits_per_token"])
        sides.append(DrawnImage(read(f"{prefix}.{side}.png"), bits, facts["score"], facts["seed"]))
    messages = []
    for message in record["prompt"]:
        parts: list[Any] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append(TextPart(text=part["text"]))
            else:
                parts.append(ImagePart(image=read(part["member"])))
        messages.append(Message(role=message["role"], content=tuple(parts)))
    return Pair(record["key"], Conversation.parse(messages), record["answer"], sides[0], sides[1], schedule)


def schedule_to_json(schedule: ScaleSchedule) -> dict[str, Any]:
    """A schedule as plain values."""
    return {"template": schedule.template, "num_scales": schedule.num_scales, "stride": schedule.stride}


def schedule_from_json(value: dict[str, Any]) -> ScaleSchedule:
    """The schedule of `schedule_to_json`."""
    return ScaleSchedule(value["template"], value["num_scales"], value["stride"])


def encode_png(image: Image.Image) -> bytes:
    """A picture as PNG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _messages_to_json(pair: Pair, prefix: str, members: dict[str, bytes]) -> list[dict[str, Any]]:
    """The turns of the prompt; its pictures go into `members`."""
    where = f"pair {pair.key!r}"
    if pair.prompt.messages[-1].role != "user":
        raise ValueError(
            f"{where}: the prompt must end with the user's turn, got {pair.prompt.messages[-1].role}; what the "
            "assistant says before the picture goes into `answer`"
        )
    messages: list[dict[str, Any]] = []
    sources = 0
    for message in pair.prompt.messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, ImagePart):
                name = f"{prefix}.source-{sources}"
                members[name] = _source_bytes(part.image, f"{where}, picture {sources} of the prompt")
                content.append({"type": "image", "member": name})
                sources += 1
            else:
                raise ValueError(f"{where}: the prompt holds a picture that was drawn; pairs are made for first ones")
        messages.append({"role": message.role, "content": content})
    return messages


def _source_bytes(image: Any, where: str) -> bytes:
    """The encoded picture, unchanged where it is a file or bytes."""
    if isinstance(image, PreparedImage):
        raise ValueError(f"{where}: got patches, which cannot be turned back into a picture; give the picture itself")
    if isinstance(image, Image.Image):
        return encode_png(open_image(image, where))
    data = image.read_bytes() if isinstance(image, Path) else bytes(image)
    open_image(data, f"{where} ({image})" if isinstance(image, Path) else where)
    return data


def _check_picture(png: bytes, schedule: ScaleSchedule, where: str) -> None:
    picture = open_image(png, where)
    height, width = schedule.image_size
    if picture.size != (width, height):
        raise ValueError(
            f"{where}: the picture is {picture.width}x{picture.height}, its schedule draws {width}x{height}"
        )


def _check_bits(bits: Tensor, schedule: ScaleSchedule, where: str) -> int:
    """Bits per token of bits that fit."""
    shaped = bits.ndim == 2 and bits.shape[0] == schedule.num_tokens and bits.dtype == torch.uint8
    if not shaped or bool((bits > 1).any()):
        raise ValueError(
            f"{where}: bits must be uint8, 0 or 1, of shape [{schedule.num_tokens}, d], got {bits.dtype} "
            f"{tuple(bits.shape)}{' with other values' if shaped else ''}"
        )
    return int(bits.shape[1])


def _unpack(data: bytes, schedule: ScaleSchedule, bits_per_token: int) -> Tensor:
    count = schedule.num_tokens * bits_per_token
    if len(data) != -(-count // 8):
        raise ValueError(f"expected {-(-count // 8)} bytes of bits, got {len(data)}")
    flat = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count)
    return torch.from_numpy(flat.reshape(schedule.num_tokens, bits_per_token))
