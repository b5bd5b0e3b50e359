"""A teacher behind a server, against a server that answers as vLLM does and has the same model."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from bequest import sense
from bequest.config import decode
from bequest.data.batches import _collate
from bequest.data.objective import Causal
from bequest.job.teach import teach
from bequest.model import build
from bequest.recipe import Recipe
from bequest.teach import server
from bequest.teach.codec import Entries
from bequest.teach.server import connect, kept, questions
from bequest.teach.signals import Form, entries
from bequest.types import ModelError, RecipeError


class Vllm:
    """What vLLM does, in small. `padding` are logits of rows that the tokenizer does not know."""

    def __init__(self, model, allowed=1000, padding=()):
        self.model, self.allowed, self.padding = model, allowed, torch.tensor(padding)
        self.models = [{"id": "teacher", "root": "somewhere", "max_model_len": 66}]
        self.prompts, self.bodies, self.busy, self.key = [], [], 0, None
        self.spoil = lambda answer: answer
        self.lock = threading.Lock()

    @torch.no_grad()
    def complete(self, body):
        keep, prompt = body["prompt_logprobs"], body["prompt"]
        if keep > self.allowed:
            message = f"Requested prompt logprobs of {keep}, which is greater than max allowed: {self.allowed}"
            return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
        logits = self.model(torch.tensor([prompt])).logits[0]
        logits = torch.cat([logits, self.padding.expand(len(logits), -1)], 1)
        found = [None]
        for logp, token in zip(logits.log_softmax(-1), prompt[1:], strict=False):
            values, ids = logp.topk(keep)
            rank = int((logp >= logp[token]).sum())
            entry = {str(token): {"logprob": float(logp[token]), "rank": rank, "decoded_token": "?"}}
            for place, (i, value) in enumerate(zip(ids.tolist(), values.tolist(), strict=True), 1):
                entry[str(i)] = {"logprob": value, "rank": place, "decoded_token": "?"}
            found.append(entry)
        return 200, self.spoil({"choices": [{"index": 0, "text": "?", "prompt_logprobs": found}]})

    def answer(self, path, body, key):
        if self.key and key != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if self.busy:
            self.busy -= 1
            return 503, {}
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.models}
        self.prompts.append(body["prompt"])
        self.bodies.append(body)
        return self.complete(body) if body["model"] == self.models[0]["id"] else (404, {"error": {"message": "which?"}})


@contextmanager
def serving(vllm):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with vllm.lock:
                status, found = vllm.answer(self.path, json.loads(body or "null"), self.headers.get("Authorization"))
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(server, "WAITS", (0.0, 0.0))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def model(world):
    return build.load(world.teacher["causal"], "causal").eval()


@pytest.fixture
def vllm(model):
    return Vllm(model.model)


LENGTHS = [(5, 1, 12, 15), (33,), (32, 1), (3, 27)]
"""Of the documents of each window of 33 tokens: what a last row asks about stands behind the 32; 30 leave padding."""


@pytest.fixture(scope="module")
def windows(vocabulary):
    generator = np.random.default_rng(0)
    found = []
    for lengths in LENGTHS:
        segments = np.full(33, -1)
        segments[: sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
        found.append((generator.integers(5, vocabulary.size, 33), segments))
    return found


@pytest.fixture
def batch(windows):
    return _collate([Causal()(*window, None) for window in windows], ("a",) * 4, (b"",) * 4)


def form(vocabulary, keep=8, top_p=1.0):
    return Form(
        kind="topk", vocabulary=vocabulary.size, keep=keep, top_p=top_p, draws=0, temperatures=(1.0,), values="fp32"
    )


def ask(vllm, model, batch, wanted):
    with serving(vllm) as url:
        teacher = connect(f"{url}/v1/", "somewhere", model, 32)
        try:
            return teacher.ask(batch, wanted, 0)
        finally:
            teacher.release()


@torch.no_grad()
def live(model, batch, wanted) -> Entries:
    logits_NV = model.head.narrow(wanted.vocabulary).logits(model(batch))
    return entries(logits_NV, batch.rows.target_N, wanted, None)


def assert_same(one: Entries, two: Entries, atol=1e-5):
    assert (one.sizes_R == two.sizes_R).all()
    assert (one.ids_E == two.ids_E).all()
    np.testing.assert_allclose(one.values_E, two.values_E, atol=atol)
    np.testing.assert_allclose(one.scalars_RS, two.scalars_RS, atol=10 * atol)
    assert [a.dtype for a in (one.values_E, one.scalars_RS)] == [np.float32] * 2


def raw(world, url, store, **changes):
    changes = {"teach": {"kind": "topk", "keep": 8, "values": "fp32"}, "train__tokens": 512} | changes
    spec = {"load": world.teacher["causal"], "store": str(store)} | ({"server": url} if url else {})
    return world.raw({"name": "ki"}, teachers={"teacher": spec}, **changes)


def harvested(world, url, store, **changes):
    return teach(decode(Recipe, raw(world, url, store, **changes), "a test"))["teacher"]


@pytest.mark.parametrize(("keep", "top_p"), [(1, 1.0), (8, 1.0), (40, 0.3), (0, 1.0)])
def test_a_server_says_what_its_model_says(vllm, model, vocabulary, batch, keep, top_p):
    wanted = form(vocabulary, keep, top_p)
    found, expected = ask(vllm, model, batch, wanted), live(model, batch, wanted)
    assert_same(found, expected)
    if top_p < 1:
        assert 1 <= found.sizes_R.min() < found.sizes_R.max() <= keep


def test_a_document_is_asked_about_alone(vllm, model, vocabulary, windows, batch):
    ask(vllm, model, batch, form(vocabulary))
    documents = [tokens[segments == n].tolist() for tokens, segments in windows for n in range(segments.max() + 1)]
    assert sorted(vllm.prompts) == sorted(document for document in documents if len(document) > 1)
    body = vllm.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["prompt_logprobs"]) == (1, 0, 8)


def test_every_row_is_asked_about_once(batch):
    asked = questions(batch)
    targets = [question.prompt[at] for question in asked for at in question.places]
    assert targets == batch.rows.target_N.tolist()
    assert [row for q in asked for row in range(q.rows.start, q.rows.stop)] == list(range(len(targets)))


def test_padded_ids_are_dropped_and_the_others_scaled_up(model, vocabulary, batch):
    wanted = form(vocabulary, 8)
    expected = live(model, batch, wanted)
    found = ask(Vllm(model.model, padding=(9.0, -50.0, -50.0)), model, batch, wanted)
    assert found.ids_E.max() < vocabulary.size
    assert (found.sizes_R == 7).all()  # the likely one of the three stood among the eight
    np.testing.assert_allclose(found.scalars_RS[:, 0], expected.scalars_RS[:, 0], atol=1e-5)
    assert_same(found, live(model, batch, form(vocabulary, 7)))


def test_a_row_of_padding_alone_is_an_error(model, vocabulary, batch):
    with pytest.raises(ModelError, match=r"only padding likely .* raise teach\.keep"):
        ask(Vllm(model.model, padding=(30.0,) * 8), model, batch, form(vocabulary, 8))


def test_sure_teachers_leave_a_rest_that_makes_sense(vocabulary):
    """One minus the sum is rounding here: what is left is bounded by the least that came and by the target."""
    wanted = form(vocabulary, 2)
    logits = torch.full((3, vocabulary.size), -40.0)
    logits[:, 5], logits[:, 9] = 0.0, torch.tensor([-1.0, -20.0, -41.0])
    logits[2, 7] = -39.0
    target = torch.tensor([5, 11, 7])
    logp = logits.double().log_softmax(-1)
    values, ids = logp.float().double().topk(2)
    told = logp.gather(1, target[:, None])[:, 0].numpy()
    found = kept(ids.numpy(), values.numpy(), told, target.numpy(), wanted)
    exact = entries(logits.float(), target, wanted, None)
    assert (found.ids_E == exact.ids_E).all()
    odds, truth = found.scalars_RS[:, 1], exact.scalars_RS[:, 1]
    assert np.isfinite(odds).all()
    assert (odds >= truth - 1e-3).all()
    assert (odds <= np.log(2.0**-24) + 0.5).all()
    assert odds[2] < -30  # 298 ids, none likelier than the second


def test_what_is_left_holds_the_target(vocabulary):
    """The two that came add up to more than one, by a server's rounding, and the target is not among them."""
    told = np.array([[5, 9]]), np.array([[0.0, -5.0]]), np.array([-6.0]), np.array([7])
    (odds,) = kept(*told, form(vocabulary, 2)).scalars_RS[:, 1]
    assert odds == pytest.approx(-6 - np.log1p(np.exp(-5)), abs=1e-6)


