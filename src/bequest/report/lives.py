"""What runs of several stages have learned and forgotten, as a part of the report: the matrix as a heat map, and its numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ..eval.forgetting import FORMULAS
from .record import Record

DARKEST = 0.75
"""Opacity of the cell with a domain's highest loss."""


def section(records: Sequence[Record]) -> str:
    """A heat map for every finished run of several stages; nothing where there is none."""
    lives = [(record.name, record.summary) for record in records if record.summary and "life" in record.summary]
    return "<h2>Learned and forgotten</h2>" + "".join(_life(name, summary) for name, summary in lives) if lives else ""


def _life(name: str, summary: Mapping[str, Any]) -> str:
    life = summary["life"]
    prompts = summary.get("prompts")
    parts = [f"<h3>{html.escape(name)}</h3>", _matrix(life), _numbers(life)]
    parts += [_merged(life["merged"])] if "merged" in life else []
    parts += [_prompts(prompts)] if prompts else []
    return "".join(parts)


def _matrix(life: Mapping[str, Any]) -> str:
    """Losses, the darker the higher within a column; what a stage has just taught is framed."""
    domains = list(life["loss"][0])
    spans = {i: [row[i] for row in life["loss"][1:]] for i in domains}  # before training is higher than everything
    rows = []
    for t, (row, part) in enumerate(zip(life["loss"], ["before training", *life["parts"]], strict=True)):
        cells = ""
        for i in domains:
            low, high = min(spans[i]), max(spans[i])
            shade = DARKEST * min(1.0, (row[i] - low) / (high - low)) if high > low else 0.0
            home = " class=home" if life["home"].get(i) == t else ""
            cells += f'<td{home} style="background:rgb(200 90 40 / {shade:.2f})">{row[i]:.3f}</td>'
        rows.append(f"<tr><th>{html.escape(part)}</th>{cells}</tr>")
    note = "Loss (nats) on each domain after each stage; darker is higher, a frame is where the domain was learned."
    return f"<p class=note>{note}</p>" + _table(["after", *domains], rows, "heat")


def _numbers(life: Mapping[str, Any]) -> str:
    rows = [
        f'<tr title="{html.escape(formula)}"><th>{html.escape(name)}</th>{_cells(life[name])}'
        f"<td class=formula>{html.escape(formula)}</td></tr>"
        for name, formula in FORMULAS.items()
    ]
    note = "R is minus the loss, PPL its exponential, t a stage; a domain's home is the stage that taught it."
    return _table(["at", *life["parts"], "formula"], rows, "numbers") + f"<p class=note>{note}</p>"


def _cells(values: Sequence[float | None]) -> str:
    return "".join(f"<td>{'' if value is None else f'{value:,.3f}'}</td>" for value in values)


def _merged(found: Sequence[Mapping[str, Any]]) -> str:
    domains = list(found[0]["loss"])
    rows = [
        f"<tr><th>{html.escape(one['part'])}, {one['alpha']:g}</th>{_cells([one['loss'][i] for i in domains])}</tr>"
        for one in found
    ]
    note = "Loss of models between two stages: that share of the way from the model before to the one after."
    return f"<p class=note>{note}</p>" + _table(["stage, share", *domains], rows, "merged")


def _prompts(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    domains = list(found["right"])
    rows = [
        f"<tr><th>{html.escape(which)}</th>{_cells([measures[i]['loss'] for i in domains])}</tr>"
        for which, measures in found.items()
    ]
    note = "Loss of the last model with the right domain's prompt, with another domain's, and with none."
    return f"<p class=note>{note}</p>" + _table(["prompt", *domains], rows, "prompts")


def _table(head: Sequence[str], rows: Sequence[str], kind: str) -> str:
    top = "".join(f"<th>{html.escape(word)}</th>" for word in head)
    return (
        f"<div class=wide><table class={kind}><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def told(life: Mapping[str, Any]) -> str:
    """The last numbers, for a terminal."""
    last = [f"{name} {life[name][-1]:,.3f}" for name in FORMULAS if life[name][-1] is not None]
    return f"after {len(life['parts'])} stages: {', '.join(last)}"
