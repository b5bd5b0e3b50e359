"""What a model is to become, and the model made so: `Growth` is the part of a recipe, `grown` the operator."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import annotated_types as at
import torch
from torch import Tensor, nn

from ...config import Config, Count, NotNegative
from ...types import ModelError
from ..build import spread
from ..language import LanguageModel
from .axis import Axis, Noise, first_moment, joined, kept, second_moment, weights
from .depth import Block, Depth, blocks
from .fade import FROM
from .family import Family, Sizes, family_of
from .width import DRAWN, Width, block_axes, stream_axes

Moments = dict[str, Tensor]
DROPOUT = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "hidden_dropout_prob",
    "resid_pdrop",
)
SIZES = ("hidden", "layers", "heads", "kv_heads", "head_dim", "feed_forward")
PREFIX = "model.model."
"""Of a transformers model's parameters in the optimiser's state: it trains student and loss, and the student holds the model."""


class Growth(Config):
    """Sizes after growth (0: as they are) and how to get there."""

    hidden: Count = 0
    """Width of the residual stream."""
    layers: Annotated[int, at.Ge(0), at.Le(10_000)] = 0
    """Blocks."""
    heads: Count = 0
    """Attention heads."""
    kv_heads: Count = 0
    """Key-value heads."""
    head_dim: Count = 0
    """Channels of a head; llama, mistral, qwen2 and qwen3 only, elsewhere it is hidden / heads."""
    feed_forward: Count = 0
    """Width of the feed-forward part."""
    width: Width = "pad"
    """pad and tile (copies that share out what they do) keep the function; copies and random do not; fade does while training."""
    depth: Depth = "identity"
    """identity keeps the function; stack, interpolate, repeat and copies do not, and may train faster."""
    noise: NotNegative = 0.0
    """Standard deviation of what is added to every matrix; ELLE's is 0.01."""
    seed: Count = 0
    """Of everything that is drawn."""


@dataclass(frozen=True)
class Change:
    """A growth of one model: from which sizes to which."""

    family: Family
    old: Sizes
    new: Sizes
    growth: Growth

    @property
    def inexact(self) -> str:
        """Why the grown model does not compute the same function; empty if it does."""
        old, new, growth = self.old, self.new, self.growth
        wider = replace(old, layers=0) != replace(new, layers=0)
        if wider and growth.width in ("copies", "random"):
            return f"width: {growth.width} changes what norms see; pad and tile do not"
        if new.hidden != old.hidden and growth.width == "fade":
            return "width: fade keeps the function in a training that lets new channels fade in, and only there"
        if self.family.post and new.hidden != old.hidden and (growth.width != "tile" or new.hidden % old.hidden):
            return f"norms stand on the stream itself; only width: tile to a multiple of hidden {old.hidden} keeps what they see"
        if new.layers != old.layers and growth.depth != "identity":
            return f"depth: {growth.depth} makes blocks work on what others have changed already; identity does not"
        return "noise changes the weights" if growth.noise else ""


def change(config: Any, growth: Growth) -> Change:
    """What a growth does to a model of this configuration.

    Raises ModelError when it cannot be done.
    """
    family = family_of(config)
    old = family.sizes(config)
    if old.layers < 1:
        raise ModelError("the model has no blocks, so that there is nothing to grow; choose another")
    for name in SIZES:
        if 0 < getattr(growth, name) < getattr(old, name):
            raise ModelError(
                f"models grow, they do not shrink: {name} {getattr(growth, name)} is less than {getattr(old, name)}"
            )
    new = _sizes(config, family, old, growth)
    for name in SIZES:
        if getattr(new, name) < getattr(old, name):
            raise ModelError(
                f"models grow, they do not shrink: {name} {getattr(new, name)} is less than {getattr(old, name)}"
            )
    _require_possible(config, family, old, new, growth)
    return Change(family, old, new, growth)


