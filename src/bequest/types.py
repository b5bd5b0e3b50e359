"""The nouns that flow between the rooms, and the tree of errors. Imports nothing of ours.

A tensor's name ends in its shape. B sequences, T positions, N selected positions (rows), C a chunk of rows,
D hidden, V vocabulary, K kept teacher entries. Log-probabilities and losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # torch is only needed for the names, and `bequest --help` must not wait for it
    from torch import Tensor


class BequestError(Exception):
    """Something a user can mend. Each argument is one sentence: what is wrong and what to do."""

    def __init__(self, *problems: str) -> None:
        # Names of files and keys may hold anything; a sentence stays on its line.
        shown = ("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in p) for p in problems)
        super().__init__(*shown)

    @property
    def problems(self) -> tuple[str, ...]:
        """Every sentence."""
        return self.args

    def __str__(self) -> str:
        first, *more = self.args
        return f"{first} (and {len(more)} more{self.listed})" if more else str(first)

    listed = "; bequest check lists them all"


class RecipeError(BequestError):
    """The recipe, or an override of it, cannot be used."""


class SweepError(RecipeError):
    """The sweep cannot be used."""

    listed = ""


class DataError(BequestError):
    """Text that cannot be read or is not what the recipe says."""


class ModelError(BequestError):
    """A predecessor, a student or a tokenizer that cannot be used for this run."""


class FolderError(BequestError):
    """A run folder that cannot be written, is in use, or belongs to another recipe."""


class TrainingError(BequestError):
    """Training cannot go on, because at some step the loss is no longer finite."""

    def __init__(self, sentence: str, step: int) -> None:
        super().__init__(sentence)
        self.step = step


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved itself. Not an error."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True)
class Doc:
    """A document and the domain that it came from."""

    text: str
    source: str


@dataclass(frozen=True)
class Rows:
    """The positions that are learned from: flat indices into B*T, ascending, and their target tokens."""

    index_N: Tensor
    target_N: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step learns from. A micro-batch is a slice of it and keeps `rows_total`, the divisor of every mean."""

    tokens_BT: Tensor
    segments_BT: Tensor
    """Number of the document inside its sequence; -1 is padding."""
    rows: Rows
    rows_total: int
    whole: bool
    """Whether every sequence is one document without padding, so that no mask is needed."""
    sources: tuple[str, ...]
    keys: tuple[bytes, ...]
    """Hash of each sequence's tokens, of what is learned from it and of how it was packed: equal in every run."""

    def micro(self, sequences: int) -> Iterator[Batch]:
        """Slices of at most `sequences` sequences, in order."""
        for first in range(0, len(self.keys), sequences):
            yield self.of(range(first, min(first + sequences, len(self.keys))))

    def of(self, numbers: Sequence[int]) -> Batch:
        """Some of the sequences, by their ascending numbers."""
        index_N, length = self.rows.index_N, self.tokens_BT.shape[1]
        chosen = index_N.new_tensor(numbers)
        place_B = index_N.new_full((len(self.keys),), -1)
        place_B[chosen] = index_N.new_tensor(range(len(numbers)))
        place_N = place_B[index_N // length]
        inside = place_N >= 0
        rows = Rows((place_N * length + index_N % length)[inside], self.rows.target_N[inside])
        return replace(
            self,
            tokens_BT=self.tokens_BT[chosen],
            segments_BT=self.segments_BT[chosen],
            rows=rows,
            sources=tuple(self.sources[n] for n in numbers),
            keys=tuple(self.keys[n] for n in numbers),
        )

    def to(self, device: Any) -> Batch:
        """The same batch on another device; a GPU takes it while the host goes on."""

        def move(tensor: Tensor) -> Tensor:
            pinned = tensor.pin_memory() if str(device).startswith("cuda") else tensor
            return pinned.to(device, non_blocking=True)

        rows = Rows(move(self.rows.index_N), move(self.rows.target_N))
        return replace(self, tokens_BT=move(self.tokens_BT), segments_BT=move(self.segments_BT), rows=rows)


@dataclass(frozen=True)
class Signal:
    """What a predecessor says about some rows, at the temperature it was asked for.

    `ids_NK` are the kept ids, or None when every id is kept, in order. `logrest_N` is the log of the mass of all the
    ids that are not kept, or None when nothing is left over (all kept, drawn, or renormalised). A row's ids
    differ, except that draws may repeat; one that keeps fewer than K is filled up with any ids at minus infinity: those are
    not kept. A dense row adds up to 1.
    """

    ids_NK: Tensor | None
    logp_NK: Tensor
    logrest_N: Tensor | None
    whole_entropy_N: Tensor | None = None
    """Of the whole distribution, where the entries are draws from it and cannot tell."""
    logp_target_N: Tensor | None = None
    """Log-probability of the realised token at temperature 1, where not every id is kept."""

    def __getitem__(self, rows: Any) -> Signal:
        columns = ((one.name, getattr(self, one.name)) for one in fields(self))
        found: dict[str, Any] = {name: None if column is None else column[rows] for name, column in columns}
        return Signal(**found)

    def to(self, dtype: Any) -> Signal:
        """The same numbers in another precision."""
        columns = {one.name: getattr(self, one.name) for one in fields(self)}
        return Signal(**{n: c.to(dtype) if c is not None and n != "ids_NK" else c for n, c in columns.items()})

    def entropy(self) -> Tensor:
        """Of each row's distribution, or of its buckets, [N]."""
        if self.whole_entropy_N is not None:
            return self.whole_entropy_N
        p_NK = self.logp_NK.exp()
        entropy_N: Tensor = -p_NK.xlogy(p_NK).sum(-1)
        if self.logrest_N is None:
            return entropy_N
        rest_N = self.logrest_N.exp()
        return entropy_N - rest_N.xlogy(rest_N)


class Answer(Protocol):
    """A predecessor's answer to a batch: the signal of any of its rows (a slice or indices), made when asked for.

    A `Signal` is an answer; so is anything that makes signals late, since N x V numbers are never held at once.
    """

    def __getitem__(self, rows: Any) -> Signal: ...


class Teacher(Protocol):
    """A predecessor that is asked. It is loaded when first asked and leaves memory when released."""

    def __call__(self, batch: Batch, temperature: float) -> Answer: ...

    def prepare(self, batch: Batch, temperature: float) -> None:
        """This question will come. Called ahead of time in a thread of its own; whatever is slow can begin."""
        ...

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of one answer."""
        ...

    def release(self) -> None:
        """Leave memory; asking again loads again."""
        ...


@dataclass(frozen=True)
class Chunk:
    """What a term sees beside the logits of C rows."""

    target_C: Tensor
    signal_C: Signal | None


@dataclass(frozen=True)
class Entry:
    """One evaluation that the plan itself asked for."""

    stage: str
    step: int
    values: Mapping[str, float]


Journal = Sequence[Entry]
"""Append-only, part of the checkpoint; the only thing that may feed back into training."""


@dataclass(frozen=True)
class Clock:
    """Where training is: within the stage, within the run, and what the plan has measured so far."""

    step: int
    steps: int
    tokens: int = 0
    run_step: int = 0
    run_tokens: int = 0
    journal: Journal = ()
    stage: str = ""
    """The stage's name, as entries of the journal have it."""

    @property
    def done(self) -> float:
        """Share of the stage that lies behind, 0 to 1."""
        return self.step / max(1, self.steps)


@dataclass(frozen=True)
class Loss:
    """A step's loss. `total` has the gradient; `parts` are the terms, unweighted; both are means over `rows_total`."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    rate: float = 0.0
    """The weight of what predecessors say, summed over terms."""
    teacher_flops: float = 0.0
    student_flops: float = 0.0
    """What it made the student compute beyond one forward and backward pass."""


LossFn = Callable[[Any, Batch, Clock], Loss]
"""`loss(model, batch, clock)`, run inside the wrapped model's forward."""

Term = Callable[["Tensor", Chunk, Clock], "Tensor"]
"""`term(logits_CV, chunk, clock) -> loss_C`: fp32 in, fp32 out, a pure function."""
