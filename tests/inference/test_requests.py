"""How requests are worded: ours by our templates, the published model's by its own training data."""

from __future__ import annotations

from PIL import Image

from vargpt.configuration import Behaviour, VargptConfig
from vargpt.inference.requests import draw_request, edit_request, opened, prompt_free_request
from vargpt.processing.conversation import Conversation, ImagePart, TextPart, assistant, user

OURS, PUBLISHED = VargptConfig(), VargptConfig(behaviour=Behaviour.official())


def words(conversation: Conversation) -> list[tuple[str, list[str]]]:
    """Role and texts of every message; a picture shows as its type."""
    return [
        (message.role, [part.text if isinstance(part, TextPart) else part.type for part in message.content])
        for message in conversation.messages
    ]


def test_our_models_are_asked_in_the_canonical_words() -> None:
    assert words(draw_request(OURS, "green heart")) == [("user", ["draw green heart"])]
    picture = Image.new("RGB", (8, 8))
    assert words(edit_request(OURS, picture, "make it blue")) == [("user", ["image", "make it blue"])]


def test_published_models_are_asked_as_they_were_trained_and_their_answer_is_opened() -> None:
    assert words(draw_request(PUBLISHED, "a green heart.")) == [
        ("user", ["I need a designed image of a green heart."]),
        ("assistant", ["I have designed a drawing of a green heart."]),
    ]
    picture = Image.new("RGB", (8, 8))
    assert words(edit_request(PUBLISHED, picture, "make it blue"))[1] == ("assistant", ["The output image is: "])


def test_the_other_branch_knows_neither_words_nor_pictures_of_the_prompt() -> None:
    request = Conversation.parse(
        [{"role": "system", "content": "be brief"}, user(ImagePart(image=Image.new("RGB", (8, 8))), "make it blue")]
    )
    assert words(prompt_free_request(request)) == [("system", ["be brief"]), ("user", [""])]
    assert words(prompt_free_request(request, "red"))[1] == ("user", ["red"])
    assert words(prompt_free_request(draw_request(PUBLISHED, "fox"))) == [("user", [""])]


def test_an_answer_is_opened_after_the_opening_that_it_has() -> None:
    bare = Conversation.parse([{"role": "user", "content": "draw a cat"}])
    begun = opened(bare, "on a sand background: a cat")
    assert begun.messages[-1] == assistant("on a sand background: a cat") and opened(bare, "") == bare
    further = opened(begun, "at 5 4")
    assert [message.role for message in further.messages] == ["user", "assistant"]
    assert further.messages[-1] == assistant("on a sand background: a cat", " at 5 4")
