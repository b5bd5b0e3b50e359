"""Students from sizes, and any model from a folder or a hub. safetensors only; remote code only when asked for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ..recipe import Student
from ..types import ModelError
from .language import LanguageModel

UNTRAINED_SEED = 1_762_013
"""Of an untrained predecessor's weights; any number but those that students begin from."""


def build(student: Student, vocabulary: Any, positions: int) -> LanguageModel:
    """A student with fresh weights. `vocabulary` gives the ids, `positions` the longest sequence.

    Weights are drawn from torch's global generator: seed it first.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    rows = student.vocab or vocabulary.size
    if rows < vocabulary.size:
        raise ModelError(
            f"student.vocab {rows} is less than the tokenizer's {vocabulary.size} ids; leave it out or raise it"
        )
    tokenizer = vocabulary.tokenizer
    ids = {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        student.family,
        vocab_size=rows,
        tie_word_embeddings=student.tied,
        initializer_range=spread(student.hidden),
        **ids,
        **_sizes(student, positions, tokenizer.pad_token_id or 0),
    )
    if vocabulary.prompts:
        config.domain_prompts = dict(vocabulary.prompts)
    auto = AutoModelForMaskedLM if student.family in ("bert", "roberta") else AutoModelForCausalLM
    made = auto.from_config(config)  # type: ignore[no-untyped-call]
    if vocabulary.prompts and made.can_generate():
        made.generation_config.suppress_tokens = sorted(vocabulary.prompts.values())
    return LanguageModel(made)


def spread(hidden: int) -> float:
    """Standard deviation of fresh weights, sqrt(2 / 5 hidden) (Nguyen and Salazar 2019, "small init").

    That is 0.023 at BERT's width of 768, for which transformers' fixed 0.02 was chosen.
    """
    return math.sqrt(2 / (5 * hidden))


def _sizes(student: Student, positions: int, padding: int) -> dict[str, Any]:
    """The family's own names for our sizes, with its usual multiples as defaults."""
    match student.family:
        case "llama" | "qwen3":
            return {
                "hidden_size": student.hidden,
                "num_hidden_layers": student.layers,
                "num_attention_heads": student.heads,
                "num_key_value_heads": student.kv_heads or student.heads,
                "head_dim": student.hidden // student.heads,
                "intermediate_size": student.feed_forward or -(-student.hidden * 8 // 3 // 32) * 32,
                "max_position_embeddings": positions,
                "attention_dropout": student.dropout,
            }
        case "gpt2":
            return {
                "n_embd": student.hidden,
                "n_layer": student.layers,
                "n_head": student.heads,
                "n_inner": student.feed_forward or 4 * student.hidden,
                "n_positions": positions,
                "resid_pdrop": student.dropout,
                "embd_pdrop": student.dropout,
                "attn_pdrop": student.dropout,
            }
    return {
        "hidden_size": student.hidden,
        "num_hidden_layers": student.layers,
        "num_attention_heads": student.heads,
        "intermediate_size": student.feed_forward or 4 * student.hidden,
        "hidden_dropout_prob": student.dropout,
        "attention_probs_dropout_prob": student.dropout,
        # RoBERTa counts positions from the padding id + 1.
        "max_position_embeddings": positions + (padding + 1 if student.family == "roberta" else 0),
        "type_vocab_size": 1 if student.family == "roberta" else 2,
    }


def quiet() -> None:
    """Keep transformers and datasets from telling about loading: our own sentences say enough."""
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def outline(path: str, objective: str, remote_code: bool = False) -> LanguageModel:
    """The model in a folder or on a hub without its numbers, on the device `meta`."""
    import torch

    config = config_of(path, remote_code)
    try:
        with torch.device("meta"):
            return LanguageModel(_kinds()[objective].from_config(config, trust_remote_code=remote_code))
    except _faults() as error:
        raise _useless(path, error) from None


def _kinds() -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}


