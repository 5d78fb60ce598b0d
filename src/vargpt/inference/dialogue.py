"""`Dialogue`: a conversation that sees, says, draws and edits, and remembers it all.

Invariant: the history holds what was really said and the very bits that were drawn; a turn that fails or is broken off
leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from vargpt.inference.drafting import continue_drafts, shows_a_picture
from vargpt.inference.habits import Memory
from vargpt.inference.pipeline import Picture, StepCallback, VargptPipeline
from vargpt.inference.requests import draw_request, edit_request, opened
from vargpt.inference.sizes import choose_schedule
from vargpt.inference.streams import TextStream
from vargpt.inputs import ModelInputs
from vargpt.model.events import Finished, ImageDone, ScaleDone, TextDelta
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, Message, TextPart
from vargpt.processing.images import open_image
from vargpt.sampling import Sampling


@dataclass(frozen=True)
class Drawn:
    """A picture that the model drew; `number` counts from 1 in the conversation."""

    image: Image.Image
    number: int
    seed: int
    bits_Ld: Tensor


class Dialogue:
    """A conversation with a model.

    A picture that was shown or drawn last is the current one: it goes to the model's eyes with the next words said.

    Args:
        memory: `all` sends the whole conversation; `picture` only the current picture and the new words, for small
            models that never saw a second turn; None: the model's habit.
        temperature: of the words. seed: of the next picture and answer; it counts up with every turn.
        aspect_ratio: of all pictures drawn here.
        system: text of a system turn.
    """

    def __init__(
        self,
        pipeline: VargptPipeline,
        *,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        seed: int | None = None,
        aspect_ratio: str | float | None = None,
        memory: Memory | None = None,
        system: str | None = None,
    ) -> None:
        memory = memory or pipeline.habits.memory
        if memory not in ("all", "picture"):
            raise ValueError(f"memory must be 'all' or 'picture', got {memory!r}")
        self.pipeline, self.memory, self.seed = pipeline, memory, seed or 0
        self.schedule = choose_schedule(pipeline.model.config, aspect_ratio=aspect_ratio)
        words = pipeline.sampling.text_temperature if temperature is None else temperature
        self._settings = replace(
            pipeline.sampling, max_new_tokens=max_new_tokens, stop_after_image=False, text_temperature=words
        )
        self._system = [] if system is None else [Message(role="system", content=(TextPart(text=system),))]
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.messages: list[Message] = list(self._system)
        self.picture: Image.Image | None = None
        self._unseen = False
        self._bits: list[Tensor] = []
        self._count = 0

    def show(self, image: Picture) -> None:
        """Let the model look at a picture from the next turn on."""
        self.picture, self._unseen = open_image(image), True

    def say(self, words: str, callback_on_step_end: StepCallback | None = None) -> Iterator[str | Drawn]:
        """Say something; yields the answer piece by piece, and pictures where the model draws some."""
        if not words.strip():
            raise ValueError("there is nothing to say: the words are empty")
        parts: list[ImagePart | TextPart] = [TextPart(text=words)]
        if self.picture is not None and (self._unseen or self.memory == "picture"):
            parts.insert(0, ImagePart(image=self.picture))
        request = (Message(role="user", content=tuple(parts)),)
        return self._turn(request, replace(self._settings, force_image=False), callback_on_step_end)

    def draw(self, prompt: str, callback_on_step_end: StepCallback | None = None) -> Drawn:
        """Ask for a picture, which becomes the current one."""
        if not prompt.strip():
            raise ValueError("the prompt is empty: say in words what to draw")
        request = draw_request(self.pipeline.model.config, self.pipeline.habits.subject(prompt))
        return self._picture_turn(request, callback_on_step_end)

    def edit(self, instruction: str, callback_on_step_end: StepCallback | None = None) -> Drawn:
        """Ask to change the current picture; the result becomes the current one."""
        if not instruction.strip():
            raise ValueError("the instruction is empty: say in words what to change")
        if self.picture is None:
            raise ValueError("there is no picture to change yet: draw one or show one first")
        request = edit_request(self.pipeline.model.config, self.picture, instruction.strip())
        return self._picture_turn(request, callback_on_step_end)

    def _picture_turn(self, request: Conversation, callback: StepCallback | None) -> Drawn:
        if self.pipeline.habits.draft:
            inputs = self._inputs(request.messages)
            drafts = continue_drafts(self.pipeline, inputs, [self.seed], read=shows_a_picture(request))
            request = opened(request, drafts[0])
        settings = replace(self._settings, force_image=True, stop_after_image=True)
        drawn = [piece for piece in self._turn(request.messages, settings, callback) if isinstance(piece, Drawn)]
        return drawn[0]

    def _turn(
        self, request: tuple[Message, ...], settings: Sampling, callback: StepCallback | None
    ) -> Iterator[str | Drawn]:
        """Run one turn; history, picture and seed change only when it is complete."""
        conversation, inputs = self._conversation(request), self._inputs(request)
        pipeline, schedule = self.pipeline, self.schedule
        settings = replace(settings, seeds=[self.seed])
        text, answer = TextStream(pipeline.processor.tokenizer), _Answer()
        drawn: list[Drawn] = []
        for event in pipeline.generate(inputs, settings, schedule, conversation):
            if isinstance(event, TextDelta):
                piece = text.add(event.token_id)
            elif isinstance(event, Finished):
                piece = text.close()
            elif isinstance(event, ScaleDone):
                if callback is not None:
                    values = {"canvas": event.canvas_1dhw, "grid": schedule.sizes[event.scale_index], "first_image": 0}
                    callback(pipeline, event.scale_index, schedule.num_scales - 1 - event.scale_index, values)
                continue
            else:
                assert isinstance(event, ImageDone)
                if piece := text.close():
                    answer.say(piece)
                    yield piece
                text = TextStream(pipeline.processor.tokenizer)
                image = pipeline.to_output([event.image_3HW], "pil")[0]
                picture = Drawn(image, self._count + len(drawn) + 1, self.seed, event.bits_Ld)
                drawn.append(picture)
                answer.parts.append(DrawPart())
                yield picture
                continue
            if piece:
                answer.say(piece)
                yield piece
        self._remember(request, answer, drawn)

    def _conversation(self, request: tuple[Message, ...]) -> Conversation:
        """What the model gets to read: as much of the history as it remembers, and the request."""
        earlier = self._system if self.memory == "picture" else self.messages
        return Conversation(messages=(*earlier, *request))

    def _inputs(self, request: tuple[Message, ...]) -> ModelInputs:
        bits = () if self.memory == "picture" else self._bits
        return self.pipeline.inputs([self._conversation(request)], self.schedule, bits)

    def _remember(self, request: tuple[Message, ...], answer: _Answer, drawn: list[Drawn]) -> None:
        opening = request[-1].content if request[-1].role == "assistant" else ()
        asked = request[:-1] if opening else request
        self.messages += [*asked, Message(role="assistant", content=(*opening, *answer.parts))]
        self._bits += [picture.bits_Ld for picture in drawn]
        self._count += len(drawn)
        self._unseen = bool(drawn)
        if drawn:
            self.picture = drawn[-1].image
        self.seed += 1


class _Answer:
    """What the model says in one turn, as message parts."""

    def __init__(self) -> None:
        self.parts: list[TextPart | DrawPart] = []

    def say(self, piece: str) -> None:
        """Add text, to the last part where that is text."""
        last = self.parts[-1] if self.parts else None
        if isinstance(last, TextPart):
            self.parts[-1] = TextPart(text=last.text + piece)
        else:
            self.parts.append(TextPart(text=piece))
