"""Text tokens: the special-token table, training a small byte-level BPE, cached encoding of text.

Invariant: ids of special tokens are read from the tokenizer, never written as numbers; text never turns into a
special token, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|image_gen_start|>",
    "<|image_gen_end|>",
    "<|image_gen_pad|>",
)
"""Special tokens in the order of their published ids (spec 2.1)."""

IMAGE_GEN_TOKENS = SPECIAL_TOKENS[-3:]

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text into words before byte-pair merging."""

_CACHED_TEXTS = 65_536


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens, in the order of `SPECIAL_TOKENS`."""

    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int
    image_gen_start: int
    image_gen_end: int
    image_gen_pad: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
        """Read the ids; a tokenizer that lacks one is refused by name."""
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}: "
                "use a Qwen2-VL tokenizer or one made by train_text_tokenizer"
            )
        return cls(*(vocabulary[token] for token in SPECIAL_TOKENS))

    @property
    def all(self) -> frozenset[int]:
        """All of them, as a set."""
        return frozenset(astuple(self))


def add_image_gen_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the three drawing tokens to a Qwen2-VL tokenizer where they are missing; return how many were added."""
    known = tokenizer.get_vocab()
    missing = [token for token in IMAGE_GEN_TOKENS if token not in known]
    return tokenizer.add_tokens(missing, special_tokens=True) if missing else 0


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Qwen2's word split; the special tokens take the last ids.

    Every text can be encoded, since all 256 bytes are tokens. The result has at most `vocab_size` tokens, fewer when
    the texts hold too few repeated pairs.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes + special tokens), got {vocab_size}")
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


class TextEncoder:
    """Text to ids with a cache, so that the fixed parts of a conversation are encoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str) -> tuple[int, ...]:
        """Ids of a text; what looks like a special token in it is encoded as ordinary characters."""
        ids = self._cache.get(text)
        if ids is None:
            if len(self._cache) >= _CACHED_TEXTS:
                self._cache.clear()
            encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            ids = self._cache[text] = tuple(encoded["input_ids"])
        return ids

    def __deepcopy__(self, memo: dict[int, object]) -> TextEncoder:
        """Share the tokenizer: saving a processor copies its attributes, and a vocabulary is large."""
        return TextEncoder(self._tokenizer)

    def __getstate__(self) -> dict[str, object]:
        """Leave the cache behind when a processor travels to another process."""
        return {"_tokenizer": self._tokenizer, "_cache": {}}
