"""Weights and processor before the first stage: from a whole model, from parts of others, or from seeds.

Invariant: modules are built without memory and every weight is put in once, in the type that it will have, so the peak
is the model plus one tensor. A file must hold exactly the weights that it is to fill: what is missing, unexpected or
of another shape is named. What no file fills is drawn from the recipe's seed.

A backbone brings Qwen2-VL's tokenizer, which gets the three drawing tokens. Their rows of the token embedding and of
the text head start as the mean of the rows of all other tokens (also where the table had spare rows, as the published
one does): a hidden state then gives a new token about the average logit, and reading one changes little.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2VLConfig

from vargpt.checkpoint.loading import (
    CONFIG_NAME,
    fill_buffers,
    official_sources,
    own_sources,
    read_config,
    resolve_folder,
)
from vargpt.checkpoint.official_keys import (
    KeyEntry,
    backbone_entries,
    decoder_entries,
    image_tokenizer_entries,
    is_official,
)
from vargpt.checkpoint.strict import check_keys
from vargpt.checkpoint.tensor_files import StoredTensor, list_folder, list_tensors
from vargpt.configuration import ImageTokenizerConfig, VargptConfig
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.image_tokenizer.initialization import initialize
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.training.recipes.schema import DpoStage, Recipe, SftStage
from vargpt.training.weights.build import build_config, build_model, build_processor
from vargpt.training.weights.growth import BIT_WEIGHTS, deepened, depth_of, set_depth
from vargpt.training.weights.trainable import TRAINABLE

Given = dict[str, Callable[[], Tensor]]
"""Our name of a weight -> how to read it, in the type that it is stored in."""
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_SCRATCH_BYTES = 16 * 2**20


def make_processor(recipe: Recipe, texts: Iterable[str]) -> VargptProcessor:
    """Return the processor of `init.model` or `init.backbone`, or one trained on the data's words.

    A model's keeps its behaviour but for the recipe's switches; a backbone's gets the recipe's behaviour and system
    prompt, and reads images of at most `model.vision.image_side` squared pixels.
    """
    if recipe.init.model is not None:
        processor = VargptProcessor.from_pretrained(resolve_folder(recipe.init.model))
        processor.behaviour = recipe.model.switched(processor.behaviour)
        return processor
    if recipe.init.backbone is None:
        return build_processor(recipe, texts)
    published = VargptProcessor.from_pretrained(resolve_folder(recipe.init.backbone))
    images = published.image_processor
    largest = recipe.model.vision.image_side**2
    images.size = {"shortest_edge": min(int(images.size["shortest_edge"]), largest), "longest_edge": largest}
    system = recipe.text_tokenizer.system_prompt
    return VargptProcessor(
        images,
        published.tokenizer,
        behaviour=recipe.model.switched(),
        system_prompt=published.system_prompt if system is None else system,
    )


def make_model(recipe: Recipe, processor: VargptProcessor) -> VargptForConditionalGeneration:
    """Return the model as the first stage finds it, on the CPU: float32, or `frozen_dtype` where no stage trains.

    Raises:
        ValueError: if a file does not fit, or the sizes in the recipe are not those of the files.
    """
    init = recipe.init
    _check_precision(recipe)
    if init.model is not None:
        return _whole(recipe, resolve_folder(init.model))
    if init.backbone is None and init.image_tokenizer is None and init.decoder is None:
        model = build_model(recipe, processor)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(weight_dtype(recipe, name, parameter.ndim))
        return model
    config = build_config(recipe, processor)
    given: Given = {}
    if init.decoder is not None:
        given |= _decoder(init.decoder, config)
    if init.backbone is not None:
        folder = resolve_folder(init.backbone)
        config.backbone = _backbone_config(folder, config, recipe, processor)
        given |= _backbone(folder, config)
    if init.image_tokenizer is not None:
        given |= _image_tokenizer(init.image_tokenizer, config)
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    _draw_the_rest(model, given, recipe)
    return _filled(model, given, recipe)


def weight_dtype(recipe: Recipe, name: str, axes: int) -> torch.dtype:
    """Type of a weight with so many axes during training: `frozen_dtype` for matrices, kernels and tables that no
    stage trains; float32 for what some stage trains, for vectors (norms need them so) and for the image tokenizer.
    """
    if name.startswith("image_tokenizer.") or axes < 2:
        return torch.float32
    presets = {stage.trainable for stage in recipe.stages if isinstance(stage, SftStage | DpoStage)}
    trained = any(name.startswith(TRAINABLE[preset]) for preset in presets)
    return torch.float32 if trained else getattr(torch, recipe.frozen_dtype)


def _check_precision(recipe: Recipe) -> None:
    loops = {stage.name: stage.loop for stage in recipe.stages if isinstance(stage, SftStage | DpoStage)}
    plain = [name for name, loop in loops.items() if loop.precision == "fp32"]
    if recipe.frozen_dtype != "float32" and plain:
        raise ValueError(
            f"stage {plain[0]} has precision fp32, but frozen weights are kept in {recipe.frozen_dtype}: "
            "set frozen_dtype: float32, or precision: bf16 in all stages"
        )


def _whole(recipe: Recipe, folder: Path) -> VargptForConditionalGeneration:
    """A whole model in the published or in our layout; where the recipe has a schedule, the model draws at its size."""
    config, stored = read_config(folder), list_folder(folder)
    config.behaviour = recipe.model.switched(config.behaviour)
    if "num_scales" in recipe.schedule.model_fields_set:
        config.num_scales = recipe.schedule.num_scales
    stride = recipe.model.image_tokenizer.stride
    if config.image_tokenizer.stride != stride:
        raise ValueError(
            f"{folder} has an image tokenizer of stride {config.image_tokenizer.stride}, the recipe says "
            f"model.image_tokenizer.stride: {stride}, from which resolutions follow: make them equal"
        )
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    official = is_official(stored)
    sources = official_sources(str(folder), config, stored) if official else own_sources(str(folder), model, stored)
    scratch = torch.empty(_SCRATCH_BYTES, dtype=torch.uint8)
    cpu = torch.device("cpu")
    given: Given = {
        name: partial(source.load, weight_dtype(recipe, name, len(source.shape)), cpu, scratch)
        for name, source in sources.items()
    }
    if recipe.init.depths or recipe.init.image_tokenizer is not None:
        model, given = _grown(config, given, recipe, folder)
    return _filled(model, given, recipe)


def _grown(
    config: VargptConfig, given: Given, recipe: Recipe, folder: Path
) -> tuple[VargptForConditionalGeneration, Given]:
    """A whole model with the recipe's depths and image tokenizer; what those leave open is drawn from the seed."""
    for part, depth in recipe.init.depths.items():
        try:
            given = deepened(given, part, depth_of(config, part), depth)
        except ValueError as error:
            raise ValueError(f"init.depths.{part}: {folder}: {error}") from error
        set_depth(config, part, depth)
    if recipe.init.image_tokenizer is not None:
        config.image_tokenizer = ImageTokenizerConfig(**recipe.model.image_tokenizer.model_dump())
        given = {name: read for name, read in given.items() if not name.startswith(BIT_WEIGHTS)}
        given |= _image_tokenizer(recipe.init.image_tokenizer, config)
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    _draw_the_rest(model, given, recipe)
    return model, given


