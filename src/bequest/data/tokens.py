"""The token store: every document of a source tokenised once, end to end in one memory-mapped file.

A store belongs to one (text, tokenizer) pair. Documents are appended in pieces; after each piece the files are flushed
and `progress.json` is replaced, so that a killed run goes on from the last piece. Nothing is ever held in memory but
one piece. A store's identity for training is `digest`, a hash of its tokens, not of where the text lies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..files import locked, replace_text
from ..types import DataError, Doc
from .tokenizer import Vocabulary

FORMAT = 3
"""Of the files: stores of another format are other stores."""
PIECE_BYTES = 4 << 20
Progress = Callable[[int], None]
"""Called with the bytes of text tokenised since the last call."""


@dataclass(frozen=True)
class _Done:
    """How far a store is written; also its manifest when `complete`."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    digest: str = ""
    complete: bool = False
    width: int = 0


@dataclass(frozen=True)
class TokenStore:
    """One source's tokens. `ends[d]` is where document d stops, `text_bytes[d]` the size of documents 0..d in UTF-8."""

    source: str
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    """Of each document's text."""
    digest: str

    def first(self, tokens: int) -> TokenStore:
        """Whole documents from the start, the fewest that hold `tokens` tokens (all, if there are not so many)."""
        documents = min(int(np.searchsorted(self.ends, tokens)) + 1, len(self.ends))
        digest = f"{self.digest}:{documents}" if documents < len(self.ends) else self.digest
        return TokenStore(
            self.source,
            self.tokens[: self.ends[documents - 1]],
            self.ends[:documents],
            self.text_bytes[:documents],
            self.hashes[:documents],
            digest,
        )


def build(
    folder: Path,
    source: str,
    docs: Callable[[], Iterable[Doc]],
    vocabulary: Vocabulary,
    progress: Progress | None = None,
    nothing: str = "",
) -> TokenStore:
    """The store in `folder`, written first where it is missing or unfinished; `nothing` is what to say when it holds none.

    Raises DataError when the source holds no document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", wait=True):
        done = _done(folder)
        if not done.complete:
            done = _write(folder, done, docs(), vocabulary, progress)
    if not done.documents:
        raise DataError(nothing or f"the source {source!r} holds no document with text in it")
    return _open(folder, source, done)


def _done(folder: Path) -> _Done:
    try:
        done = _Done(**json.loads((folder / "progress.json").read_text()))
    except FileNotFoundError:
        return _Done()
    except (ValueError, TypeError):
        raise DataError(_damaged(folder, "progress.json")) from None
    if [type(value) for value in astuple(done)] != [type(value) for value in astuple(_Done())]:
        raise DataError(_damaged(folder, "progress.json"))
    return done


def _damaged(folder: Path, name: str) -> str:
    return f"the token store {folder} is damaged ({name}); delete that folder and run again"


def _open(folder: Path, source: str, done: _Done) -> TokenStore:
    dtype: Any = np.uint16 if done.width == 2 else np.uint32
    for name, width, count in (
        ("tokens", done.width, done.tokens),
        ("ends", 8, done.documents),
        ("bytes", 8, done.documents),
        ("hashes", 8, done.documents),
    ):
        if (folder / name).stat().st_size != width * count:
            raise DataError(_damaged(folder, name))
    mapped: Callable[[str, Any], Any] = lambda name, kind: np.memmap(folder / name, kind, "r")
    ends, sizes, hashes = mapped("ends", np.int64), mapped("bytes", np.int64), mapped("hashes", np.uint64)
    return TokenStore(source, mapped("tokens", dtype), ends, sizes, hashes, done.digest)


def _write(folder: Path, done: _Done, docs: Iterable[Doc], vocabulary: Vocabulary, progress: Progress | None) -> _Done:
    width = 2 if vocabulary.size <= 1 << 16 else 4
    with ExitStack() as stack:
        # Whatever a killed run wrote after its last recorded piece is cut off.
        tokens, ends, sizes, hashes = (
            _reopen(stack, folder / name, length)
            for name, length in (
                ("tokens", done.tokens * width),
                ("ends", done.documents * 8),
                ("bytes", done.documents * 8),
                ("hashes", done.documents * 8),
            )
        )
        for piece in _pieces(_skip(docs, done.documents, progress)):
            ids = vocabulary.encode([d.text for d in piece])
            documents = [
                np.array([vocabulary.begin, *i, vocabulary.end], np.uint16 if width == 2 else np.uint32) for i in ids
            ]
            lengths = np.array([len(d) for d in documents], np.int64)
            bytes_each = np.array([len(d.text.encode()) for d in piece], np.int64)
            payload = np.concatenate(documents).tobytes()
            tokens.write(payload)
            ends.write((done.tokens + np.cumsum(lengths)).tobytes())
            sizes.write((done.text_bytes + np.cumsum(bytes_each)).tobytes())
            hashes.write(b"".join(hashlib.blake2b(d.text.encode(), digest_size=8).digest() for d in piece))
            for file in (tokens, ends, sizes, hashes):
                file.flush()
                os.fsync(file.fileno())
            digest = hashlib.blake2b(done.digest.encode() + payload + lengths.tobytes(), digest_size=16).hexdigest()
            done = _Done(
                done.documents + len(piece),
                done.tokens + int(lengths.sum()),
                done.text_bytes + int(bytes_each.sum()),
                digest,
                width=width,
            )
            replace_text(folder / "progress.json", json.dumps(asdict(done)))
            if progress:
                progress(int(bytes_each.sum()))
    done = _Done(**{**asdict(done), "complete": True, "width": width})
    replace_text(folder / "progress.json", json.dumps(asdict(done)))
    return done


def _reopen(stack: ExitStack, path: Path, length: int) -> IO[bytes]:
    file = stack.enter_context(path.open("ab"))
    if file.tell() < length:
        raise DataError(_damaged(path.parent, path.name))
    file.truncate(length)
    return file


def _skip(docs: Iterable[Doc], count: int, progress: Progress | None) -> Iterator[Doc]:
    for number, doc in enumerate(docs):
        if number >= count:
            yield doc
        elif progress:
            progress(len(doc.text))


def _pieces(docs: Iterable[Doc]) -> Iterator[list[Doc]]:
    piece: list[Doc] = []
    length = 0
    for doc in docs:
        piece.append(doc)
        length += len(doc.text)
        if length >= PIECE_BYTES:
            yield piece
            piece, length = [], 0
    if piece:
        yield piece
