"""A transformers language model, split once and generically into features and head.

`features` are the base model's last hidden states at the selected rows, after the head's own transform (BERT, RoBERTa);
`Head` is the product with the vocabulary that is left: weight, bias, scale, soft-cap. Students and predecessors are both
a `LanguageModel`; the loss runs inside its forward, so that wrappers around it (DDP, FSDP) see every parameter used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_layers import GradientCheckpointingLayer

from ..types import Batch, ModelError, RecipeError
from .attention import NAME as TILED
from .mask import additive, blocks, positions
from .tiled import rows_at_once


@dataclass(frozen=True)
class Head:
    """The last step to logits: soft-cap(scale * (x W^T + b))."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, features_CD: Tensor) -> Tensor:
        """fp32 logits of a chunk of rows (or in the features' own precision if that is higher)."""
        return self.finish(self.product(features_CD))

    def product(self, features_CD: Tensor) -> Tensor:
        """`x W^T` in the precision that autocast asks for."""
        dtype = self.dtype(features_CD)
        return features_CD.to(dtype) @ self.weight_VD.to(dtype).T

    def finish(self, product_CV: Tensor) -> Tensor:
        """Logits from `x W^T`, in fp32 at least; the same tensor when nothing is left to do."""
        logits_CV = product_CV.to(torch.promote_types(product_CV.dtype, torch.float32))
        if self.bias_V is not None:
            logits_CV = logits_CV + self.bias_V.to(logits_CV.dtype)
        logits_CV = logits_CV if self.scale == 1.0 else logits_CV * self.scale
        return logits_CV if self.softcap is None else self.softcap * torch.tanh(logits_CV / self.softcap)

    def bend(self, logits_CV: Tensor) -> Tensor | float:
        """The slope of `finish` where it gave these logits."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits_CV / self.softcap).square_())

    @torch.no_grad()
    def over(self, features_ND: Tensor, of: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """`of(logits, rows)` for one chunk of rows after the other, joined; N x V logits are never held."""
        step = rows_at_once(len(self.weight_VD), features_ND.device.type)
        chunks = [slice(first, first + step) for first in range(0, max(1, len(features_ND)), step)]
        return torch.cat([of(self.logits(features_ND[rows]), rows) for rows in chunks])

    def dtype(self, features_CD: Tensor) -> torch.dtype:
        """The precision of the matrix products."""
        kind = features_CD.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight_VD.dtype

    def narrow(self, vocabulary: int) -> Head:
        """The head of the first ids alone: padded rows say nothing."""
        bias_V = None if self.bias_V is None else self.bias_V[:vocabulary]
        return replace(self, weight_VD=self.weight_VD[:vocabulary], bias_V=bias_V)


class LanguageModel(nn.Module):
    """A causal or masked transformers model.

    Raises ModelError when the model's head is built in a way that `features` and `head` do not reproduce; `known` says that
    this has been found out.
    """

    def __init__(self, model: Any, known: bool = False) -> None:
        super().__init__()
        self.model = model
        self.flex = False
        """Whether FlexAttention keeps documents apart, instead of a mask of T x T numbers."""
        if model.get_output_embeddings() is None or not hasattr(model, model.base_model_prefix):
            raise ModelError(
                f"{type(model).__name__} has no language-model head that we know; use a causal or masked language model"
            )
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(TILED)
        self._freeze_unread()
        if not known:
            self._check()

    @property
    def causal(self) -> bool:
        """Whether positions see only what is before them."""
        return "MaskedLM" not in type(self.model).__name__

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def forward(self, batch: Batch) -> Tensor:
        """Features [N, D] of the batch's rows."""
        return self.features(batch)

    def compile_blocks(self) -> None:
        """Let PyTorch compile each block when it first runs; equal blocks share their code."""
        # Beyond a limit of variants (shapes, masks, training or not) blocks would run uncompiled, with other roundings, and
        # which variants came first differs when a run is resumed.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
        # What the compiler says about its own doing.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        warnings.filterwarnings("ignore", ".*Function'> should not be instantiated", DeprecationWarning)
        blocks = [m for m in self.model.base_model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for block in blocks or [self.model.base_model]:
            block.compile(dynamic=False)

    def attend_by_blocks(self) -> None:
        """Let FlexAttention keep documents apart.

        Raises ModelError for an architecture whose attention is its own, or drops.
        """
        config = self.model.config.get_text_config()
        drops = (
            getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
        )
        if config._attn_implementation != TILED or any(drops):
            raise ModelError(
                f"{type(self.model).__name__} cannot use FlexAttention, which knows the usual attention without dropout; "
                "set student.dropout to 0 or train.document_mask to dense"
            )
        self.flex = True

    def checkpoint_activations(self) -> None:
        """Keep only each block's input for the backward pass, and compute the block again there.

        Raises ModelError for an architecture that cannot.
        """
        if not self.model.supports_gradient_checkpointing:
            raise ModelError(
                f"{type(self.model).__name__} cannot compute its blocks again; set train.activation_checkpointing to false"
            )
        self.model.activation_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def differentiable_twice(self) -> Iterator[None]:
        """Within the block attention is transformers' plain one, whose gradient has a gradient; fused ones have none.

        Raises RecipeError where blocks are compiled or computed again, which has none either.
        """
        if self.model.is_activation_checkpointing or any(m._compiled_call_impl for m in self.model.modules()):
            raise RecipeError(
                "a second derivative is asked for, which compiled blocks and blocks that are computed again do not have; "
                "set train.compile and train.activation_checkpointing to false"
            )
        attention, flex = self.model.config._attn_implementation, self.flex
        self.model.set_attn_implementation("eager")
        self.flex = False
        try:
            yield
        finally:
            self.model.set_attn_implementation(attention)
            self.flex = flex

    def features(self, batch: Batch) -> Tensor:
        """What the head sees at the selected rows, [N, D]."""
        hidden_BTD = self._base(batch.tokens_BT, batch.segments_BT, batch.whole)
        return self._transform(hidden_BTD.flatten(0, 1)[batch.rows.index_N])

    def _base(self, tokens_BT: Tensor, segments_BT: Tensor, whole: bool) -> Tensor:
        arguments: dict[str, Any] = {"use_cache": False} if self.causal else {}
        if not whole or not self.causal:
            arguments["attention_mask"] = None if whole else self._mask(segments_BT)
        if not whole:
            arguments["position_ids"] = positions(segments_BT) + self._first_position
        hidden_BTD: Tensor = self.model.base_model(input_ids=tokens_BT, **arguments).last_hidden_state
        return hidden_BTD

    def _mask(self, segments_BT: Tensor) -> Tensor | BlockMask:
        if self.flex:
            return blocks(segments_BT, self.causal)
        kind = segments_BT.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else next(self.model.parameters()).dtype
        return additive(segments_BT, self.causal, dtype)

    @property
    def _first_position(self) -> int:
        """RoBERTa and its kin count positions from the padding id + 1."""
        embeddings = getattr(self.model.base_model, "embeddings", None)
        offset = hasattr(embeddings, "create_position_ids_from_input_ids")
        return int(self.model.config.pad_token_id) + 1 if offset else 0

    def _transform(self, hidden_ND: Tensor) -> Tensor:
        """What stands between the base model and the output matrix in masked models."""
        if hasattr(self.model, "cls"):  # BERT
            features_ND: Tensor = self.model.cls.predictions.transform(hidden_ND)
            return features_ND
        head: Any = getattr(self.model, "lm_head", None)
        if hasattr(head, "dense") and hasattr(head, "layer_norm"):  # RoBERTa
            hidden_ND = head.layer_norm(nn.functional.gelu(head.dense(hidden_ND)))
        return hidden_ND

    @property
    def head(self) -> Head:
        """The output matrix and what follows it."""
        output, config = self.model.get_output_embeddings(), self.model.config
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        whole = Head(output.weight, output.bias, float(scale), getattr(config, "final_logit_softcapping", None))
        # Prompts say where text is from and are no text themselves: they are the last ids, and nothing predicts them.
        prompts = getattr(config, "domain_prompts", None)
        return whole.narrow(min(prompts.values())) if prompts else whole

    def _freeze_unread(self) -> None:
        """An untied BERT or RoBERTa has a second output bias that nothing reads; DDP would wait for its gradient."""
        output = self.model.get_output_embeddings()
        around = self.model.cls.predictions if hasattr(self.model, "cls") else getattr(self.model, "lm_head", output)
        bias_V = getattr(around, "bias", None)
        if bias_V is not None and bias_V is not output.bias:
            bias_V.requires_grad_(False)

    @torch.no_grad()
    def _check(self) -> None:
        """The split must give the model's own logits: tried on a few tokens, once."""
        if next(self.model.parameters()).device.type == "meta":
            return
        training = self.model.training
        self.model.eval()
        tokens_BT = torch.arange(4)[None].to(next(self.model.parameters()).device) % self.vocabulary
        own_ND = self.model(input_ids=tokens_BT).logits[0].float()
        features_ND = self._transform(self._base(tokens_BT, torch.zeros_like(tokens_BT), True)[0])
        logits_ND = self.head.logits(features_ND)
        difference = (logits_ND - own_ND[:, : logits_ND.shape[1]]).abs().max() / own_ND.abs().max().clamp_min(1e-6)
        self.model.train(training)
        if not own_ND.isfinite().all():
            raise ModelError(
                f"the weights of {self.model.name_or_path} are not all finite numbers; choose another model"
            )
        if not difference <= 2e-2:  # bf16 weights round; a wrong split is off by far more
            raise ModelError(
                f"{type(self.model).__name__} computes its logits in a way we do not know; "
                "open an issue that names this architecture"
            )
