"""Scoring over real HTTP, with the example server of the documentation and with servers that misbehave."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vargpt.data.instructions import draw_prompt, edit_prompt
from vargpt.preferences.http import HttpScorer
from vargpt.preferences.scorers import Context, load_scorer

PROMPT = draw_prompt("fox")
RED, BLUE, GREY = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "grey"))


class Service:
    """A server in a thread; `answer` gives status and body of each request, None hangs until the test ends."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


Serve = Callable[..., tuple[str, list[dict[str, Any]]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers with the given (status, body) in turn, the last one for good."""
    services: list[Service] = []
    release = threading.Event()

    def start(*answers: tuple[int, bytes] | None) -> tuple[str, list[dict[str, Any]]]:
        requests: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = answers[min(len(requests), len(answers)) - 1]
                if answer is None:
                    release.wait(30)
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, *_: object) -> None: ...

        services.append(Service(Handler))
        return services[-1].url, requests

    yield start
    release.set()
    for service in services:
        service.close()


def scores(*values: float) -> tuple[int, bytes]:
    return 200, json.dumps({"scores": values}).encode()


def test_the_example_of_the_documentation(repo_root: Path) -> None:
    text = (repo_root / "docs" / "preferences.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "do_POST" in block]
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 22
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(blocks[0], "docs/preferences.md", "exec"), names)
    service = Service(names["Redness"])
    try:
        found = load_scorer(f"{service.url}#timeout=20")(PROMPT, [GREY, RED, BLUE], Context("k", "a red thing"))
    finally:
        service.close()
    assert list(found) == [0.0, 1.0, -0.5]


def test_what_is_sent(serve: Serve) -> None:
    url, requests = serve(scores(1), scores(2), scores(3, 4))
    HttpScorer(url)(PROMPT, [RED], Context("the key", "a fox"))
    HttpScorer(url)(PROMPT, [RED], Context("other"))
    prompt = edit_prompt(GREY, "make it blue")
    assert HttpScorer(url)(prompt, [RED, BLUE], Context("k", target=BLUE)) == [3.0, 4.0]
    assert {name: requests[0][name] for name in ("prompt", "key")} == {"prompt": "a fox", "key": "the key"}
    assert set(requests[0]) == {"prompt", "key", "images"}
    assert requests[1]["prompt"] == "draw fox"
    assert requests[2]["prompt"] == "make it blue"
    colours = []
    for text in [*requests[2]["images"], *requests[2]["sources"], requests[2]["target"]]:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert image.format == "PNG"
            colours.append(image.getpixel((0, 0)))
    assert colours == [(255, 0, 0), (0, 0, 255), (128, 128, 128), (0, 0, 255)]


def test_pictures_go_in_batches(serve: Serve) -> None:
    url, requests = serve(scores(1, 2), scores(3, 4), scores(5))
    assert load_scorer(f"{url}#batch_size=2")(PROMPT, [RED] * 5, Context("k")) == [1, 2, 3, 4, 5]
    assert [len(request["images"]) for request in requests] == [2, 2, 1]


def test_a_server_error_is_tried_again(serve: Serve) -> None:
    url, requests = serve((503, b"busy"), (500, b"oops"), scores(7))
    assert HttpScorer(url, retries=2, wait=0)(PROMPT, [RED], Context("k")) == [7.0]
    assert requests[0] == requests[1] == requests[2]


BROKEN = {
    "500": ((500, b"out of memory"), "status 500 ('out of memory'), 2 times; is the service running?", 2),
    "404": ((404, b"no such page"), "refused the request with status 404 ('no such page')", 1),
    "too few": (scores(1), "expected 2 scores, one per picture, got 1", 1),
    "too many": (scores(1, 2, 3), "expected 2 scores, one per picture, got 3", 1),
    "nan": ((200, b'{"scores": [1, NaN]}'), "the score of picture 1 is nan, expected a finite number", 1),
    "infinite": ((200, b'{"scores": [-Infinity, 1]}'), "the score of picture 0 is -inf", 1),
    "text": ((200, b'{"scores": ["high", 1]}'), "expected a list of 2 numbers, got ['high', 1]", 1),
    "null": ((200, b'{"scores": [null, 1]}'), "expected a list of 2 numbers, got [None, 1]", 1),
    "garbage": ((200, b"<html>\n\xff hello"), "the answer is not JSON: '<html> \ufffd hello'", 1),
    "empty": ((200, b""), "the answer is not JSON: ''", 1),
    "other key": ((200, b'{"rewards": [1, 2]}'), 'expected {"scores": [...]}, got \'{"rewards": [1, 2]}\'', 1),
    "a list": ((200, b"[1, 2]"), "expected {\"scores\": [...]}, got '[1, 2]'", 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_service_that_misbehaves_is_named(name: str, serve: Serve) -> None:
    answer, message, times = BROKEN[name]
    url, requests = serve(answer)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        HttpScorer(url, retries=1, wait=0)(PROMPT, [RED, BLUE], Context("k"))
    assert str(caught.value).startswith(f"scorer {url}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(requests) == times


def test_a_timeout_is_named(serve: Serve) -> None:
    url, requests = serve(None)
    with pytest.raises(RuntimeError, match=r"no answer within 0\.1 s, 2 times"):
        HttpScorer(url, timeout=0.1, retries=1, wait=0)(PROMPT, [RED], Context("k"))
    assert len(requests) == 2


def test_nobody_there() -> None:
    service = Service(BaseHTTPRequestHandler)
    service.close()
    with pytest.raises(RuntimeError, match=r"cannot be reached \(.*refused.*\), 1 times"):
        HttpScorer(service.url, retries=0)(PROMPT, [RED], Context("k"))
