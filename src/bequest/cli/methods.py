"""`bequest methods`: what there is, what each needs, and a recipe to start from."""

from __future__ import annotations

import sys
from inspect import getdoc

from rich.table import Table

from .. import config, methods
from ..report import table
from ..train.plan import Method


def command(name: str | None, recipe: bool) -> None:
    """Print the list, one method, or its recipe."""
    if name is None:
        _list()
    elif recipe:
        print(start(name), end="")
    else:
        _one(name)


def _list() -> None:
    found = Table()
    for column in ("method", "what it does", "needs", "its keys"):
        found.add_column(column, no_wrap=column == "method")
    for name in methods.names():
        method = methods.find(name)
        keys = ", ".join(key.name for key in config.keys(method))
        found.add_row(name, _paper(method), ", ".join(method.needs) or "-", keys or "-")
    table.show(found)
    print("bequest methods NAME says more; bequest methods NAME --recipe prints a recipe to start from")


def _paper(method: type[Method]) -> str:
    """The first line of the method's file, which names the paper."""
    return (sys.modules[method.__module__].__doc__ or "").strip().splitlines()[0]


def _one(name: str) -> None:
    method = methods.find(name)
    print(f"{_paper(method)}\n\n{getdoc(method)}\n")
    print(f"needs: {', '.join(f'teachers.{need}' for need in method.needs) or 'nothing'}")
    found = Table(title="keys", title_justify="left")
    for column in ("key", "values", "default", "meaning"):
        found.add_column(column)
    for key in config.keys(method):
        found.add_row(f"method.{key.name}", key.values, key.default, key.meaning)
    if found.row_count:
        table.show(found)


def start(name: str) -> str:
    """A recipe with the method's keys spelled out."""
    method = methods.find(name)
    teachers = [
        f"  {need}: runs/teacher/checkpoint   # any model of the same kind; its tokenizer is used"
        for need in method.needs
    ]
    own = [f"  {key.name}: {key.default}   # {key.meaning or key.values}" for key in config.keys(method)]
    lines = [
        f"name: {name}",
        "data:",
        "  train: [{path: corpus.jsonl.gz, source: mine}]",
        "  valid_fraction: 0.01",
        "  sequence: 256",
        *(["teachers:", *teachers] if teachers else ["tokenizer: {train: {vocab: 4096}}"]),
        "student: {family: llama, hidden: 256, layers: 8, heads: 4}",
        "method:",
        f"  name: {name}",
        *own,
        "train: {tokens: 4_000_000, batch_tokens: 4096, optimiser: {name: muon, lr: 1e-2}, save_every_tokens: 1_000_000}",
        "eval: {every_tokens: 500_000}",
    ]
    return "\n".join(lines) + "\n"
