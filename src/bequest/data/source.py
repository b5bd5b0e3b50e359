"""Where documents come from: files that we read with line numbers, everything else through `datasets`.

A jsonl line, a csv or parquet row and a small text file are one document each. A text file of more than 64 KiB is cut
at blank lines into documents of about that size, so that no file has to fit into memory.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..recipe import Text
from ..types import DataError, Doc

FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv"}
PACKED = (".gz", ".zst")
PIECE = 1 << 16
WHOLE = (0.0, 1.0)


def documents(text: Text, keep: Callable[[str], bool] | None = None) -> Iterator[Doc]:
    """The documents of one source, in a fixed order; empty ones, those of another part, and those that `keep` refuses are left out.

    Raises DataError with file and line when something cannot be read.
    """
    texts = _from_hub(text) if text.hub else (t for path in files(text) for t in _from_file(path, text))
    low, high = text.part
    for one in texts:
        inside = text.part == WHOLE or low <= _chance(one, b"part") < high
        if one.strip() and inside and (keep is None or keep(one)):
            yield Doc(one, text.source)


def files(text: Text) -> list[Path]:
    """The files that a source names, sorted. A folder stands for all files in it that we can read."""
    path = Path(os.path.expanduser(text.path))
    if path.is_dir():
        found = sorted(p for p in _inside(path) if p.is_file() and _format(p))
    elif any(c in text.path for c in "*?["):
        found = sorted(p for name in glob.glob(str(path), recursive=True) if (p := Path(name)).is_file())
    else:
        found = [path] if path.exists() else []
        if found and not path.is_file():
            raise DataError(f"{path} is neither a file nor a folder; give one of those, or a glob")
    if not found:
        raise DataError(
            f"no text at {text.path}; "
            f"give a file, a folder with {', '.join(FORMATS)} files (also .gz, .zst), or a glob that matches some"
        )
    return found


def _inside(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read the folder {error.filename} ({error.strerror}); change its permissions or leave it out"
        )

    for root, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(root) / name for name in names)


def identity(text: Text) -> dict[str, Any]:
    """What tells one state of a source from another without reading it: names, sizes and times of change."""
    part = {} if text.part == WHOLE else {"part": text.part}
    if text.hub:
        return {"hub": text.hub, "split": text.split, "field": text.field} | part
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files(text)]
    return {"files": stats, "field": text.field, "format": text.format} | part


def size(text: Text) -> int:
    """Bytes on disk, 0 when unknown: for progress only."""
    return 0 if text.hub else sum(p.stat().st_size for p in files(text))


def in_valid(fraction: float) -> Callable[[str], bool]:
    """Whether a document belongs to the validation share; a function of its text alone."""

    return lambda text: _chance(text) < fraction


def _chance(text: str, person: bytes = b"") -> float:
    """A number in 0 to 1 that depends on a text alone; another one for each `person`."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "little") / 2**64


def _format(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in PACKED]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _from_file(path: Path, text: Text) -> Iterator[str]:
    kind = _format(path) if text.format == "auto" else text.format
    match kind:
        case "jsonl":
            return _from_jsonl(path, text.field)
        case "text":
            return _from_text(path)
        case "parquet" | "csv":
            return _from_table(path, kind, text.field)
    raise DataError(f"{path}: cannot tell what kind of file this is; say format: text, jsonl, parquet or csv")


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: reading .zst needs an extra package; run pip install 'bequest[zstd]'") from None
        return io.BufferedReader(_Unzstd(path.open("rb"), zstandard.ZstdDecompressor()), 1 << 20)
    return path.open("rb")


