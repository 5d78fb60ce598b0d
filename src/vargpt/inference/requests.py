"""How a request is worded for a model: what it was trained on decides.

Invariant: the same request gives the same conversation, whatever else is asked.
"""

from __future__ import annotations

from vargpt.configuration import VargptConfig
from vargpt.data.instructions import draw_prompt, edit_prompt
from vargpt.processing.conversation import Conversation, UnderstandSource, assistant, user


def speaks_published(config: VargptConfig) -> bool:
    """Whether the model is a published one, which was trained with other wordings than ours."""
    return config.behaviour.guidance_dropout == "official"


def draw_request(config: VargptConfig, prompt: str) -> Conversation:
    """The conversation that asks for a picture; a published model gets the opening of its answer too (spec 2.2)."""
    if not speaks_published(config):
        return draw_prompt(prompt)
    subject = prompt.rstrip(" .")
    return Conversation(
        messages=(user(f"I need a designed image of {subject}."), assistant(f"I have designed a drawing of {subject}."))
    )


def edit_request(config: VargptConfig, image: UnderstandSource, instruction: str) -> Conversation:
    """The conversation that asks to change a picture."""
    if not speaks_published(config):
        return edit_prompt(image, instruction)
    return Conversation(messages=(user(image, instruction), assistant("The output image is: ")))


def opened(request: Conversation, words: str) -> Conversation:
    """A request whose answer begins with these words, after an opening that it has; as it was where there are none."""
    *earlier, last = request.messages
    if not words:
        return request
    if last.role == "assistant":
        return Conversation(messages=(*earlier, assistant(*last.content, f" {words}")))
    return Conversation(messages=(*request.messages, assistant(words)))


def prompt_free_request(request: Conversation, negative_prompt: str = "") -> Conversation:
    """The other branch of guidance: the system turn, and a user turn that is empty or says what not to draw."""
    bare = request.without_prompt(negative_prompt)
    return Conversation(messages=tuple(message for message in bare.messages if message.role != "assistant"))
