"""A scorer behind HTTP: one POST of JSON per batch of pictures (the format is in docs/preferences.md).

Invariant: a score is used only if the service answered in time with exactly one finite number per picture sent; any
failure ends in one line that names the service.

    POST  {"prompt": "a red circle", "images": [PNG in base64, ...], "key": "...", "sources": [...], "target": "..."}
    200   {"scores": [0.7, ...]}
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urldefrag, urlsplit

from PIL import Image

from vargpt.data.pair_records import encode_png
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.scorers import Context, checked_scores, parse_arguments
from vargpt.processing.conversation import Conversation

_SHOWN = 200
_LARGEST_ANSWER = 16 * 1024 * 1024


@dataclass(frozen=True)
class HttpScorer:
    """Posts pictures to a service.

    Attributes:
        url: of the service.
        timeout: seconds to wait for the service at any point of a request.
        retries: how often a request is sent again after a timeout, a lost connection or a 5xx status.
        wait: seconds before the first such repetition; doubled for each further one.
        batch_size: pictures per request.
    """

    url: str
    timeout: float = 60.0
    retries: int = 3
    wait: float = 1.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("timeout", "batch_size"):
            value = getattr(self, name)
            if not value > 0 or not math.isfinite(value):
                raise ValueError(f"scorer {self.url}: {name} must be positive, got {value}")
        if self.retries < 0 or self.wait < 0:
            raise ValueError(f"scorer {self.url}: retries and wait must not be negative")

    def __call__(self, prompt: Conversation, images: list[Image.Image], context: Context) -> Sequence[float]:
        """Score the pictures of one prompt."""
        asked = PairPrompt(context.key, prompt, caption=context.caption)
        common: dict[str, Any] = {"prompt": asked.words, "key": context.key}
        sources = [_png(source) for source in asked.sources()]
        if sources:
            common["sources"] = sources
        if context.target is not None:
            common["target"] = _png(context.target)
        scores: list[float] = []
        for first in range(0, len(images), self.batch_size):
            batch = images[first : first + self.batch_size]
            answer = self._post({**common, "images": [_png(image) for image in batch]})
            scores += self._scores(answer, len(batch))
        return scores

    def _post(self, payload: dict[str, Any]) -> bytes:
        """Send one request, again where that may help.

        Raises:
            RuntimeError: naming the service, when it cannot be reached or refuses.
        """
        request = urllib.request.Request(
            self.url,
            data=json.dumps(payload).encode("utf-8"),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return bytes(response.read(_LARGEST_ANSWER))
            except urllib.error.HTTPError as error:
                reason = f"status {error.code} ({_shown(error.read(_SHOWN))})"
                if error.code < 500:
                    raise RuntimeError(f"scorer {self.url}: refused the request with {reason}") from error
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                timed_out = isinstance(cause, TimeoutError)
                reason = f"no answer within {self.timeout:g} s" if timed_out else f"cannot be reached ({cause})"
        raise RuntimeError(f"scorer {self.url}: {reason}, {self.retries + 1} times; is the service running?")

    def _scores(self, answer: bytes, count: int) -> list[float]:
        where = f"scorer {self.url}"
        try:
            document = json.loads(answer)
        except ValueError as error:
            raise ValueError(f"{where}: the answer is not JSON: {_shown(answer)}") from error
        if not isinstance(document, dict) or not isinstance(document.get("scores"), list):
            raise ValueError(f'{where}: expected {{"scores": [...]}}, got {_shown(answer)}')
        return checked_scores(document["scores"], count, where)


def scorer_from_url(spec: str) -> HttpScorer:
    """Make the scorer of a URL; a fragment sets how it is called: `http://host/score#timeout=5&batch_size=4`.

    Raises:
        ValueError: for a setting that there is not, or one out of range.
    """
    url, fragment = urldefrag(spec)
    settings = parse_arguments(spec, fragment)
    known = ("timeout", "retries", "wait", "batch_size")
    for name, value in settings.items():
        if name not in known or isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"scorer {spec!r}: after # it takes numbers for {', '.join(known)}, got {name}={value}")
        if name in ("retries", "batch_size") and not isinstance(value, int):
            raise ValueError(f"scorer {spec!r}: {name} is a whole number, got {value}")
    if not urlsplit(url).hostname:
        raise ValueError(f"scorer {spec!r}: the URL names no host")
    return HttpScorer(url, **settings)


def _png(image: Image.Image) -> str:
    return base64.b64encode(encode_png(image)).decode("ascii")


def _shown(answer: bytes) -> str:
    """The beginning of an answer, in one line."""
    text = " ".join(answer[:_SHOWN].decode("utf-8", "replace").split())
    return repr(text)