def test_a_limit_is_named(vllm, model, vocabulary, batch):
    vllm.allowed = 5
    with pytest.raises(ModelError, match=r"127\.0\.0\.1.*8 likeliest.*max allowed: 5.*--max-logprobs 8"):
        ask(vllm, model, batch, form(vocabulary))


def silently(limit):
    def spoil(answer):
        for entry in filter(None, answer["choices"][0]["prompt_logprobs"]):
            for i in [i for i, one in entry.items() if one["rank"] > limit]:
                if i in list(entry)[1:]:
                    del entry[i]
        return answer

    return spoil


def emptied(answer):
    """Places beyond a limit are there, at minus infinity."""
    for entry in filter(None, answer["choices"][0]["prompt_logprobs"]):
        for i in list(entry)[4:]:
            entry[i]["logprob"] = -9999.0
    return answer


@pytest.mark.parametrize("spoil", [silently(5), emptied])
def test_a_silent_limit_is_named(vllm, model, vocabulary, batch, spoil):
    vllm.spoil = spoil
    with pytest.raises(ModelError, match=r"8 likeliest ids and gave \d.*--max-logprobs 8.*allows 20"):
        ask(vllm, model, batch, form(vocabulary))


def changed(do):
    def spoil(answer):
        do(answer["choices"][0]["prompt_logprobs"])
        return answer

    return spoil


