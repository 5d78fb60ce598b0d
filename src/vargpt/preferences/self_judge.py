"""Scorer: the model's own understanding. It looks at its picture and is asked about it.

Invariant: the score of a picture depends on the picture, the caption and the questions alone, not on the pictures
judged beside it (but for float summation order). Nothing is drawn at random: probabilities of answers are read off.

    score = mean over questions of
        log p(answer | picture, question) per token     for one with one answer ("what is this?": the caption)
        log p(right) - log(p(right) + p(wrong))         for a yes/no question

    self                                            "what is this?" alone
    self?yes=is this {caption}?&no=is it empty?     with yes/no questions; repeat a key for more of them
    self?caption=0&yes=is it red?                   yes/no questions alone
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vargpt.data.instructions import CAPTION_QUESTION
from vargpt.inference.pipeline import VargptPipeline
from vargpt.losses import IGNORED
from vargpt.preferences.scorers import Context
from vargpt.processing.collate import collate
from vargpt.processing.conversation import Conversation, ImagePart, assistant, user
from vargpt.processing.images import PreparedImage

CAPTION = "{caption}"


@dataclass(frozen=True)
class Question:
    """A question about a picture; `{caption}` in the words stands for the prompt's caption.

    Attributes:
        text: what the model is asked.
        answer: the right answer. others: wrong ones to weigh it against; none: the probability itself is the score.
    """

    text: str
    answer: str
    others: tuple[str, ...] = ()


class SelfJudge:
    """Asks the model that drew a picture what is in it.

    Args:
        yes, no: questions whose right answer is yes, or no: one or a list.
        caption: whether to ask the canonical caption question.
        batch_size: conversations per forward pass.
        questions: further questions (from Python).

    Raises:
        ValueError: without any question.
    """

    def __init__(
        self,
        yes: str | Sequence[str] = (),
        no: str | Sequence[str] = (),
        caption: bool = True,
        batch_size: int = 16,
        questions: Sequence[Question] = (),
    ) -> None:
        asked = [Question(CAPTION_QUESTION, CAPTION)] if caption else []
        asked += [Question(text, "yes", ("no",)) for text in _listed(yes)]
        asked += [Question(text, "no", ("yes",)) for text in _listed(no)]
        self.questions = (*asked, *questions)
        if not self.questions:
            raise ValueError("scorer self: no question is left to ask; give yes=... or no=...")
        if batch_size < 1:
            raise ValueError(f"scorer self: batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size

    def __call__(self, prompt: Conversation, images: list[Image.Image], context: Context) -> Sequence[float]:
        """Score pictures by the log-probability of right answers about them."""
        del prompt
        if context.pipeline is None:
            raise ValueError("scorer self: needs the model that drew the pictures, got pictures alone")
        looked = [context.pipeline.processor.understand(image) for image in images]
        asked = [self._worded(question, context) for question in self.questions]
        rows = [
            Conversation(messages=(user(ImagePart(image=look), question.text), assistant(answer)))
            for look in looked
            for question in asked
            for answer in (question.answer, *question.others)
        ]
        logps = iter(answer_logps(context.pipeline, rows, self.batch_size))
        return [sum(_judged(question, logps) for question in asked) / len(asked) for _ in looked]

    def _worded(self, question: Question, context: Context) -> Question:
        texts = [question.text, question.answer, *question.others]
        if not context.caption and any(CAPTION in text for text in texts):
            raise ValueError(
                f"scorer self: {context.key} has no caption, which {question.text!r} needs; give prompts a caption "
                "(what the picture should show), or ask questions without it: self?caption=0&yes=..."
            )
        text, answer, *others = (text.replace(CAPTION, context.caption) for text in texts)
        return Question(text, answer, tuple(others))


def _judged(question: Question, logps: Iterator[tuple[float, int]]) -> float:
    """The score of one question from the next answers' log-probabilities (total, tokens)."""
    total, tokens = next(logps)
    if not question.others:
        return total / tokens
    totals = torch.tensor([total, *(next(logps)[0] for _ in question.others)], dtype=torch.float64)
    return float(totals[0] - totals.logsumexp(0))


@torch.no_grad()
def answer_logps(
    pipeline: VargptPipeline, conversations: Sequence[Conversation], batch_size: int
) -> list[tuple[float, int]]:
    """Log-probability of each conversation's answer, end of turn included, and its number of tokens.

    Args:
        conversations: each ends with the assistant's words; pictures as `PreparedImage` are taken as they are.
    """
    processor = pipeline.processor
    found: list[tuple[float, int]] = []
    for first in range(0, len(conversations), batch_size):
        rows = [processor.encode(_prepared(pipeline, item)) for item in conversations[first : first + batch_size]]
        batch = collate(
            rows,
            processor.special,
            padding_side="right",
            multiple_of=1,
            merge_size=processor.merge_size,
            sequential=False,
            all_text_targets=False,
        )
        inputs = batch.inputs.to(pipeline.device)
        output = pipeline.model(inputs, text_logits="targets")
        assert inputs.text_targets_BT is not None
        row_S = (inputs.text_targets_BT[:, 1:] != IGNORED).nonzero()[:, 0]
        logps_S = torch.log_softmax(output.target_logits_SV.float(), dim=-1)
        chosen_S = logps_S.gather(1, output.targets_S[:, None].long())[:, 0].double()
        found += _by_row(chosen_S, row_S, len(rows))
    return found


def _by_row(logps_S: Tensor, row_S: Tensor, rows: int) -> list[tuple[float, int]]:
    totals = torch.zeros(rows, dtype=torch.float64, device=logps_S.device).index_add_(0, row_S, logps_S)
    counts = torch.bincount(row_S, minlength=rows)
    return list(zip(totals.tolist(), counts.tolist(), strict=True))


def _prepared(pipeline: VargptPipeline, conversation: Conversation) -> Conversation:
    """Pictures as the model sees them when it answers, which published training prepares otherwise."""
    messages = []
    for message in conversation.messages:
        parts = [
            ImagePart(image=pipeline.processor.understand(part.image))
            if isinstance(part, ImagePart) and not isinstance(part.image, PreparedImage)
            else part
            for part in message.content
        ]
        messages.append(message.model_copy(update={"content": tuple(parts)}))
    return Conversation(messages=tuple(messages))


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
