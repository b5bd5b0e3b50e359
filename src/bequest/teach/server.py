"""A teacher behind a vLLM server: asked over HTTP for the likeliest ids of every position of a prompt, and never loaded.

POST /v1/completions with `prompt_logprobs` K answers, for every token of the prompt but the first, the K likeliest ids with
their log-probabilities at temperature 1, and the token itself where it is not among them. A document is a prompt of its
own, so that nothing before it is seen. What this cannot give are other temperatures and draws: both need all ids.

The model may have more rows than the tokenizer has ids. Those that are among the K are dropped and the others scaled up, as
a live teacher cuts such rows before its softmax; those that are not are counted in the rest, where they are next to nothing.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..model.flops import forward_flops
from ..model.language import LanguageModel
from ..types import Batch, ModelError
from .codec import Entries
from .layout import Ints
from .signals import Form

if TYPE_CHECKING:
    import httpx

Doubles = npt.NDArray[np.float64]

AT_ONCE = 8
"""Prompts on their way; vLLM batches what comes together."""
WAITS = (0.5, 2.0, 8.0)
"""Seconds before each further attempt, when a server cannot be reached or is busy."""
BUSY = (429, 502, 503, 504)
CONNECT, ANSWER = 10.0, 600.0
"""Seconds until a connection, or an answer, is given up."""
RESOLUTION = 2.0**-24
"""Of a sum of fp32 probabilities: what is left of one cannot be told more finely."""
IMPOSSIBLE = -9999.0
"""What vLLM writes for minus infinity, which JSON lacks; places that a limit left empty hold it, too."""


@dataclass(frozen=True)
class Question:
    """A document's part of a window, and the rows of the batch that it answers."""

    prompt: list[int]
    places: list[int]
    """Where in the prompt each row's target stands: the entry there tells of the row."""
    rows: slice