RUBBISH = {
    "no json": lambda answer: b"<html>",
    "other json": lambda answer: [1],
    "no choices": lambda answer: {"choices": []},
    "no log-probs": lambda answer: {"choices": [{"text": ""}]},
    "null": lambda answer: {"choices": [{"prompt_logprobs": None}]},
    "a placeholder alone": lambda answer: {"choices": [{"prompt_logprobs": [None]}]},
    "one too few": changed(lambda told: told.pop()),
    "shifted by one": changed(lambda told: told.insert(1, told.pop())),
    "ids that are words": changed(lambda told: told.append({"the": told.pop()})),
    "no numbers": changed(lambda told: next(iter(told[1].values())).update(logprob=None)),
    "nan": changed(lambda told: list(told[1].values())[1].update(logprob=float("nan"))),
    "logits": changed(lambda told: [one.update(logprob=one["logprob"] + 9) for one in told[1].values()]),
    "more than asked": changed(lambda told: told[1].update({str(i): {"logprob": -9.0} for i in range(290, 299)})),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_one_sentence(vllm, model, vocabulary, batch, kind):
    vllm.spoil = RUBBISH[kind]
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:\d+ (does not answer as vLLM|was asked)") as caught:
        ask(vllm, model, batch, form(vocabulary))
    assert len(caught.value.problems) == 1


def test_a_server_that_is_not_there(model):
    with serving(Vllm(None)) as url:
        pass
    with pytest.raises(ModelError, match=rf"{url} does not answer .* check that it runs"):
        connect(url, "somewhere", model, 32)


def test_a_busy_server_is_asked_again(vllm, model, vocabulary, batch):
    vllm.busy = 2
    assert_same(ask(vllm, model, batch, form(vocabulary)), live(model, batch, form(vocabulary)))
    vllm.busy = 1000
    with pytest.raises(ModelError, match="HTTP status 503"):
        ask(vllm, model, batch, form(vocabulary))


def test_a_key_is_sent(vllm, model, vocabulary, batch, monkeypatch):
    vllm.key = "open"
    with pytest.raises(ModelError, match="set VLLM_API_KEY"):
        ask(vllm, model, batch, form(vocabulary))
    monkeypatch.setenv("VLLM_API_KEY", "open")
    ask(vllm, model, batch, form(vocabulary))


def test_which_model_and_how_long(vllm, model):
    with serving(vllm) as url:
        with pytest.raises(ModelError, match=r"takes 66 tokens, and sequences of 65 need 67.*--max-model-len 67"):
            connect(url, "somewhere", model, 65)
        vllm.models.insert(0, {"id": "adapter", "root": "elsewhere"})
        teacher = connect(url, "somewhere", model, 64)
        assert teacher.name == "teacher"
        teacher.release()
        with pytest.raises(ModelError, match="serves adapter, teacher, and it cannot be told which is other"):
            connect(url, "other", model, 64)
        for strange in ([], None, [{}]):
            vllm.models = strange
            with pytest.raises(ModelError, match="list of models"):
                connect(url, "somewhere", model, 64)


def test_without_the_package(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(ModelError, match=r"pip install 'bequest\[vllm\]'"):
        connect("http://localhost", "somewhere", model, 64)


@pytest.mark.filterwarnings("error")
def test_a_harvest_from_a_server_is_a_harvest_of_its_model(world, vllm, tmp_path):
    with serving(vllm) as url:
        told = harvested(world, url, tmp_path / "told")
        asked = len(vllm.prompts)
        assert harvested(world, url, tmp_path / "told").manifest == told.manifest
        assert len(vllm.prompts) == asked  # it was there
    own = harvested(world, "", tmp_path / "own")
    assert (told.manifest.precision, own.manifest.precision) == ("server", "fp32")
    assert told.manifest.total("flops") == own.manifest.total("flops") > 0
    assert told.manifest.total("rows") == own.manifest.total("rows") > 0
    np.testing.assert_allclose(told.manifest.total("rest"), own.manifest.total("rest"), rtol=1e-4)
    for shard in own._index.shards:
        for key in shard.keys:
            assert_same(told.entries(key.tobytes()), own.entries(key.tobytes()))


def test_the_weights_may_be_elsewhere(world, vllm, tmp_path):
    from pathlib import Path

    folder = tmp_path / "outline"
    folder.mkdir()
    for file in Path(world.teacher["causal"]).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    with serving(vllm) as url:
        changes = {"teachers__teacher": {"load": str(folder), "store": str(tmp_path / "store"), "server": url}}
        assert harvested(world, url, tmp_path / "store", **changes).manifest.total("rows") > 0


def test_other_temperatures_of_the_method_are_refused(world, tmp_path):
    spec = {"load": world.teacher["causal"], "store": str(tmp_path / "store"), "server": "http://nowhere"}
    recipe = world.recipe({"name": "ki", "temperature": 2.0}, teachers={"teacher": spec}, teach={"kind": "topk"})
    with pytest.raises(RecipeError, match="at temperature 2, but a server answers at 1 alone"):
        teach(recipe)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, ""),
        ({"teach": {"kind": "topk", "temperatures": [1]}}, ""),
        ({"teach": {}}, "tells only the likeliest ids at temperature 1; set teach.kind to topk"),
        ({"teach": {"kind": "topk", "temperatures": [1, 2]}}, "teach.temperatures to [1]"),
        ({"teachers__teacher": {"load": "x", "server": "http://x"}}, "server needs load"),
        ({"teachers__teacher": {"store": "x", "server": "http://x"}}, "server needs load"),
        ({"teachers__teacher": {"load": "x", "store": "y", "server": "localhost:8000"}}, "is no URL"),
        ({"data__objective": "masked", "student__family": "bert"}, "tells next tokens alone"),
    ],
)
def test_recipes_that_a_server_cannot_serve(world, changes, sentence):
    found = sense.problems(decode(Recipe, raw(world, "http://localhost:8000", "store", **changes), "a test"))
    assert bool(found) == bool(sentence)
    assert all(sentence in one for one in found)
