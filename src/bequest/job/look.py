"""A quick look at a saved model: how well it predicts some text, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import decode
from ..data import tokenizer
from ..data.batches import Batches
from ..device import place
from ..eval.held_out import HeldOut, validate
from ..model import build
from ..recipe import Recipe
from ..types import DataError, ModelError
from .models import check_model
from .prepare import find_objective, packs

SEQUENCES = 8
"""Held in memory at once."""


@dataclass(frozen=True)
class Filled:
    """What a masked model puts in one mask's place: tokens and their probabilities, likeliest first."""

    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]


def evaluate(checkpoint: str, texts: Sequence[dict[str, Any]], sequence: int) -> dict[str, dict[str, float]]:
    """Loss, perplexity and bits per byte of a model on texts, per source.

    `texts` are entries as a recipe's data.valid has them; `sequence` 0 is as long as the model allows, at most 512.
    """
    where = place("auto", "fp32")
    model = build.load(checkpoint, build.objective_of(build.config_of(checkpoint)))
    return validate(model.to(where.device), held_out(checkpoint, texts, sequence), where)


def held_out(checkpoint: str, texts: Sequence[dict[str, Any]], sequence: int, tokens: int = 0) -> dict[str, HeldOut]:
    """Texts as a model reads them, per source; arguments as `evaluate` has them, and about how many tokens are enough (0: all)."""
    config = build.config_of(checkpoint)
    positions = build.positions_of(config)
    if sequence > positions:
        raise DataError(f"{checkpoint} takes at most {positions} positions; lower --sequence from {sequence}")
    sequence = sequence or min(512, positions)
    raw = {
        "name": "eval",
        "data": {"train": texts, "valid": texts, "sequence": sequence, "objective": build.objective_of(config)},
        "tokenizer": {"load": checkpoint},
        "student": {"load": checkpoint},
        "method": {"name": "plain"},
        "train": {"tokens": sequence, "batch_tokens": sequence},
        "eval": {"tokens": tokens},
    }
    recipe, vocabulary = decode(Recipe, raw, "eval"), tokenizer.load(checkpoint)
    # A source that has a prompt gets it; one that has none is read without.
    recipe = replace(recipe, data=replace(recipe.data, prompts=bool(vocabulary.prompts)))
    check_model("the model", checkpoint, config, sequence, vocabulary)
    objective = find_objective(recipe, vocabulary)
    return {
        p.store.source: HeldOut(Batches((p,), objective, SEQUENCES, 0, ordered=True), int(p.store.text_bytes[-1]))
        for p in packs(recipe, vocabulary, objective, "valid")
    }


@torch.no_grad()
def generate(checkpoint: str, text: str, tokens: int, temperature: float, seed: int) -> str:
    """`text` and what a causal model goes on with, at most `tokens` tokens; temperature 0 takes the likeliest each time."""
    vocabulary = tokenizer.load(checkpoint)
    config = build.config_of(checkpoint)
    prompt = [vocabulary.begin, *vocabulary.encode([text])[0]]
    room = build.positions_of(config) - len(prompt)
    if room < 1:
        raise DataError(f"the text has {len(prompt) - 1} tokens, which leaves no room to go on; give a shorter text")
    model = build.load(checkpoint, "causal").model.eval()
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    torch.manual_seed(seed)
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=min(tokens, room),
        eos_token_id=vocabulary.end,
        pad_token_id=vocabulary.end,
        **sampling,
    )
    words: str = vocabulary.tokenizer.decode(found[0, 1:], skip_special_tokens=True)
    return words


@torch.no_grad()
def fill(checkpoint: str, text: str, choices: int = 5) -> tuple[str, list[Filled]]:
    """`text` with every mask filled in by a masked model's first choice, and its first choices for each."""
    vocabulary = tokenizer.load(checkpoint)
    mask = vocabulary.tokenizer.mask_token
    if mask is None:
        raise ModelError(f"the tokenizer in {checkpoint} has no mask token; give a masked language model")
    if mask not in text:
        raise DataError(f"there is nothing to fill in; put {mask} where a token is missing")
    pieces = vocabulary.encode(text.split(mask))
    ids = [vocabulary.begin, *pieces[0]]
    for piece in pieces[1:]:
        ids += [vocabulary.tokenizer.mask_token_id, *piece]
    tokens = torch.tensor([[*ids, vocabulary.end]])
    if tokens.shape[1] > build.positions_of(build.config_of(checkpoint)):
        raise DataError(f"the text has {tokens.shape[1]} tokens, more than the model can take; give a shorter text")
    logits = build.load(checkpoint, "masked").model.eval()(input_ids=tokens).logits[0]
    places = (tokens[0] == vocabulary.tokenizer.mask_token_id).nonzero()[:, 0]
    best = logits[places].softmax(-1).topk(choices)
    tokens[0, places] = best.indices[:, 0]
    decode_one = vocabulary.tokenizer.decode
    filled = [
        Filled(tuple(decode_one([i]) for i in ids), tuple(ps))
        for ids, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return decode_one(tokens[0], skip_special_tokens=True), filled


def is_masked(checkpoint: str) -> bool:
    """Whether a model folder or hub id holds a masked language model."""
    return build.objective_of(build.config_of(checkpoint)) == "masked"


def split(argument: str) -> tuple[str, str]:
    """`[source=]PATH` as source, empty unless given, and path."""
    source, equals, path = argument.partition("=")
    return (source, path) if equals and "/" not in source else ("", argument)


def text_entry(argument: str) -> dict[str, str]:
    """`[source=]PATH` as an entry of data.valid; the source is the file's name unless given."""
    source, path = split(argument)
    return {"path": path, "source": source or Path(path).name.split(".")[0] or "text"}
