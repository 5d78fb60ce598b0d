"""Tiny preference pairs and a tiny model to train on them, without any file: 8x8 px, 21 tokens of 6 bits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLConfig

from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.data.pairs import DrawnImage, Pair
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.conversation import Conversation, ImagePart, user
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.recipes.schema import DpoStage
from vargpt.training.stages.preference_batches import PreferenceMicroBatch
from vargpt.training.stages.preference_stage import PreferenceTask
from vargpt.training.stages.reference import make_reference
from vargpt.training.weights.trainable import set_trainable

SCHEDULE = ScaleSchedule.from_template(1.0, 3, stride=2)
BITS = 6
LN2 = 0.6931471805599453
LOOP = {"steps": 4, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32", "log_every": 1, "evaluate_every": 100}


def picture(red: int, green: int, blue: int, size: tuple[int, int] = SCHEDULE.image_size) -> bytes:
    """A PNG of one colour with a darker corner."""
    image = Image.new("RGB", (size[1], size[0]), (red, green, blue))
    image.paste((red // 2, green // 2, blue // 2), (0, 0, size[1] // 2, size[0] // 4))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tiny_pairs(
    count: int, *, edits: bool = False, bits: bool = False, schedule: ScaleSchedule = SCHEDULE
) -> list[Pair]:
    """Reddish pictures preferred to bluish ones; every second prompt holds a source picture where `edits` is set."""
    pairs = []
    for index in range(count):
        words = f"draw number {index % 7}"
        source = Image.new("RGB", (16, 16), (10 * index % 256, 90, 30))
        prompt = user(ImagePart(image=source), words) if edits and index % 2 else user(words)
        generator = torch.Generator().manual_seed(index)
        drawn = torch.randint(0, 2, (2, schedule.num_tokens, BITS), generator=generator, dtype=torch.uint8)
        chosen, rejected = (
            picture(200, 10 * index % 256, 30, schedule.image_size),
            picture(30, 10 * index % 256, 200, schedule.image_size),
        )
        pairs.append(
            Pair(
                key=f"prompt {index}",
                prompt=Conversation(messages=(prompt,)),
                answer="here:" if index % 3 == 0 else "",
                chosen=DrawnImage(chosen, drawn[0] if bits else None),
                rejected=DrawnImage(rejected, drawn[1] if bits else None),
                schedule=schedule,
            )
        )
    return pairs


def tiny_stage(**changes: Any) -> DpoStage:
    """A DPO stage on four pairs a step; `loop` changes single settings of the loop."""
    loop = {**LOOP, **changes.pop("loop", {})}
    return DpoStage.model_validate({"kind": "dpo", "pairs": "nowhere", "loop": loop, **changes})


def tiny_processor(behaviour: str = "vargpt") -> VargptProcessor:
    """A processor that has read no more than the prompts' words."""
    texts = ["draw number 1 2 3 4 5 6 7 here:"]
    return VargptProcessor.train(texts, 300, patch_size=4, min_pixels=64, max_pixels=256, behaviour=behaviour)


def tiny_policy(
    processor: VargptProcessor, behaviour: str = "vargpt", trainable: Any = "generation", seed: int = 0
) -> VargptForConditionalGeneration:
    """A model of about 80,000 weights in which no parameter is at a neutral value, with stochastic depth."""
    special = processor.special
    backbone = Qwen2VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": special.endoftext,
            "eos_token_id": special.im_end, "pad_token_id": special.endoftext,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
        image_token_id=special.image_pad, video_token_id=special.video_pad,
        vision_start_token_id=special.vision_start, vision_end_token_id=special.vision_end,
    )  # fmt: skip
    config = VargptConfig(
        backbone=backbone,
        decoder=DecoderConfig(
            hidden_size=48, num_heads=3, depth=2, num_chunks=1, unconditional_rows=8, drop_path_rate=0.5
        ),
        image_tokenizer=ImageTokenizerConfig(bits=BITS, base_channels=32, channel_multipliers=[1, 1], stride=2),
        behaviour=Behaviour.from_any(behaviour),
        num_scales=SCHEDULE.num_scales,
        image_gen_start_token_id=special.image_gen_start,
        image_gen_end_token_id=special.image_gen_end,
        image_gen_pad_token_id=special.image_gen_pad,
        eos_token_id=special.im_end,
        pad_token_id=special.endoftext,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VargptForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("image_tokenizer."):
                    size = 0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
                    parameter.add_(torch.randn(parameter.shape) * size)
    set_trainable(model, trainable)
    return model


def labels_of(micro: PreferenceMicroBatch) -> Tensor:
    """Bits of all rows, chosen then rejected."""
    assert micro.inputs.labels_ILd is not None
    return micro.inputs.labels_ILd


def fed_of(micro: PreferenceMicroBatch) -> Tensor:
    """Next-scale inputs of all rows."""
    assert micro.inputs.next_inputs_IMd is not None
    return micro.inputs.next_inputs_IMd


class GivenReference:
    """Literal log-probabilities: the same for all pictures of a side, all of it in the first scale."""

    def __init__(self, chosen: float, rejected: float) -> None:
        self.chosen, self.rejected = chosen, rejected

    def scale_logps(self, micro: PreferenceMicroBatch) -> Tensor:
        values = torch.zeros(2 * micro.num_pairs, SCHEDULE.num_scales, dtype=torch.float64)
        values[: micro.num_pairs, 0], values[micro.num_pairs :, 0] = self.chosen, self.rejected
        return values


def task_of(
    policy: VargptForConditionalGeneration,
    processor: VargptProcessor,
    given: Any = None,
    pairs: list[Pair] | None = None,
    directory: Path = Path("unused"),
    bits_fit: bool = True,
    validation_fraction: float = 0.0,
    **changes: Any,
) -> PreferenceTask:
    stage = tiny_stage(**changes)
    return PreferenceTask(
        policy,
        processor,
        tiny_pairs(8) if pairs is None else pairs,
        stage,
        seed=0,
        reference=given or make_reference(stage, policy, directory),
        bits_fit=bits_fit,
        validation_fraction=validation_fraction,
    )


def step_of(task: PreferenceTask, step: int = 0, precision: str = "fp32") -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of a whole step on one rank."""
    batch = task.batch(step)
    counts = task.counts(batch)
    total = torch.zeros((), dtype=torch.float64)
    metrics: dict[str, float] = {}
    for micro in batch:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, shares = task.loss(micro, counts)
        total = total + loss
        metrics = {name: metrics.get(name, 0.0) + float(value) for name, value in shares.items()}
    return total, metrics