def _filled(model: VargptForConditionalGeneration, given: Given, recipe: Recipe) -> VargptForConditionalGeneration:
    """Put the given weights in the place of meta ones, one after the other, and compute the buffers."""
    for name, parameter in list(model.named_parameters()):
        value = given[name]() if parameter.is_meta else parameter.detach()
        _put(model, name, value.to(weight_dtype(recipe, name, parameter.ndim)))
    fill_buffers(model, {"": torch.device("cpu")})
    return model.eval()


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._parameters[attribute] = nn.Parameter(value)


def _draw_the_rest(model: VargptForConditionalGeneration, given: Given, recipe: Recipe) -> None:
    """Draw what no file gives, as for a new model; what is still without memory takes no part in it."""
    with torch.random.fork_rng(devices=[]):
        if not any(name.startswith("image_tokenizer.") for name in given):
            torch.manual_seed(recipe.seed)
            model.image_tokenizer = ImageTokenizer(model.config.image_tokenizer)
            initialize(model.image_tokenizer)
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta and name not in given:
                _put(model, name, torch.empty(parameter.shape))
        torch.manual_seed(recipe.seed + 1)
        for owner, module in _children_first(model, model):
            owner._init_weights(module)


def _children_first(module: nn.Module, owner: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, nn.Module]]:
    """Every module after its children, with the model class around it whose rules it follows, as in transformers."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    for child in module.children():
        yield from _children_first(child, owner)
    yield owner, module


def _backbone_config(folder: Path, config: VargptConfig, recipe: Recipe, processor: VargptProcessor) -> Qwen2VLConfig:
    """The folder's configuration with room for the drawing tokens; the recipe must state the same sizes."""
    values = _read_json(folder / CONFIG_NAME)
    if values.get("model_type") != "qwen2_vl":
        raise ValueError(
            f"init.backbone: {folder} is a {values.get('model_type')!r} model, expected 'qwen2_vl'; a whole VARGPT "
            f"model goes to init.model"
        )
    found = Qwen2VLConfig.from_pretrained(folder)
    text, vision, ours = found.text_config, found.vision_config, config.backbone
    pairs = [(f"model.backbone.{name}", getattr(ours.text_config, name), getattr(text, name)) for name in _TEXT_SIZES]
    pairs += [
        (f"model.vision.{name}", getattr(ours.vision_config, name), getattr(vision, name, "patch"))
        for name in _EYE_SIZES
    ]
    sections = [c.rope_parameters["mrope_section"] for c in (ours.text_config, text)]
    pairs.append(("model.backbone.mrope_section", *sections))
    rows = max(text.vocab_size, config.image_gen_pad_token_id + 1)
    pairs.append(("text_tokenizer.vocab_size", recipe.text_tokenizer.vocab_size, rows))
    wrong = [f"{name}: {there} (the recipe says {here})" for name, here, there in pairs if here != there]
    if wrong:
        raise ValueError(f"the recipe's sizes are not those of {folder}; set {'; '.join(wrong)}")
    special = processor.special
    found.image_token_id, found.video_token_id = special.image_pad, special.video_pad
    found.vision_start_token_id, found.vision_end_token_id = special.vision_start, special.vision_end
    text.vocab_size = rows
    text.bos_token_id, text.eos_token_id, text.pad_token_id = special.endoftext, special.im_end, special.endoftext
    found.tie_word_embeddings = False  # a tied head becomes a copy: ours is separate
    return found


