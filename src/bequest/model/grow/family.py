"""What growth has to know of an architecture: its sizes' names, and for each tensor what its axes are.

Along an axis a tensor either writes or reads, and that decides what its new slots hold:

hidden            the residual stream, as embeddings and the blocks' outputs write it
stream            the same behind a norm, as the blocks' inputs read it
gain, shift       of the norms in between; final, final_shift of the last one before the output
readout           the stream as the output matrix reads it, where that is a matrix of its own
features          what the transform of a masked model's head writes
query, key, value the heads' channels as they are written; mixed as the attention's output reads them
inner, outer      the feed-forward's channels as they are written and read
head, position, vocab, kind    these do not grow
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...types import ModelError


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int


@dataclass(frozen=True)
class Family:
    """An architecture. `tensors` maps each name, with * for a block's number, to its axes in the tensor's order.

    Axes joined by + are written one after the other along one dimension.
    """

    keys: Mapping[str, str]
    """Our sizes' names in the configuration."""
    tensors: Mapping[str, tuple[str, ...]]
    block: str
    """What stands before a block's number."""
    layer_norm: bool = False
    """Whether norms take the mean away."""
    post: bool = False
    """Whether norms stand on the residual stream itself."""
    rotary: bool = False
    free_head_dim: bool = False
    """Whether a head's channels are a size of their own, instead of hidden / heads."""

    @cached_property
    def _number(self) -> re.Pattern[str]:
        return re.compile(rf"^({re.escape(self.block)})(\d+)(\..*)$")

    def place(self, name: str) -> tuple[str, int | None]:
        """A tensor's name in the table, and the number of its block."""
        found = self._number.match(name)
        return (f"{found[1]}*{found[3]}", int(found[2])) if found else (name, None)

    def name(self, place: str, block: int | None) -> str:
        """The tensor's name."""
        return place if block is None else place.replace("*", str(block), 1)

    def axes(self, place: str) -> tuple[str, ...]:
        """A tensor's axes.

        Raises ModelError for a tensor that this architecture should not have.
        """
        if place not in self.tensors:
            raise ModelError(f"growth does not know the tensor {place}; the model is no ordinary one of its family")
        return self.tensors[place]

    def sizes(self, config: Any) -> Sizes:
        """A configuration's sizes."""
        known = {name: getattr(config, key) for name, key in self.keys.items()}
        hidden, heads = int(known["hidden"]), int(known["heads"])
        own_head_dim = getattr(config, "head_dim", None) if self.free_head_dim else None
        return Sizes(
            hidden=hidden,
            layers=int(known["layers"]),
            heads=heads,
            kv_heads=int(known.get("kv_heads") or heads),
            head_dim=int(own_head_dim or hidden // heads),
            feed_forward=int(known["feed_forward"] or 4 * hidden),
        )

    def options(self, sizes: Sizes) -> dict[str, int]:
        """Sizes as a configuration names them."""
        found = {key: getattr(sizes, name) for name, key in self.keys.items()}
        return found | ({"head_dim": sizes.head_dim} if self.free_head_dim else {})


def family_of(config: Any) -> Family:
    """The architecture of a configuration.

    Raises ModelError for one that cannot be grown.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise ModelError(f"models of the kind {kind} cannot be grown; there are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind]


def _table(text: str) -> dict[str, tuple[str, ...]]:
    rows = (line.split() for line in text.splitlines() if line.strip())
    return {name: tuple(axes) for name, *axes in rows}


_LLAMA = Family(
    keys={
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "feed_forward": "intermediate_size",
    },
    block="model.layers.",
    rotary=True,
    free_head_dim=True,
    tensors=_table(
        """
        model.embed_tokens.weight                           vocab hidden
        model.layers.*.input_layernorm.weight               gain
        model.layers.*.post_attention_layernorm.weight      gain
        model.layers.*.self_attn.q_proj.weight              query stream
        model.layers.*.self_attn.q_proj.bias                query
        model.layers.*.self_attn.k_proj.weight              key stream
        model.layers.*.self_attn.k_proj.bias                key
        model.layers.*.self_attn.v_proj.weight              value stream
        model.layers.*.self_attn.v_proj.bias                value
        model.layers.*.self_attn.o_proj.weight              hidden mixed
        model.layers.*.self_attn.o_proj.bias                hidden
        model.layers.*.self_attn.q_norm.weight              head
        model.layers.*.self_attn.k_norm.weight              head
        model.layers.*.mlp.gate_proj.weight                 inner stream
        model.layers.*.mlp.gate_proj.bias                   inner
        model.layers.*.mlp.up_proj.weight                   inner stream
        model.layers.*.mlp.up_proj.bias                     inner
        model.layers.*.mlp.down_proj.weight                 hidden outer
        model.layers.*.mlp.down_proj.bias                   hidden
        model.norm.weight                                   final
        lm_head.weight                                      vocab readout
        """
    ),
)

_GPT2 = Family(  # its matrices stand as [in, out]
    keys={"hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "feed_forward": "n_inner"},
    block="transformer.h.",
    layer_norm=True,
    tensors=_table(
        """
        transformer.wte.weight                  vocab hidden
        transformer.wpe.weight                  position hidden
        transformer.h.*.ln_1.weight             gain
        transformer.h.*.ln_1.bias               shift
        transformer.h.*.attn.c_attn.weight      stream query+key+value
        transformer.h.*.attn.c_attn.bias        query+key+value
        transformer.h.*.attn.c_proj.weight      mixed hidden
        transformer.h.*.attn.c_proj.bias        hidden
        transformer.h.*.ln_2.weight             gain
        transformer.h.*.ln_2.bias               shift
        transformer.h.*.mlp.c_fc.weight         stream inner
        transformer.h.*.mlp.c_fc.bias           inner
        transformer.h.*.mlp.c_proj.weight       outer hidden
        transformer.h.*.mlp.c_proj.bias         hidden
        transformer.ln_f.weight                 final
        transformer.ln_f.bias                   final_shift
        lm_head.weight                          vocab readout
        """
    ),
)

_BLOCKS_OF_BERT = """
    {0}.embeddings.word_embeddings.weight                       vocab hidden
    {0}.embeddings.position_embeddings.weight                   position hidden
    {0}.embeddings.token_type_embeddings.weight                 kind hidden
    {0}.embeddings.LayerNorm.weight                             gain
    {0}.embeddings.LayerNorm.bias                               shift
    {0}.encoder.layer.*.attention.self.query.weight             query stream
    {0}.encoder.layer.*.attention.self.query.bias               query
    {0}.encoder.layer.*.attention.self.key.weight               key stream
    {0}.encoder.layer.*.attention.self.key.bias                 key
    {0}.encoder.layer.*.attention.self.value.weight             value stream
    {0}.encoder.layer.*.attention.self.value.bias               value
    {0}.encoder.layer.*.attention.output.dense.weight           hidden mixed
    {0}.encoder.layer.*.attention.output.dense.bias             hidden
    {0}.encoder.layer.*.attention.output.LayerNorm.weight       gain
    {0}.encoder.layer.*.attention.output.LayerNorm.bias         shift
    {0}.encoder.layer.*.intermediate.dense.weight               inner stream
    {0}.encoder.layer.*.intermediate.dense.bias                 inner
    {0}.encoder.layer.*.output.dense.weight                     hidden outer
    {0}.encoder.layer.*.output.dense.bias                       hidden
    {0}.encoder.layer.*.output.LayerNorm.weight                 gain
    {0}.encoder.layer.*.output.LayerNorm.bias                   shift
    """

_BERT = Family(
    keys={
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
    },
    block="bert.encoder.layer.",
    layer_norm=True,
    post=True,
    tensors=_table(
        _BLOCKS_OF_BERT.format("bert")
        + """
        cls.predictions.transform.dense.weight          features stream
        cls.predictions.transform.dense.bias            features
        cls.predictions.transform.LayerNorm.weight      final
        cls.predictions.transform.LayerNorm.bias        final_shift
        cls.predictions.decoder.weight                  vocab readout
        cls.predictions.decoder.bias                    vocab
        cls.predictions.bias                            vocab
        """
    ),
)

_ROBERTA = replace(
    _BERT,
    block="roberta.encoder.layer.",
    tensors=_table(
        _BLOCKS_OF_BERT.format("roberta")
        + """
        lm_head.dense.weight            features stream
        lm_head.dense.bias              features
        lm_head.layer_norm.weight       final
        lm_head.layer_norm.bias         final_shift
        lm_head.decoder.weight          vocab readout
        lm_head.decoder.bias            vocab
        lm_head.bias                    vocab
        """
    ),
)

FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
    "bert": _BERT,
    "roberta": _ROBERTA,
}
