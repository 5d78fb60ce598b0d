"""The classes that lmms-eval instantiates; all that they do is in `vargpt.evaluation.lmms.answers`.

Invariant: only lmms-eval imports this module.

    lmms-eval --model vargpt --model_args pretrained=MODEL,dtype=bfloat16 --tasks mme --batch_size 8
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from vargpt.evaluation.lmms.answers import (
    AnswerSettings,
    Question,
    answers,
    chat_conversation,
    continuation,
    question_seeds,
    simple_conversation,
)
from vargpt.inference.pipeline import VargptPipeline
from vargpt.processing.conversation import Conversation

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError("these classes are for lmms-eval, which is not here: pip install lmms-eval") from error


class Vargpt(lmms):
    """lmms-eval's older form: a text, and a function that gives its pictures.

    Args:
        pretrained: model folder or hub name.
        device: default: the GPU of this process (LOCAL_RANK), where there is one.
        dtype: float32 or bfloat16; default: as stored.
        behaviour: official or vargpt; default: as the weights were trained.
        batch_size: conversations at once.
        max_batch_size: part of the interface; nothing here chooses a batch size by itself.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str | None = None,
        behaviour: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size
        if not str(batch_size or 1).isdecimal() or int(batch_size or 1) < 1:
            raise ValueError(f"batch_size must be a whole number from 1 on, got {batch_size!r}")
        self.pipeline = VargptPipeline.from_pretrained(
            pretrained, dtype=dtype, device=device or _own_gpu(), behaviour=behaviour
        )
        self.batch_size = int(batch_size or 1)

    @property
    def device(self) -> Any:
        """Where the model is; lmms-eval gathers its counts there."""
        return self.pipeline.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to requests whose `args` are (context, generation_kwargs, doc_to_visual, doc_id, task, split)."""
        return self._answers(
            [
                (simple_conversation(context, doc_to_visual(self._document(task, split, doc_id)) or []), kwargs)
                for context, kwargs, doc_to_visual, doc_id, task, split in (request.args for request in requests)
            ],
            [f"{request.args[4]}:{request.args[3]}" for request in requests],
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(loss, whether greedy) of continuations; `args` are (context, target, doc_to_visual, doc_id, task, split).

        The number is the mean negative log-probability of a token, as from lmms-eval's own models: it takes the
        smallest where it chooses among answers.
        """
        found = []
        for context, target, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            document = self._document(task, split, doc_id)
            words = target if isinstance(target, str) else target(document)
            scored = continuation(self.pipeline, simple_conversation(context, doc_to_visual(document) or []), words)
            found.append((scored.loss, scored.greedy))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("vargpt does not answer lmms-eval's multi-round tasks; choose tasks of one round")

    def _document(self, task: str, split: str, doc_id: Any) -> Any:
        return self.task_dict[task][split][doc_id]

    def _answers(self, asked: Sequence[tuple[Conversation, dict[str, Any]]], keys: Sequence[str]) -> list[str]:
        questions = [
            Question(conversation, AnswerSettings.from_kwargs(kwargs), seed)
            for (conversation, kwargs), seed in zip(asked, question_seeds(keys), strict=True)
        ]
        return answers(self.pipeline, questions, self.batch_size)


class VargptChat(Vargpt):
    """lmms-eval's chat form: a function that gives messages with pictures among the words."""

    is_simple = False

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to requests whose `args` are (context, doc_to_messages, generation_kwargs, doc_id, task, split)."""
        return self._answers(
            [
                (chat_conversation(doc_to_messages(self._document(task, split, doc_id))), kwargs)
                for _, doc_to_messages, kwargs, doc_id, task, split in (request.args for request in requests)
            ],
            [f"{request.args[4]}:{request.args[3]}" for request in requests],
        )


def _own_gpu() -> str | None:
    """The GPU of this process among several on the machine; None leaves the choice to the pipeline."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None
