"""A store: what a teacher said, as a data set keyed by the content of each sequence, in shards that are there whole or not.

manifest.json       which teacher, tokenizer, packing and form; one entry per committed shard with its counts and checksums
<name>.safetensors  a shard, named after the keys of its sequences: keys [S, 16], rows [S], ends [S], checks [S] (CRC-32 of
                    each block), layout (of the ids: low, run, then the frequent ones), payload (the blocks of codec.py)
tokenizer/          the tokenizer, so that a store alone is enough to learn from

A shard is written under another name, flushed, renamed, and only then entered in the manifest. Any number of processes
may read, and any number may write: each shard is claimed by a lock while it is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .. import config
from ..config import Config, Count
from ..files import locked, replace_bytes, replace_text
from ..types import DataError, FolderError
from .codec import Codec, Entries, Octets
from .layout import Ints, Layout
from .signals import Form

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = ("keys", "rows", "ends", "checks", "layout")


class ShardEntry(Config):
    """A committed shard in the manifest."""

    name: str
    bytes: Count
    sequences: Count
    rows: Count
    kept: Count
    """Ids, over all rows."""
    rest: float
    """Mass that was not kept, summed over rows, at the first temperature."""
    nats: float
    """-log p of the realised tokens, summed over rows: the teacher's own loss."""
    flops: float
    index: Count
    """CRC-32 of everything but the payload."""
    digest: str
    """blake2b of the file."""


class Origin(Config):
    """The teacher: where it was, and what it is."""

    weights: str
    """A hash of its weights."""
    revision: str
    lineage: dict[str, Any]


class Packing(Config):
    """How text became sequences: what must be equal for a sequence to have the same answers."""

    sequence: Count
    objective: str
    documents: str
    """What a position sees."""


