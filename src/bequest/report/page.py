"""The report: one HTML file about one run or several, that opens offline and asks nobody for anything.

Curves are drawn by uPlot (MIT), which stands in the page; every curve is thinned to a few hundred points first.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import config
from ..files import replace_text
from . import kept, lives
from .record import Record
from .table import losses_of_teachers, savings

POINTS = 600
"""Per training curve."""
AXES = ("tokens", "student_flops", "all_flops", "seconds")


def write(records: Sequence[Record], path: Path) -> None:
    """Write the report of some runs."""
    replace_text(path, page(records))


def page(records: Sequence[Record]) -> str:
    """The report as HTML."""
    records = _told_apart(records)
    title = " / ".join(r.name for r in records[:3]) + (f" and {len(records) - 3} more" if len(records) > 3 else "")
    fills = {
        "title": html.escape(title),
        "savings": "".join(f"<p class=savings>{html.escape(s)}</p>" for s in (*_savings(records), *_unlike(records))),
        "summary": _summary(records),
        "families": "".join(f"<ul class=tree>{_family(r.lineage)}</ul>" for r in records if r.lineage),
        "lives": lives.section(records),
        "stores": kept.section(records),
        "details": "".join(_details(r) for r in records),
        "data": data([_curves(r) for r in records]),
        "page.js": asset(__package__, "page.js"),
    }
    return filled(asset(__package__, "page.html"), fills)


SHARED = ("page.css", "chart.js", "uPlot.iife.min.js", "uPlot.min.css")
"""What every page of curves holds."""


def asset(package: str, name: str) -> str:
    """The text of a file that a package brings along."""
    return files(package).joinpath("assets", name).read_text(encoding="utf-8")


def filled(template: str, fills: Mapping[str, str]) -> str:
    """A page with its blanks filled, `<!--name-->` each; style and drawing are shared by all pages."""
    known = {**{name: asset(__package__, name) for name in SHARED}, **fills}
    return re.sub(r"<!--([\w.]+)-->", lambda blank: known[blank[1]], template)


def data(value: Any) -> str:
    """A value within a script, which no tag inside a text can close."""
    return json.dumps(value).replace("<", "\\u003c")


def _told_apart(records: Sequence[Record]) -> list[Record]:
    """Runs of one name go by their folders."""
    names = Counter(r.name for r in records)
    labels = [r.folder.name if names[r.name] > 1 else r.name for r in records]
    if len(set(labels)) < len(records):
        labels = [str(r.folder) for r in records]
    return [
        replace(r, name=label, lineage={**r.lineage, "name": label} if r.lineage else r.lineage)
        for r, label in zip(records, labels, strict=True)
    ]


def _unlike(records: Sequence[Record]) -> Iterator[str]:
    """What a reader must not compare."""
    groups: dict[str, list[str]] = {}
    for record in records:
        groups.setdefault(record.lineage.get("measured in", ""), []).append(record.name)
    if len(groups) > 1:
        sides = " | ".join(", ".join(names) for names in groups.values())
        yield (
            f"Losses and perplexities cannot be compared between these groups, which differ in tokenizer or objective: {sides}. "
            "Bits per byte can, between causal models."
        )


def _savings(records: Sequence[Record]) -> Iterator[str]:
    """Each inheriting run against the first run without a teacher whose student is as large and reads the same sources."""
    finished = [r for r in records if r.summary and r.validations]
    for run in finished:
        assert run.summary is not None
        if not _inherits(run):
            continue
        for base in finished:
            assert base.summary is not None
            same = base.summary["student_parameters"] == run.summary["student_parameters"]
            same = same and base.lineage.get("measured in") == run.lineage.get("measured in")
            if same and not _inherits(base) and set(base.summary["valid"]) == set(run.summary["valid"]):
                for source in run.summary["valid"]:
                    teachers = losses_of_teachers(run.summary, source)
                    yield f"{run.name} against {base.name}, {source}: " + savings(
                        base.validations, run.validations, source, teachers
                    )
                break


def _inherits(record: Record) -> bool:
    assert record.summary is not None
    return bool(record.summary["teacher_flops"] or record.stores)


def _summary(records: Sequence[Record]) -> str:
    head: tuple[str, ...] = ("run", "method", "parameters", "tokens", "source", "loss", "perplexity", "bits per byte")
    head += ("FLOPs", "of which teacher", "seconds", "tokens/s", "peak MB")
    rows = [cells for record in records for cells in _rows(record)]
    table = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>{table}</tbody></table>"


def _rows(record: Record) -> Iterator[list[str]]:
    method = record.recipe["method"]["name"]
    if record.summary is None:
        tokens = record.lines[-1]["tokens"] if record.lines else 0
        yield [record.name, method, "", f"{tokens:,} so far", *[""] * 9]
        return
    s = record.summary
    flops = s["student_flops"] + s["teacher_flops"]
    cost = [f"{flops:.3g}", f"{s['teacher_flops'] / flops:.1%}", f"{s['wall_s']:,.0f}", f"{s['tokens_per_s']:,.0f}"]
    for source, v in s["valid"].items():
        bits = f"{v['bits_per_byte']:.4f}" if "bits_per_byte" in v else ""
        found = [source, f"{v['loss']:.4f}", f"{v['perplexity']:.2f}", bits]
        yield [
            record.name,
            method,
            f"{s['student_parameters']:,}",
            f"{s['tokens']:,}",
            *found,
            *cost,
            f"{s['peak_rss_mb']:,.0f}",
        ]


def _family(member: Mapping[str, Any]) -> str:
    tokens = "tokens unknown" if member["tokens"] is None else f"{member['tokens']:,} tokens"
    flops = "" if member.get("flops") is None else f", {member['flops']:.3g} FLOPs"
    role = f"<i>{html.escape(member['as'])}</i> " if "as" in member else ""
    method = f", {html.escape(member['method'])}" if member["method"] else ""
    inside = "".join(_family(p) for p in member["predecessors"])
    name = html.escape(member["name"])
    text = f"{role}<b>{name}</b><br><small>{member['parameters']:,} parameters, {tokens}{flops}{method}</small>"
    return f"<li><span>{text}</span>{f'<ul>{inside}</ul>' if inside else ''}</li>"


def _details(record: Record) -> str:
    parts = [f"<h3>Recipe</h3><pre>{html.escape(config.text_of(record.recipe))}</pre><h3>Commands and environment</h3>"]
    for h in record.history:
        where = ", ".join(f"{key} {value}" for key, value in (h["versions"] | h["machine"]).items())
        parts.append(f"<pre>{html.escape(h['when'])}\n{html.escape(h['command'])}\n{html.escape(where)}</pre>")
    name, folder = html.escape(record.name), html.escape(str(record.folder))
    return f"<details><summary>{name} <small>{folder}</small></summary>{''.join(parts)}</details>"


def _curves(record: Record) -> dict[str, Any]:
    """The columns that the page draws."""
    steps = _thinned(record.steps)
    train = {axis: [_place(line, axis) for line in steps] for axis in AXES}
    train |= {name: [line[name] for line in steps] for name in ("loss", "lr", "rate")}
    valid = {axis: [_place(line, axis) for line in record.looks] for axis in AXES}
    sources = dict.fromkeys(source for line in record.looks for source in line["valid"])
    found = {
        source: {
            measure: [line["valid"].get(source, {}).get(measure) for line in record.looks]
            for measure in ("loss", "bits_per_byte")
        }
        for source in sources
    }
    return {"name": record.name, "train": train, "valid": valid, "sources": found}


def _place(line: Mapping[str, Any], axis: str) -> float:
    value = line["student_flops"] + line["teacher_flops"] if axis == "all_flops" else line[axis]
    return float(f"{value:.6g}")


def _thinned(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most POINTS lines: the last of each group, with the group's mean loss."""
    edges = sorted(
        {round(i * len(lines) / POINTS) for i in range(POINTS + 1)} if len(lines) > POINTS else range(len(lines) + 1)
    )
    groups = [lines[a:b] for a, b in pairwise(edges)]
    return [{**g[-1], "loss": round(sum(line["loss"] for line in g) / len(g), 5)} for g in groups]