def questions(batch: Batch) -> list[Question]:
    """A prompt for each document of a batch in which something is asked. It ends with the last row's target, which for
    the last position of a window stands in no window's tokens.
    """
    tokens, segments = batch.tokens_BT.numpy().ravel(), batch.segments_BT.numpy()
    index_N, target_N = batch.rows.index_N.numpy(), batch.rows.target_N.numpy()
    begins = np.ones(segments.shape, bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    begin_D = np.flatnonzero(begins)
    begin_N = begin_D[np.searchsorted(begin_D, index_N, side="right") - 1]
    edges = [0, *(np.flatnonzero(np.diff(begin_N)) + 1).tolist(), len(begin_N)] if len(begin_N) else []
    return [
        Question(
            prompt=[*tokens[begin_N[a] : index_N[b - 1] + 1].tolist(), int(target_N[b - 1])],
            places=(index_N[a:b] - begin_N[a] + 1).tolist(),
            rows=slice(a, b),
        )
        for a, b in pairwise(edges)
    ]


@dataclass(frozen=True)
class Server:
    """A server and the name under which it serves the teacher."""

    url: str
    name: str
    outline: LanguageModel
    client: httpx.Client

    def ask(self, batch: Batch, form: Form, seed: int) -> Entries:
        """What the server says about all rows of a batch, in fp32 and float64 sums.

        Raises ModelError when it does not say all that was asked for.
        """
        assert not form.draws
        assert form.temperatures == (1.0,)
        keep = form.keep or form.vocabulary
        rows = len(batch.rows.index_N)
        ids_NK, logp_NK, logp_target_N = np.zeros((rows, keep), np.int64), np.zeros((rows, keep)), np.zeros(rows)
        asked = questions(batch)
        with ThreadPoolExecutor(AT_ONCE) as pool:  # the first failure cancels what has not been sent
            for question, found in zip(asked, pool.map(partial(self._answer, keep=keep), asked), strict=True):
                ids_NK[question.rows], logp_NK[question.rows], logp_target_N[question.rows] = found
        self._check(ids_NK, logp_NK, form)
        return kept(ids_NK, np.minimum(logp_NK, 0.0), np.minimum(logp_target_N, 0.0), batch.rows.target_N.numpy(), form)

    def flops(self, batch: Batch) -> float:
        """One forward pass, as a live teacher counts it."""
        return forward_flops(self.outline, batch)

    def release(self) -> None:
        """Close the connections."""
        self.client.close()

    def _answer(self, question: Question, keep: int) -> tuple[list[list[int]], list[list[float]], list[float]]:
        """Of each row the K ids with their log-probabilities, and the target's."""
        body = {
            "model": self.name,
            "prompt": question.prompt,
            "prompt_logprobs": keep,
            "max_tokens": 1,
            "temperature": 0,
            # A server may have other defaults from the model's folder, which old versions apply to prompts as well.
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        answer = _send(self.client, self.url, "POST", "/v1/completions", body, keep)
        try:
            entries = answer["choices"][0]["prompt_logprobs"]
            if len(entries) != len(question.prompt):
                raise _strange(self.url, f"{len(entries)} entries for a prompt of {len(question.prompt)} tokens")
            told = [{int(i): float(one["logprob"]) for i, one in entries[at].items()} for at in question.places]
            targets = [question.prompt[at] for at in question.places]
            logp_target = [row[target] for row, target in zip(told, targets, strict=True)]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _strange(self.url, f"prompt_logprobs are not as vLLM gives them: {type(error).__name__}") from None
        rows = [self._likeliest(row, target, keep) for row, target in zip(told, targets, strict=True)]
        return [list(row) for row in rows], [list(row.values()) for row in rows], logp_target

    def _likeliest(self, row: dict[int, float], target: int, keep: int) -> dict[int, float]:
        """The K likeliest; vLLM gives the target as one more where it is not among them."""
        found = {i: logp for i, logp in row.items() if len(row) <= keep or i != target}
        came = sum(logp > IMPOSSIBLE for logp in found.values())
        if came < keep:
            raise _limited(self.url, keep, f"gave {came}")
        if len(found) > keep:
            raise _strange(self.url, f"{len(found)} ids where {keep} were asked for")
        return found

    def _check(self, ids_NK: Ints, logp_NK: Doubles, form: Form) -> None:
        if not (np.exp(logp_NK).sum(-1) <= 1.001).all():
            raise _strange(
                self.url, "probabilities that add up to more than one; serve it with --logprobs-mode raw_logprobs"
            )
        if not (ids_NK < form.vocabulary).any(-1).all():
            raise ModelError(
                f"the server {self.url} finds only padding likely at some position, ids beyond the tokenizer's "
                f"{form.vocabulary}; raise teach.keep, or load the tokenizer that belongs to its model"
            )


def kept(ids_NK: Ints, logp_NK: Doubles, logp_target_N: Doubles, target_N: Ints, form: Form) -> Entries:
    """What a form keeps of the K likeliest ids of each row."""
    order = np.argsort(-logp_NK, axis=-1, kind="stable")
    ids_NK, logp_NK = np.take_along_axis(ids_NK, order, -1), np.take_along_axis(logp_NK, order, -1)
    known_NK = ids_NK < form.vocabulary
    padding_N = (np.exp(logp_NK) * ~known_NK).sum(-1)
    scale_N = np.log1p(-np.minimum(padding_N, 1 - RESOLUTION))
    logp_NK, logp_target_N = logp_NK - scale_N[:, None], logp_target_N - scale_N
    mass_NK = np.exp(logp_NK) * known_NK
    kept_NK = known_NK & (mass_NK.cumsum(-1) - mass_NK < form.top_p) if form.top_p < 1 else known_NK
    unseen_N = _unseen(mass_NK, known_NK, ~(ids_NK == target_N[:, None]).any(-1) * np.exp(logp_target_N), form)
    left_N = unseen_N + (mass_NK * ~kept_NK).sum(-1)
    with np.errstate(divide="ignore"):  # nothing is left where every id is kept
        odds_N = np.log(left_N) - np.log((mass_NK * kept_NK).sum(-1))
    order = np.argsort(np.where(kept_NK, ids_NK, form.vocabulary), axis=-1, kind="stable")
    kept_NK, ids_NK, logp_NK = (np.take_along_axis(grid, order, -1) for grid in (kept_NK, ids_NK, logp_NK))
    scalars_NS = np.stack([logp_target_N, odds_N], 1).astype(np.float32)
    return Entries(kept_NK.sum(-1), ids_NK[kept_NK], logp_NK[kept_NK].astype(np.float32), scalars_NS)


def _unseen(mass_NK: Doubles, known_NK: npt.NDArray[np.bool_], target_N: Doubles, form: Form) -> Doubles:
    """The mass of all ids that did not come; `target_N` is that of a target that is one of them.

    What is missing from one is rounding once the teacher is sure. But none that did not come is likelier than the
    least of those that did, and all of them together are as likely as the target at least.
    """
    missing_N = np.maximum(1.0 - mass_NK.sum(-1), RESOLUTION)
    least_N = np.where(known_NK, mass_NK, np.inf).min(-1)
    most_N = (form.vocabulary - known_NK.sum(-1)) * least_N
    return np.asarray(np.maximum(np.minimum(missing_N, most_N), target_N))


def connect(url: str, load: str, outline: LanguageModel, sequence: int) -> Server:
    """The server at a URL, if it serves a model for sequences that long. `outline` is the model without its numbers.

    Raises ModelError when it does not. $VLLM_API_KEY is sent along when it is set.
    """
    try:
        import httpx
    except ImportError:
        raise ModelError(f"asking the server {url} needs an extra package; run pip install 'bequest[vllm]'") from None
    url = url.rstrip("/").removesuffix("/v1")
    key = os.environ.get("VLLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(timeout=httpx.Timeout(ANSWER, connect=CONNECT), headers=headers)
    try:
        name = _served(url, load, sequence + 2, _send(client, url, "GET", "/v1/models"))
    except ModelError:
        client.close()
        raise
    return Server(url, name, outline, client)


def _served(url: str, load: str, needed: int, answer: Any) -> str:
    """The name of the recipe's model on a server, if it takes so many tokens; a model that is alone may have any name."""
    try:
        models = {str(m["id"]): m for m in answer["data"]}
        ours = [name for name, m in models.items() if load in (name, m.get("root"))] or list(models)
        longest = int(models[ours[0]].get("max_model_len") or needed)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _strange(url, f"its list of models cannot be read: {type(error).__name__}") from None
    if len(ours) > 1:
        raise ModelError(
            f"the server {url} serves {', '.join(sorted(models))}, and it cannot be told which is {load}; "
            f"serve it with --served-model-name {load}"
        )
    if longest < needed:
        raise ModelError(
            f"the server {url} takes {longest} tokens, and sequences of {needed - 2} need {needed} (the last target and one "
            f"that vLLM insists on writing); serve it with --max-model-len {needed}, or lower data.sequence"
        )
    return ours[0]


def _send(client: httpx.Client, url: str, method: str, path: str, body: Any = None, keep: int = 0) -> Any:
    """What a server answers, read as JSON. Tries again when it cannot be reached or is busy.

    Raises ModelError when it does not answer, or refuses.
    """
    import httpx

    for wait in (*WAITS, None):
        try:
            response = client.request(method, url + path, json=body)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            trouble = str(error) or type(error).__name__
        else:
            if response.status_code not in BUSY:
                return _read(url, response, keep)
            trouble = f"HTTP status {response.status_code}"
        if wait is not None:
            time.sleep(wait)
    raise ModelError(f"the server {url} does not answer ({trouble}); check that it runs and that the URL is right")


def _read(url: str, response: httpx.Response, keep: int) -> Any:
    if response.status_code == 200:
        try:
            return response.json()
        except ValueError:
            raise _strange(url, "no JSON") from None
    if response.status_code in (401, 403):
        raise ModelError(f"the server {url} asks for a key; set VLLM_API_KEY to the one that it was started with")
    why = " ".join(response.text.split())[:300]
    if keep and "logprobs" in why:
        raise _limited(url, keep, f"refuses: {why}")
    raise ModelError(f"the server {url} refuses with HTTP status {response.status_code} ({why}); see its log")


def _limited(url: str, keep: int, what: str) -> ModelError:
    return ModelError(
        f"the server {url} was asked for the {keep} likeliest ids and {what}; "
        f"serve the model with --max-logprobs {keep} (vLLM allows 20 unless told), or lower teach.keep"
    )


def _strange(url: str, what: str) -> ModelError:
    return ModelError(f"the server {url} does not answer as vLLM does ({what}); check the URL and vLLM's version")