def _sizes(config: Any, family: Family, old: Sizes, growth: Growth) -> Sizes:
    """The sizes that are asked for, and what follows from them for those that are not."""
    hidden, heads = growth.hidden or old.hidden, growth.heads
    if not heads:  # where a head's channels are hidden / heads, more of them keep those that there are
        heads = old.heads if family.free_head_dim or hidden % old.head_dim else hidden // old.head_dim
    if hidden % heads:
        fitting = (
            f"; {hidden // old.head_dim} heads of {old.head_dim} channels would do"
            if hidden % old.head_dim == 0
            else ""
        )
        raise ModelError(f"hidden {hidden} must be a multiple of heads {heads}{fitting}")
    alone = old.heads == old.kv_heads  # every head has keys and values of its own
    kv_heads = growth.kv_heads or (heads if alone else old.kv_heads)
    if heads % kv_heads or (not alone and (heads // kv_heads) < old.heads // old.kv_heads):
        raise ModelError(
            f"{heads} heads cannot share {kv_heads} key-value heads as {old.heads} shared {old.kv_heads}: "
            "give kv_heads, so that each serves as many heads as before or more"
        )
    if not family.free_head_dim and growth.head_dim not in (0, hidden // heads):
        raise ModelError(f"head_dim of a {config.model_type} is hidden / heads, {hidden // heads} here; leave it out")
    return Sizes(
        hidden=hidden,
        layers=growth.layers or old.layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=growth.head_dim or (old.head_dim if family.free_head_dim else hidden // heads),
        feed_forward=growth.feed_forward or old.feed_forward,
    )


def _require_possible(config: Any, family: Family, old: Sizes, new: Sizes, growth: Growth) -> None:
    if new.head_dim != old.head_dim:
        if not getattr(config, "scale_attn_weights", True):
            raise ModelError(
                "attention that is not scaled (scale_attn_weights) cannot grow in head_dim; give more heads"
            )
        if family.rotary and new.head_dim % old.head_dim:
            raise ModelError(
                f"head_dim {new.head_dim} is no multiple of {old.head_dim}: rotary positions turn channels in pairs at "
                "speeds that must be there again; choose a multiple, or more heads"
            )
        if config.model_type == "qwen3":
            raise ModelError(
                "a qwen3 norms each head's channels, so that head_dim cannot grow; give more heads instead"
            )
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if family.rotary and kind not in ("default", "linear", "llama3"):
            raise ModelError(f"head_dim cannot grow under rotary positions of the kind {kind}; give more heads instead")
    if growth.width == "fade" and not family.post:
        raise ModelError(
            f"width: fade is for norms on the stream itself; a {config.model_type} can take width: pad, which is exact"
        )
    if family.post and new.hidden != old.hidden and growth.width == "pad":
        raise ModelError(
            f"a {config.model_type}'s norms stand on the stream itself, where zeros change what they see; "
            f"take width: tile and a multiple of hidden {old.hidden}, or in the method stack width: fade"
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and new.layers != old.layers:
        raise ModelError(
            "attention scaled by its block's number (scale_attn_by_inverse_layer_idx) cannot grow in depth"
        )


def grown(
    model: LanguageModel,
    growth: Growth,
    moments: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[LanguageModel, Moments]:
    """The model after `growth`, on the same device, and the optimiser's moments as if it had been trained so.

    New slots start with no first moment and the mean of the old second moments. `options` are further keys of the grown
    model's configuration. Raises ModelError when it cannot be done.
    """
    todo = change(model.model.config, growth)
    grower = _Grower(todo, model.model)
    larger = _empty(model.model, todo, grower.blocks, options or {})
    _write(larger, grower.weights())
    if todo.family.post:
        _open_norms(todo.family, grower.blocks, dict(larger.named_parameters()))
    return LanguageModel(larger.train(model.model.training), known=True), dict(grower.moments(moments or {}))


def into(
    predecessor: LanguageModel, student: LanguageModel, width: Width, depth: Depth, seed: int = 0
) -> LanguageModel:
    """A predecessor grown to the student's sizes, in the student's place; everything but sizes and dropout is as the predecessor has it.

    Raises ModelError where weights cannot be handed down.
    """
    own, wanted = (model.model.config for model in (predecessor, student))
    for name, what in (
        ("model_type", "architecture"),
        ("vocab_size", "number of rows in its vocabulary"),
        ("tie_word_embeddings", "tying of the output matrix"),
    ):
        if getattr(own, name) != getattr(wanted, name):
            raise ModelError(
                f"weights cannot be handed down: the predecessor's {what} is {getattr(own, name)}, "
                f"the student's {getattr(wanted, name)}; give the student the predecessor's"
            )
    sizes = {name: getattr(family_of(wanted).sizes(wanted), name) for name in SIZES}
    sizes |= {} if family_of(wanted).free_head_dim else {"head_dim": 0}
    drops = {name: getattr(wanted, name) for name in DROPOUT if hasattr(wanted, name)}
    return grown(predecessor, Growth(**sizes, width=width, depth=depth, seed=seed), options=drops)[0]


def fresh(model: LanguageModel, growth: Growth) -> LanguageModel:
    """A model of the sizes that `model` would grow to, with fresh weights of the seed of `growth`.

    Torch's global generators go on as if nothing had been drawn. Raises ModelError when it could not grow so.
    """
    todo = change(model.model.config, growth)
    made = blocks(todo.old.layers, todo.new.layers, "repeat", torch.Generator())
    larger = _empty(model.model, todo, made, {"initializer_range": spread(todo.new.hidden)})
    like = next(model.parameters())
    _write(larger, [(name, like.new_empty(parameter.shape)) for name, parameter in larger.named_parameters()])
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(growth.seed)
        larger.init_weights()
    return LanguageModel(larger.train(model.model.training), known=True)


class _Grower:
    """One growth at work: axes are drawn once, so that weights and moments go the same way."""

    def __init__(self, todo: Change, model: Any) -> None:
        self.todo, self.family = todo, todo.family
        self.old = {name: p.detach() for name, p in model.named_parameters()}
        draw = torch.Generator().manual_seed(todo.growth.seed)
        arguments = (todo.old, todo.new, todo.growth.width)
        self.stream = stream_axes(*arguments, self.family, model.config.tie_word_embeddings, draw)
        drawn = todo.old.layers if todo.growth.width in DRAWN else 1
        self.inside = [block_axes(*arguments, self.family.rotary, draw) for _ in range(drawn)]
        self.blocks = blocks(todo.old.layers, todo.new.layers, todo.growth.depth, draw)
        self.found: dict[tuple[str, int, torch.Size], list[Axis]] = {}
        self.noise = Noise(next(iter(self.old.values())), todo.growth.seed)

    def axes(self, place: str, block: Block | None, old: Tensor) -> list[Axis]:
        """A tensor's axes; the same objects for tensors that grow alike.

        Raises ModelError when the configuration promises other sizes.
        """
        number = block.source % len(self.inside) if block else -1
        key = (place, number, old.shape)
        if key not in self.found:
            self.found[key] = self._axes(place, self.stream | (self.inside[number] if block else {}), old)
        return self.found[key]

    def _axes(self, place: str, known: dict[str, Axis], old: Tensor) -> list[Axis]:
        found = [
            joined([known[part] for part in name.split("+")]) if name.split("+")[0] in known else kept(old.shape[d])
            for d, name in enumerate(self.family.axes(place))
        ]
        if [axis.old for axis in found] != list(old.shape):
            promised = tuple(axis.old for axis in found)
            raise ModelError(
                f"the model's {place} is {tuple(old.shape)}, but its configuration promises {promised}; it is damaged"
            )
        return found

    def places(self) -> Iterator[tuple[str, str, Tensor, Block | None]]:
        """Of every tensor of the larger model: its name, its place in the table, the old tensor and its block."""
        for name, old in self.old.items():
            place, number = self.family.place(name)
            if number is None:
                yield name, place, old, None
                continue
            for n, block in enumerate(self.blocks):
                if block.source == number:
                    yield self.family.name(place, n), place, old, block

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The larger model's."""
        for name, place, old, block in self.places():
            axes = self.axes(place, block, old)
            if block and block.silent:
                if "hidden" in self.family.axes(place):
                    yield name, old.new_zeros([len(axis.source_I) for axis in axes])
                    continue
                axes = [axis.freed for axis in axes]
            found = weights(old, axes, self.noise)
            if self.todo.growth.noise and found.dim() > 1:
                more = torch.empty_like(found)
                self.noise(more, torch.tensor(self.todo.growth.noise))
                found += more
            yield name, found

    def moments(self, moments: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The optimiser's state for them. What belongs to no weight of the model goes through unchanged."""
        of: dict[str, list[tuple[str, Tensor]]] = {}
        for key, value in moments.items():
            name, _, kind = key.rpartition("/")
            if name.startswith(PREFIX):
                of.setdefault(name.removeprefix(PREFIX), []).append((kind, value))
            else:
                yield key, value
        for name, place, old, block in self.places():
            source = name if block is None else self.family.name(place, block.source)
            for kind, value in of.get(source, []):
                if value.shape != old.shape:  # a count of steps
                    yield f"{PREFIX}{name}/{kind}", value.clone()
                    continue
                grow = second_moment if kind == "exp_avg_sq" else first_moment
                found = grow(value, self.axes(place, block, old))
                if block and block.silent:  # what the block's source has learned from, this one has not
                    found.fill_(found.mean() if kind == "exp_avg_sq" else 0.0)
                yield f"{PREFIX}{name}/{kind}", found


def _empty(model: Any, todo: Change, made: list[Block], more: Mapping[str, Any]) -> Any:
    """A transformers model of the grown sizes, whose weights nobody has written yet."""
    from transformers.initialization import no_init_weights

    options: dict[str, Any] = dict(todo.family.options(todo.new)) | dict(more)
    if todo.growth.width == "fade" or hasattr(model.config, FROM):
        options |= {FROM: todo.old.hidden if todo.growth.width == "fade" else None}
    if kinds := getattr(model.config, "layer_types", None):
        options |= {"layer_types": [kinds[block.source] for block in made]}
    config = copy.deepcopy(model.config)
    for key, value in options.items():
        setattr(config, key, value)
    with no_init_weights(), next(model.parameters()).device:
        larger = type(model)(config)
    larger.tie_weights()
    if model.can_generate():
        larger.generation_config = model.generation_config
    return larger


def _write(model: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Give a model all of its parameters."""
    missing = {name for name, _ in model.named_parameters()}
    modules = dict(model.named_modules())
    for name, value in weights:
        owner, _, leaf = name.rpartition(".")
        setattr(modules[owner], leaf, nn.Parameter(value))
        missing.remove(name)
    assert not missing, "a family's table names every tensor"
    model.tie_weights()


@torch.no_grad()
def _open_norms(family: Family, made: list[Block], parameters: Mapping[str, Tensor]) -> None:
    """Where norms stand on the stream, a silent block hands on what it gets, since a norm of a norm is the same again.

    Its first norm and that at the end of the block before have gain 1 and shift 0; its last one, a copy of that, does the rest.
    """
    for place, (first, *_) in family.tensors.items():
        if "*" in place and first in ("gain", "shift"):
            before = 0 if ".attention." in place else 1
            for n, block in enumerate(made):
                if block.silent:
                    parameters[family.name(place, n - before)].fill_(1.0 if first == "gain" else 0.0)
