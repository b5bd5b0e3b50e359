"""Tokenizers: trained here or loaded, and the few facts about them that training depends on."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from ..recipe import LEAST_VOCAB
from ..types import Doc, ModelError

CAUSAL_SPECIALS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
MASKED_SPECIALS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
    "bos_token": "<s>",
    "eos_token": "</s>",
}


PROMPT = re.compile(r"<\|source:(.*)\|>", re.DOTALL)
"""A source's own token."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and what we ask of it. `begin` and `end` stand around every document."""

    tokenizer: Any
    begin: int
    end: int
    mask: int | None

    @property
    def size(self) -> int:
        """Number of ids that the tokenizer knows (models may have more rows, as padding)."""
        return len(self.tokenizer)

    @cached_property
    def special(self) -> tuple[int, ...]:
        """Ids that stand for no text."""
        return tuple(sorted({*self.tokenizer.all_special_ids, *self.prompts.values()}))

    @cached_property
    def prompts(self) -> dict[str, int]:
        """The sources that have a token of their own, and its id."""
        found = ((PROMPT.fullmatch(text), id_) for text, id_ in self.tokenizer.get_added_vocab().items())
        return {match[1]: id_ for match, id_ in found if match}

    @cached_property
    def identity(self) -> str:
        """Hash of the map from id to string and of how text is cut: equal means that losses mean the same.

        Prompts are not in it: they are no text.
        """
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts = [backend.get(key) for key in ("normalizer", "pre_tokenizer", "model")]
        parts.append([token for token in backend.get("added_tokens", ()) if not PROMPT.fullmatch(token["content"])])
        strings = _hash({text: id_ for text, id_ in self.tokenizer.get_vocab().items() if not PROMPT.fullmatch(text)})
        return hashlib.blake2b(json.dumps([parts, strings], sort_keys=True).encode(), digest_size=10).hexdigest()

    @cached_property
    def strings(self) -> str:
        """Hash of the map from id to string alone, prompts among them: equal means that a model knows every id."""
        return _hash(self.tokenizer.get_vocab())

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens; special strings inside a text are ordinary text."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _hash(vocabulary: Mapping[str, int]) -> str:
    ids = sorted((id_, text) for text, id_ in vocabulary.items())
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=10).hexdigest()


def load(path: str) -> Vocabulary:
    """The tokenizer in a folder or on a hub.

    Raises ModelError when there is none that we can use.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"cannot load a tokenizer from {path} ({_first(error)}); give a folder that holds tokenizer.json"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer in {path} has no tokenizer.json; convert it with transformers' fast tokenizers first"
        )
    return vocabulary(tokenizer, path)


def vocabulary(tokenizer: Any, where: str) -> Vocabulary:
    """A transformers tokenizer with its document borders found."""
    begin = _first_id(tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    end = _first_id(tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    if begin is None or end is None:
        raise ModelError(
            f"the tokenizer in {where} has no BOS, EOS, CLS or SEP token to mark a document's border; "
            "add an eos_token to it"
        )
    return Vocabulary(tokenizer, begin, end, tokenizer.mask_token_id)


def prompted(vocabulary: Vocabulary, sources: Iterable[str]) -> Vocabulary:
    """The same with a token for every source that lacks one."""
    from tokenizers import AddedToken

    own = [
        AddedToken(f"<|source:{s}|>", special=True, normalized=False) for s in sources if s not in vocabulary.prompts
    ]
    tokenizer = copy.deepcopy(vocabulary.tokenizer)
    tokenizer.add_tokens(own, special_tokens=True)
    return replace(vocabulary, tokenizer=tokenizer)


def _first_id(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def train(streams: Iterable[Iterable[Doc]], vocab: int, sample_bytes: int, objective: str) -> Any:
    """A byte-level BPE tokenizer of `vocab` ids (special tokens included), as transformers knows it.

    Byte level, so that no text is unknown and every token has a length in bytes. Reads at most `sample_bytes` of each stream.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = CAUSAL_SPECIALS if objective == "causal" else MASKED_SPECIALS
    unique = list(dict.fromkeys(specials.values()))
    assert vocab >= LEAST_VOCAB[objective] == 256 + len(unique)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=unique,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain.from_iterable(_sample(s, sample_bytes) for s in streams), trainer)
    if objective == "masked":
        begin, end = (tokenizer.token_to_id(specials[k]) for k in ("cls_token", "sep_token"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **specials
    )


def _sample(docs: Iterable[Doc], limit: int) -> Iterator[str]:
    read = 0
    for doc in docs:
        yield doc.text
        read += len(doc.text.encode())
        if read >= limit:
            return


def saved(tokenizer: Any) -> dict[str, bytes]:
    """The files of a tokenizer as transformers reads them. (Its own writer cannot say that a disk is full.)"""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