class Manifest(Config):
    """What a store holds."""

    format: Count
    teacher: Origin
    tokenizer: str
    packing: Packing
    form: Form
    seed: Count
    """Of the draws."""
    precision: str
    """Of the teacher's forward pass."""
    shard_tokens: Count
    shards: tuple[ShardEntry, ...] = ()

    @property
    def shard_sequences(self) -> int:
        """Of a shard that is not the last."""
        return max(1, self.shard_tokens // self.packing.sequence)

    def total(self, name: str) -> float:
        """One of the shards' counts, summed."""
        return float(sum(getattr(shard, name) for shard in self.shards))


class Store:
    """A store that is open. What other processes add is seen after `refresh`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def fingerprint(self) -> str:
        """Of what makes it this store and no other."""
        return config.fingerprint(identity(self.manifest))

    def refresh(self) -> None:
        """See what others have added."""
        self.manifest = read_manifest(self.folder)
        self.__dict__.pop("_index", None)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those keys that the store does not hold."""
        return [key for key in keys if self._index.find(key) is None]

    def sample(self, count: int) -> list[bytes]:
        """Keys of some sequences, spread over the store."""
        keys = self._index.keys
        return [key.tobytes() for key in keys[:: max(1, len(keys) // count)][:count]]

    def entries(self, key: bytes) -> Entries:
        """What was kept of the sequence with this key.

        Raises KeyError when there is none, DataError when its bytes are damaged.
        """
        shard, at = self._index.find(key) or self._lacks(key)
        first, last = (int(shard.ends[i]) if i >= 0 else 0 for i in (at - 1, at))
        block: Octets = np.asarray(shard.payload[first:last])
        if zlib.crc32(block.data) != shard.checks[at]:
            raise self.damaged(shard.name, f"sequence {at} does not match its checksum")
        try:
            return shard.codec.decode(block, int(shard.rows[at]))
        except DataError as error:
            raise self.damaged(shard.name, f"sequence {at}: {error}") from None

    def codec(self, key: bytes) -> Codec:
        """How the shard that holds a sequence was encoded."""
        return (self._index.find(key) or self._lacks(key))[0].codec

    def _lacks(self, key: bytes) -> NoReturn:
        raise KeyError(key)

    def damaged(self, shard: str, why: str) -> DataError:
        """The error that names a shard."""
        return DataError(
            f"the store {self.folder} is damaged ({shard}.safetensors: {why}); delete that file and run bequest teach again"
        )

    @cached_property
    def _index(self) -> _Index:
        return _Index([_Shard(self, entry) for entry in self.manifest.shards])

    def verify(self) -> None:
        """Read every byte.

        Raises DataError that names the first shard that is not what was written.
        """
        _ = self._index  # all shards are there, and as long as they were
        for shard in self.manifest.shards:
            path = self.folder / f"{shard.name}.safetensors"
            digest = hashlib.blake2b(digest_size=16)
            with path.open("rb") as file:
                while piece := file.read(1 << 24):
                    digest.update(piece)
            if digest.hexdigest() != shard.digest:
                raise self.damaged(shard.name, "it does not match its checksum")

    @contextmanager
    def claimed(self, name: str, wait: bool) -> Iterator[bool]:
        """Hold a shard that is to be made; gives False when another process does (never with `wait`)."""
        with (self.folder / "claims").open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, int(name[:7], 16))
            except BlockingIOError:
                yield False
                return
            yield True

    def commit(
        self,
        name: str,
        keys: Sequence[bytes],
        rows: Sequence[int],
        layout: Layout,
        blocks: Sequence[bytes],
        **counts: Any,
    ) -> None:
        """Write a shard and enter it in the manifest."""
        from safetensors.numpy import save

        tensors: dict[str, npt.NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
            "rows": np.array(rows, np.int32),
            "ends": np.cumsum([len(block) for block in blocks], dtype=np.int64),
            "checks": np.array([zlib.crc32(block) for block in blocks], np.uint32),
            "layout": np.array([layout.low, layout.run, *layout.frequent], np.int32),
            "payload": np.frombuffer(b"".join(blocks), np.uint8),
        }
        content = save(tensors)
        replace_bytes(self.folder / f"{name}.safetensors", content)
        entry = ShardEntry(
            name=name,
            bytes=len(content),
            sequences=len(keys),
            rows=sum(rows),
            index=_crc(tensors),
            digest=hashlib.blake2b(content, digest_size=16).hexdigest(),
            **counts,
        )
        with locked(self.folder / "lock", wait=True):
            others = [shard for shard in read_manifest(self.folder).shards if shard.name != name]
            shards = tuple(sorted([*others, entry], key=lambda shard: shard.name))
            _write_manifest(self.folder, replace(self.manifest, shards=shards))
        self.refresh()


class _Shard:
    """A shard's index in memory; its payload stays on disk."""

    def __init__(self, store: Store, entry: ShardEntry) -> None:
        from safetensors import SafetensorError, safe_open

        self.name = entry.name
        path = store.folder / f"{entry.name}.safetensors"
        try:
            if path.stat().st_size != entry.bytes:
                raise store.damaged(entry.name, f"{path.stat().st_size} bytes instead of {entry.bytes}")
            file: Any = safe_open(path, "np")
            found: dict[str, Any] = {name: file.get_tensor(name) for name in INDEX}
            self.payload: Any = file.get_slice("payload")
        except FileNotFoundError:
            raise DataError(f"the store {store.folder} lacks {path.name}; bequest teach makes it again") from None
        except SafetensorError as error:
            raise store.damaged(entry.name, str(error)) from None
        if _crc(found) != entry.index:
            raise store.damaged(entry.name, "its index does not match its checksum")
        self.keys, self.rows, self.ends, self.checks = (found[name] for name in INDEX[:-1])
        low, run, *frequent = found["layout"].tolist()
        form = store.manifest.form
        self.codec = form.codec(Layout(form.vocabulary, low, run, tuple(frequent)))


class _Index:
    """From a key to a shard and a place in it: the first eight bytes are searched for, the whole is compared."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self.shards = shards
        self.keys = np.concatenate([np.zeros((0, 16), np.uint8), *(shard.keys for shard in shards)])
        self._starts: Ints = np.cumsum([0, *(len(shard.keys) for shard in shards)])
        heads = self.keys[:, :8].copy().view("<u8")[:, 0]
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]

    def find(self, key: bytes) -> tuple[_Shard, int] | None:
        head = np.uint64(int.from_bytes(key[:8], "little"))
        for at in range(int(np.searchsorted(self._heads, head)), len(self._heads)):
            if self._heads[at] != head:
                break
            place = int(self._order[at])
            if self.keys[place].tobytes() == key:
                shard = int(np.searchsorted(self._starts, place, side="right")) - 1
                return self.shards[shard], place - int(self._starts[shard])
        return None


def _crc(tensors: Mapping[str, npt.NDArray[Any]]) -> int:
    found = 0
    for name in INDEX:
        found = zlib.crc32(np.ascontiguousarray(tensors[name]).data, found)
    return found


def exists(folder: Path) -> bool:
    """Whether there is a store."""
    return (folder / MANIFEST).is_file()


def open_store(folder: Path) -> Store:
    """The store in a folder.

    Raises FolderError when there is none, DataError when its manifest is not what was written.
    """
    return Store(folder, read_manifest(folder))


def create(folder: Path, manifest: Manifest, tokenizer: Mapping[str, bytes]) -> Store:
    """The store in a folder, made where there is none; shards that are not there any more are struck off.

    Raises FolderError that names the field when it is another store, or says why the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise FolderError(f"cannot use {folder} as a store ({error.strerror}); name another folder") from None
    with locked(folder / "lock", wait=True):
        if exists(folder):
            store = open_store(folder)
            require(store, identity(manifest))
            whole = tuple(s for s in store.manifest.shards if _size(folder / f"{s.name}.safetensors") == s.bytes)
            manifest = replace(store.manifest, shards=whole)
        else:
            (folder / "tokenizer").mkdir(exist_ok=True)
            for name, content in tokenizer.items():
                replace_bytes(folder / "tokenizer" / name, content)
        _write_manifest(folder, manifest)
    return Store(folder, manifest)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def identity(manifest: Manifest) -> dict[str, Any]:
    """What makes it this store and no other."""
    found = config.encode(manifest)
    del found["shards"], found["teacher"]["lineage"], found["teacher"]["revision"]
    return found


def require(store: Store, wanted: Mapping[str, Any]) -> None:
    """Raises FolderError that names the first field in which a store is not what is wanted; fields not named are free."""
    held = identity(store.manifest)
    for key, (there, here) in config.differences({name: held[name] for name in wanted}, dict(wanted)).items():
        raise FolderError(
            f"the store {store.folder} is another one: its {key} is {there!r}, and here it is {here!r}; "
            "name another store, or harvest this one again in another folder"
        )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    plain = config.encode(manifest)
    replace_text(folder / MANIFEST, json.dumps(plain | {"seal": config.fingerprint(plain)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises FolderError when there is none, DataError when it is not what was written.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise FolderError(f"there is no store in {folder}; bequest teach RECIPE makes one") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.pop("seal", "") != config.fingerprint(found):
        raise DataError(
            f"{path} is damaged or was changed by hand; restore it, or delete the store and harvest it again"
        )
    if found.get("format") != FORMAT:
        raise DataError(f"{path} has format {found.get('format')}, and this Bequest reads format {FORMAT}; update it")
    return config.decode(Manifest, found, str(path))