def load(path: str, objective: str, remote_code: bool = False) -> LanguageModel:
    """The causal or masked language model in a folder or on a hub, in fp32.

    Raises ModelError when there is none of that kind.
    """
    import torch

    config = config_of(path, remote_code)
    check_kind(path, config, objective)
    try:
        model, report = _kinds()[objective].from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=remote_code,
            output_loading_info=True,
        )
    except _faults() as error:
        raise _useless(path, error) from None
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the model {path} lacks weights ({missing[0]} and {len(missing) - 1} more); "
            f"it is not a complete {objective} language model"
        )
    known = {_any_block(name) for name, _ in model.named_parameters()}
    if stray := sorted(name for name in report["unexpected_keys"] if _any_block(name) in known):
        raise ModelError(
            f"the model {path} has weights that its configuration knows nothing of ({stray[0]}, {len(stray)} in all); "
            "its config.json is damaged"
        )
    return LanguageModel(model)


def _any_block(name: str) -> str:
    """A weight's name without its block's number."""
    return re.sub(r"\.\d+\.", ".*.", name)


def untrained(path: str, objective: str, remote_code: bool = False) -> LanguageModel:
    """A model as large as the one in a folder or on a hub, with fresh weights, in fp32: the same ones every time.

    Torch's global generators go on as if nothing had been drawn.
    """
    import torch

    config = config_of(path, remote_code)
    check_kind(path, config, objective)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(UNTRAINED_SEED)
            model = _kinds()[objective].from_config(config, dtype=torch.float32, trust_remote_code=remote_code)
    except _faults() as error:
        raise _useless(path, error) from None
    return LanguageModel(model)


def config_of(path: str, remote_code: bool = False) -> Any:
    """A model's configuration, without its weights.

    Raises ModelError when there is none.
    """
    from transformers import AutoConfig

    if not Path(path).exists() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise ModelError(f"there is no model at {path}; check the path")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=remote_code)
    except _faults() as error:
        if not Path(path).exists():
            raise ModelError(
                f"there is no folder {path}, and no hub gave a model of that name ({_first(error)})"
            ) from None
        raise ModelError(
            f"cannot read a model from {path} ({_first(error)}); "
            "give a folder that holds config.json and model.safetensors"
        ) from None


def _faults() -> tuple[type[Exception], ...]:
    """What transformers raises over files that are damaged or make no sense."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    own = (StrictDataclassError, SafetensorError)
    return (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, *own)


def _useless(path: str, error: Exception) -> ModelError:
    return ModelError(
        f"cannot load the model {path} ({_first(error)}); give a folder that save_pretrained wrote, with all its files"
    )


def check_weights(path: str) -> None:
    """Whether a folder's weights are there and whole, without reading them; a hub id is left to the hub.

    Raises ModelError when they are not.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(path).glob("*.safetensors"))
    if Path(path).is_dir() and not files:
        raise _useless(path, FileNotFoundError("there is no model.safetensors"))
    try:
        for file in files:
            with file.open("rb"), safe_open(file, "pt"):
                pass
    except (OSError, SafetensorError) as error:
        raise _useless(path, error) from None


def check_kind(path: str, config: Any, objective: str) -> None:
    """A folder says what it was saved as; the other kind would load with a head of random weights.

    Raises ModelError when it is the other kind.
    """
    saved = str((getattr(config, "architectures", None) or [""])[0])
    wrong = {"causal": "MaskedLM", "masked": "CausalLM"}[objective]
    if wrong in saved or (objective == "masked" and saved.endswith("LMHeadModel")):
        raise ModelError(
            f"the model {path} is a {saved}, which does not fit data.objective {objective}; "
            "choose another model or objective"
        )


def objective_of(config: Any) -> str:
    """What a model was saved as: causal or masked."""
    saved = (getattr(config, "architectures", None) or [""])[0]
    return "masked" if "MaskedLM" in saved else "causal"


def positions_of(config: Any) -> int:
    """The longest sequence that a model can take, or a very large number when nothing limits it."""
    limit = getattr(config, "max_position_embeddings", None) or 1 << 30
    return int(limit) - (
        int(config.pad_token_id) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    )


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