class _Unzstd(io.RawIOBase):
    """What a .zst file holds, all its frames. (zstandard's own reader is silent about a file that breaks off.)"""

    def __init__(self, file: IO[bytes], zstd: Any) -> None:
        self.file, self.zstd = file, zstd
        self.frame: Any = None
        self.rest, self.found = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.found:
            chunk = self.rest or self.file.read(1 << 14)
            if not chunk and self.frame:
                raise EOFError("the last frame is not whole")
            if not chunk:
                return 0
            self.frame = self.frame or self.zstd.decompressobj()
            self.found = memoryview(self.frame.decompress(chunk))
            self.rest = self.frame.unused_data
            self.frame = None if self.frame.eof else self.frame
        count = min(len(buffer), len(self.found))
        buffer[:count], self.found = self.found[:count], self.found[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded; every way of not being readable becomes one sentence with the place."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} line {number}: not UTF-8 text (byte {error.start}); convert the file to UTF-8"
        ) from None
    except _damage(path) as error:
        raise DataError(
            f"{path}: the compressed file breaks off or is damaged after line {number} ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; check the path and that it can be read") from None


def _damage(path: Path) -> tuple[type[Exception], ...]:
    """What a decompressor raises over a file that is not whole."""
    if path.suffix.lower() == ".zst":
        import zstandard

        return (EOFError, zstandard.ZstdError)
    return (EOFError, gzip.BadGzipFile, zlib.error)


def _from_jsonl(path: Path, field: str) -> Iterator[str]:
    return (found[field] for _, found in _objects(path, field))


def labelled(path: Path) -> Iterator[tuple[str, str]]:
    """Texts and their labels, from the lines of a jsonl file that have `text` and `label`.

    Raises DataError with file and line when something cannot be read.
    """
    for number, found in _objects(path, "text"):
        label = found.get("label")
        if not isinstance(label, str | int):
            raise DataError(
                f'{path} line {number}: no label; every line must be an object such as {{"text": "...", "label": "..."}}'
            )
        yield found["text"], str(label)


def _objects(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a jsonl file by their numbers, those that are not blank; each has text under `field`."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: not JSON, or a number of thousands of digits
            raise DataError(
                f'{path} line {number}: not JSON; every line must be an object such as {{"{field}": "..."}}'
            ) from None
        if not isinstance(found, dict) or not isinstance(found.get(field), str):
            raise DataError(f"{path} line {number}: {_instead(found, field)}")
        try:
            found[field].encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{path} line {number}: half a surrogate pair is not text; mend or drop that line"
            ) from None
        yield number, found


def _instead(found: Any, field: str) -> str:
    """What stands where the text should be."""
    if not isinstance(found, dict):
        return f'not an object; each line is one such as {{"{field}": "..."}}'
    if field in found:
        return f"the value under {field!r} is {json.dumps(found[field])[:40]}, not text; mend or drop that line"
    keys = f"its keys are {', '.join(map(str, found))}" if found else "it has no keys"
    return f"no text under the key {field!r} ({keys}); name the right key with field:"


def _from_text(path: Path) -> Iterator[str]:
    piece: list[str] = []
    length = 0
    for number, line in _lines(path):
        if "\0" in line:
            raise DataError(f"{path} line {number}: binary data, not text; leave the file out")
        piece.append(line)
        length += len(line)
        if length >= PIECE and not line.strip():
            yield "".join(piece)
            piece, length = [], 0
    yield "".join(piece)


def _from_table(path: Path, kind: str, field: str) -> Iterator[str]:
    from datasets import load_dataset

    return _column(lambda: load_dataset(kind, data_files=str(path), split="train", streaming=True), field, str(path))


def _from_hub(text: Text) -> Iterator[str]:
    from datasets import load_dataset

    return _column(lambda: load_dataset(text.hub, split=text.split, streaming=True), text.field, text.hub)


def _column(load: Callable[[], Any], field: str, where: str) -> Iterator[str]:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    number = 0
    try:
        for number, row in enumerate(load(), 1):
            if not isinstance(row.get(field), str):
                raise DataError(
                    f"{where} row {number}: no text in the column {field!r} (there are {', '.join(row)}); "
                    "name the right one with field:"
                )
            yield row[field]
    except (DatasetGenerationError, DatasetNotFoundError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{where}: cannot be read after row {number} ({first}); check the name, the split and the file"
        ) from None
