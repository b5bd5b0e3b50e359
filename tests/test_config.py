"""Reading, overriding and decoding recipes."""

import pytest

from bequest import config, sense
from bequest.recipe import Recipe
from bequest.types import RecipeError

GOOD = """
name: ki-small
data:
  train: [{path: a.jsonl.gz, source: wiki}]
  valid: [{path: b.jsonl.gz}]
  sequence: 256
tokenizer: {train: {vocab: 4096}}
student: {family: llama, hidden: 256, layers: 8, heads: 4}
teachers: {teacher: some/model}
method: {name: ki, start: 1.0, until: 0.32}
train: {tokens: 4e6, batch_tokens: 8_192, optimiser: {lr: 3e-3}}
"""


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


def test_the_contract(good):
    found = sense.load(good)
    assert found.train.optimiser.lr == 3e-3
    assert found.train.tokens == 4_000_000
    assert isinstance(found.train.tokens, int)
    assert found.teachers["teacher"].load == "some/model"
    assert found.method == {"name": "ki", "start": 1.0, "until": 0.32}


def test_overrides(good):
    found = sense.load(
        good,
        (
            "data.sequence=512",
            "teachers.teacher.keep=32",
            "data.train.0.source=books",
            "method.until=0.5",
            "eval.every_tokens=1000",
        ),
    )
    assert (found.data.sequence, found.teachers["teacher"].keep, found.data.train[0].source) == (512, 32, "books")
    assert (found.method["until"], found.eval.every_tokens) == (0.5, 1000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-3", 3e-3),
        ("1E5", 100_000),
        ("-2.5", -2.5),
        ("10_000", 10_000),
        (".5", 0.5),
        ("1.5e3", 1500),
        ("no", "no"),
        ("on", "on"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("null", None),
        ("'3'", "3"),
    ],
)
def test_yaml_scalars(text, value):
    found = config.parse(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sequense=3", "unknown key 'data.sequense'; did you mean 'data.sequence'"),
        ("sequence=512", "did you mean 'data.sequence'"),
        ("train.optimiser.nam=x", "did you mean 'train.optimiser.name'"),
        ("data.train.0.pth=x", "'data.train.0.pth'; did you mean 'data.train.0.path'"),
        ("teachers.teacher.keeep=1", "did you mean 'teachers.teacher.keep'"),
        ("data.sequence=text", "data.sequence must be a valid integer, not the text 'text'"),
        ("data.sequence='512'", "not the text '512'"),
        ("train.tokens=1.5", "train.tokens must be a valid integer"),
        ("train.optimiser.lr=-1", "train.optimiser.lr must be greater than 0"),
        ("train.optimiser.lr=.inf", "finite"),
        ("train.optimiser.lr=.nan", "train.optimiser.lr"),
        ("train.compile=1", "train.compile must be a valid boolean"),
        ("data.objective=caus", "data.objective must be 'causal' or 'masked'"),
        ("train=3", "train must be a mapping"),
        ("train.batch_tokens=100", "must be a multiple of data.sequence"),
        ("train.tokens=100", "less than one batch"),
        ("student.heads=3", "must be a multiple of student.heads"),
        ("student.family=bert", "does not fit data.objective causal"),
        ("student.load=x", "either family (with sizes) or load"),
        ("student.kv_heads=3", "must be a multiple of student.kv_heads"),
        ("data.valid_fraction=0.1", "exclude each other"),
        ("data.valid=[]", "nothing to validate on"),
        ("data.train=[]", "data.train is empty"),
        ("tokenizer={}", "tokenizer needs either train or load"),
        ("name=a/b", "cannot be a folder's name"),
        ("method={start: 1}", "method needs a name"),
        ("foo", "not of the form key=value"),
        ("data.train.7.path=x", "list of 1"),
        ("data.sequence.x=1", "it has no keys"),
        ("data.train=[{path: a, hub: b}]", "either path or hub"),
        ("name=[1", "override name"),
    ],
)
def test_one_sentence_for_each_mistake(good, override, words):
    with pytest.raises(RecipeError) as caught:
        sense.load(good, (override,))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "a recipe is a YAML mapping"),
        ("", "this is nothing"),
        ("a: 1\na: 2", "stands twice"),
        ("a: [1, 2", "line 1: not valid YAML"),
        ("a:\n\t- b", "not valid YAML"),
        ("name: x", "'data' is missing"),
    ],
)
def test_broken_files(tmp_path, text, words):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        sense.load(path)
    assert words in str(caught.value)
    assert "broken.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        sense.load(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        sense.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        sense.load(tmp_path / "binary.yaml")


def test_resolved_recipe_reads_back_unchanged(good, tmp_path):
    resolved = config.encode(sense.load(good))
    config.write(resolved, tmp_path / "resolved.yaml")
    assert config.read(tmp_path / "resolved.yaml") == resolved
    assert sense.load(tmp_path / "resolved.yaml") == sense.load(good)


def test_fingerprint_and_differences(good):
    one, two = (config.encode(sense.load(good, o)) for o in ((), ("data.sequence=512",)))
    assert config.fingerprint(one) == config.fingerprint(config.encode(sense.load(good)))
    assert config.fingerprint(one) != config.fingerprint(two)
    assert config.differences(one, two) == {"data.sequence": (256, 512)}


def test_decoded_configs_are_frozen(good):
    with pytest.raises(AttributeError):
        sense.load(good).train.tokens = 3
    assert isinstance(sense.load(good), Recipe)