_TEXT_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_EYE_SIZES = ("stem", "depth", "embed_dim", "num_heads", "mlp_ratio", "patch_size")


def _backbone(folder: Path, config: VargptConfig) -> Given:
    """Vision tower, language model and text head of a Qwen2-VL folder."""
    values, stored = _read_json(folder / CONFIG_NAME), list_folder(folder)
    tied = values.get("tie_word_embeddings", False) and _TABLES[1] not in stored
    entries = {entry.official: entry for entry in backbone_entries(config)}
    expected = {name: entry.official_shape for name, entry in entries.items() if not (tied and name == _TABLES[1])}
    tables = {name: stored[name].shape[0] for name in _TABLES if name in stored}
    expected |= {name: (rows, *expected[name][1:]) for name, rows in tables.items()}
    check_keys(
        str(folder),
        {name: tensor.shape for name, tensor in stored.items()},
        expected,
        described_by="the recipe",
        advice="Choose the folder of a Qwen2-VL model as transformers saves it, with all its files.",
    )
    new = [config.image_gen_start_token_id, config.image_gen_end_token_id, config.image_gen_pad_token_id]
    if min(tables.values()) < min(new):
        raise ValueError(f"{folder}: the tokenizer has {min(new)} tokens but the embedding {min(tables.values())} rows")
    given: Given = {}
    for official, entry in entries.items():
        source = stored[_TABLES[0] if tied and official == _TABLES[1] else official]
        assert entry.ours is not None
        table = official in _TABLES
        given[entry.ours] = partial(_read_table, source, entry.official_shape[0], new) if table else source.read
    return given


def _read_table(source: StoredTensor, rows: int, new: list[int]) -> Tensor:
    return with_new_rows(source.read(), rows, new)


