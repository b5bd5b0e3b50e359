"""Readers of text, with the place named when something is wrong."""

import gzip
import json

import pytest
from conftest import sentences, write_jsonl

from bequest.data import source
from bequest.recipe import Text
from bequest.types import DataError

TEXTS = sentences(4, 12)


def read(path, **more):
    return [d.text for d in source.documents(Text(path=str(path), **more))]


def test_jsonl_plain_gz_zst(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    plain = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    assert read(plain) == read(tmp_path / "b.jsonl.gz") == read(tmp_path / "c.jsonl.zst") == TEXTS
    assert read(tmp_path) == 3 * TEXTS
    assert read(tmp_path / "*.jsonl*") == 3 * TEXTS


def test_text_files_are_documents(tmp_path):
    for name, text in (("one.txt", "first"), ("two.md", "second"), ("three.rst", "not read")):
        (tmp_path / name).write_text(text)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert read(tmp_path) == ["first", "second"]
    assert read(tmp_path / "three.rst", format="text") == ["not read"]


def test_large_text_file_is_cut_at_blank_lines(tmp_path):
    paragraphs = ["x" * 1000 + f" {i}\n\n" for i in range(2500)]
    (tmp_path / "big.txt").write_text("".join(paragraphs))
    found = read(tmp_path / "big.txt")
    assert len(found) == 38
    assert "".join(found) == "".join(paragraphs)
    assert all(t.endswith("\n\n") for t in found)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables(tmp_path, kind):
    from datasets import Dataset

    data = Dataset.from_dict({"body": TEXTS})
    getattr(data, f"to_{kind}")(tmp_path / f"t.{kind}")
    assert read(tmp_path / f"t.{kind}", field="body") == TEXTS
    with pytest.raises(DataError, match="row 1: no text in the column 'text'"):
        read(tmp_path / f"t.{kind}")


def test_hub_layout_in_a_local_folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", TEXTS)
    assert [d.text for d in source.documents(Text(hub=str(tmp_path), split="train"))] == TEXTS
    with pytest.raises(DataError, match="cannot be read"):
        list(source.documents(Text(hub=str(tmp_path), split="nothing")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a"}\nnot json\n', "line 2: not JSON"),
        (b'{"text": "a"}\n{"body": "b"}\n', "line 2: no text under the key 'text' (its keys are body)"),
        (b'{"text": "a"}\n[1]\n', "line 2: not an object"),
        (b'{"text": "a"}\n{"text": 3}\n', "line 2: the value under 'text' is 3"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8"),
        (b'{"text": "a"}\n' + b"[" * 100_000, "line 2: not JSON"),
    ],
)
def test_bad_jsonl(tmp_path, content, words):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_file_that_breaks_off(tmp_path, suffix):
    zstandard = pytest.importorskip("zstandard")
    raw = "".join(json.dumps({"text": t * 50}) + "\n" for t in sentences(5, 400)).encode()
    packed = gzip.compress(raw) if suffix == "gz" else zstandard.ZstdCompressor().compress(raw)
    path = tmp_path / f"cut.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"breaks off or is damaged|not JSON"):
        read(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match="breaks off or is damaged"):
        read(path)


def test_binary_and_missing(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"a\0b")
    with pytest.raises(DataError, match="line 1: binary data"):
        read(tmp_path / "b.txt")
    for path in (tmp_path / "missing.jsonl", tmp_path / "*.nothing", tmp_path / "empty-folder"):
        with pytest.raises(DataError, match="no text at"):
            read(path)
    (tmp_path / "x.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match="cannot tell what kind of file"):
        read(tmp_path / "x.bin")


def test_split_by_hash_depends_on_the_text_alone():
    chosen = source.in_valid(0.3)
    many = [f"{i} {t}" for i in range(100) for t in TEXTS]
    share = sum(map(chosen, many)) / len(many)
    assert 0.25 < share < 0.35
    assert [chosen(t) for t in many] == [source.in_valid(0.3)(t) for t in many]
    assert all(source.in_valid(0.6)(t) for t in many if chosen(t))


@pytest.mark.parametrize("line", [b'{"text": "a \\ud800 b"}\n', b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n"])
def test_json_that_is_no_text(tmp_path, line):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "fine \\u00e9"}\n' + line)
    with pytest.raises(DataError, match="line 2"):
        read(tmp_path / "bad.jsonl")


def test_parts_have_no_document_in_common(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", many := sentences(4, 400))
    found = [
        [doc.text for doc in source.documents(Text(path=str(path), part=part))]
        for part in ((0.0, 0.3), (0.3, 1.0), (0.0, 1.0))
    ]
    assert sorted(found[0] + found[1]) == sorted(found[2]) == sorted(many)
    assert not set(found[0]) & set(found[1])
    assert 0.2 < len(found[0]) / len(many) < 0.4
    in_valid = source.in_valid(0.3)
    assert {in_valid(text) for text in found[0]} == {True, False}  # a part says nothing about what is held out
    whole, part = (source.identity(Text(path=str(path), part=part)) for part in ((0.0, 1.0), (0.0, 0.3)))
    assert whole != part


def test_an_empty_part_is_refused(world):
    from bequest import sense
    from bequest.config import decode
    from bequest.recipe import Recipe

    raw = world.raw({"name": "plain"})
    raw["data"]["train"][0]["part"] = [0.5, 0.5]
    assert any("part [0.5, 0.5] is empty" in sentence for sentence in sense.problems(decode(Recipe, raw, "a test")))