def with_new_rows(table: Tensor, rows: int, new: list[int]) -> Tensor:
    """Grow a table [V, D] to `rows`; rows of new ids, and those added, become the mean of the rows before them."""
    mean = table[: min(new)].float().mean(0).to(table.dtype)
    grown = torch.cat([table, mean.expand(rows - len(table), -1)]) if rows > len(table) else table
    grown[new] = mean
    return grown


def _decoder(path: str, config: VargptConfig) -> Given:
    """The next-scale decoder; how its file groups the blocks is kept for the published layout."""
    chunks = {name.split(".")[1] for name in _read_file(path) if name.startswith("block_chunks.")}
    if chunks and config.decoder.depth % len(chunks) == 0:
        config.decoder.num_chunks = len(chunks)
    return _from_tensors(path, _read_file(path), "vargpt_gen.", decoder_entries(config), "model.decoder")


def _image_tokenizer(path: str, config: VargptConfig) -> Given:
    """The image tokenizer of a file with published names, or of a model's folder in either layout."""
    prefix, own = "vae_local.", "image_tokenizer."
    entries = [entry for entry in image_tokenizer_entries(config) if entry.ours is not None or entry.buffer]
    if not Path(path).is_dir():
        return _from_tensors(path, _read_file(path), prefix, entries, "model.image_tokenizer")
    stored = list_folder(Path(path))
    published = {entry.ours: entry.official for entry in entries if entry.ours is not None}
    named = stored if is_official(stored) else {published.get(name, name): tensor for name, tensor in stored.items()}
    part = {
        name.removeprefix(prefix).removeprefix(own): tensor
        for name, tensor in named.items()
        if name.startswith((prefix, own))
    }
    return _from_tensors(path, part, prefix, entries, "model.image_tokenizer")


def _from_tensors(
    path: str, tensors: Mapping[str, Tensor | StoredTensor], prefix: str, entries: list[KeyEntry], sizes: str
) -> Given:
    """One part from tensors with published names without `prefix`; those without effect may be absent."""
    names = {entry.official.removeprefix(prefix): entry for entry in entries}
    check_keys(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: entry.official_shape for name, entry in names.items()},
        optional=frozenset(name for name, entry in names.items() if entry.ours is None),
        described_by=f"the recipe's {sizes}",
        advice=f"Set {sizes} to the sizes of this file, or choose another file; names are those of the published "
        f"model after {prefix!r}.",
    )
    given: Given = {}
    for name, entry in names.items():
        if entry.ours is not None:
            given[entry.ours] = partial(_ours, tensors[name], entry)
    return given


def _ours(tensor: Tensor | StoredTensor, entry: KeyEntry) -> Tensor:
    """Read one tensor of a file and bring it to our shape, in memory of its own."""
    if isinstance(tensor, Tensor):
        rows = tensor if entry.rows is None else tensor[slice(*entry.rows)]
        return entry.from_official(rows).clone()
    return entry.from_official(tensor.read(entry.rows))


def _read_file(path: str) -> Mapping[str, Tensor | StoredTensor]:
    """Tensors of a safetensors or torch file by name, not yet read; `FILE#GROUP` chooses one of several groups."""
    file, _, group = path.partition("#")
    place = Path(file)
    if not place.is_file():
        raise ValueError(f"init: {place} is not a file; expected tensors in safetensors or PyTorch format")
    if place.suffix == ".safetensors":
        if group:
            raise ValueError(f"init: {place} is a safetensors file, which has no groups: leave out #{group}")
        return list_tensors(place)
    try:
        content = torch.load(place, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"init: {place} is not a PyTorch file of nothing but tensors ({reason})") from error
    if not isinstance(content, dict):
        content = {}
    groups = {str(name): value for name, value in content.items() if isinstance(value, dict)}
    if group and group not in groups:
        raise ValueError(f"init: {place} has no group {group!r}; it has {', '.join(groups) or 'none'}")
    tensors = groups[group] if group else content
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        choose = f"; choose one of its groups, as in {place.name}#{next(iter(groups))}" if groups else ""
        raise ValueError(f"init: {place}: expected a mapping of names to tensors{choose}")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable model configuration") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no model configuration: expected a JSON object")
    return values
