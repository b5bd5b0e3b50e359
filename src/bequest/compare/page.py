"""The page about a sweep: one HTML file that opens offline and asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from .. import config
from ..report.page import asset, data, filled
from . import words
from .words import Found

CURVES = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte"}


def page(results: Found, clock: Found) -> str:
    """The results of a sweep as HTML."""
    fills = {
        "title": escape(results["name"]),
        "question": f"<p>{escape(results['question'])}</p>" if results["question"] else "",
        "sentences": "".join(_said(results, clock)),
        "arms": _arms(results, clock),
        "intervals": _intervals(results),
        "lives": "".join(_lives(results)),
        "rates": _rates(results),
        "predecessors": _predecessors(results),
        "command": escape(results["command"]),
        "details": "".join(_details(name, arm) for name, arm in results["arms"].items()),
        "taught": "".join(_command(name, one["command"]) for name, one in results["predecessors"].items()),
        "data": data(_curves(results, clock)),
    }
    own = {name: asset(__package__, name) for name in ("compare.css", "compare.js")}
    return filled(asset(__package__, "compare.html"), fills | own)


def _said(results: Found, clock: Found) -> Iterator[str]:
    """The sentences, arm by arm, so that a dash in the table can lead to its reason."""
    sentences = [("", s) for s in results["sentences"]] + [("by the clock ", s) for s in clock["sentences"]]
    for number, name in enumerate(results["arms"]):
        own = [(by, s) for by, s in sentences if s["arm"] == name]
        if own:
            items = "".join(f"<li class={s['kind']}><small>{by}</small>{escape(s['text'])}</li>" for by, s in own)
            yield f"<ul class=said id=said-{number}>{items}</ul>"
    yield f"<p class=note>{escape(words.spent(clock))}</p>"


def _intervals(results: Found) -> str:
    confidence = results["confidence"]
    if confidence is None:
        return "No intervals were asked for."
    return f"Under each mean stands its {confidence:.0%} interval over seeds (Student's t). {words.by_chance(results)}"


def _arms(results: Found, clock: Found) -> str:
    axes = {axis: words.SHORT[axis] for axis in results["axes"]} | {axis: axis for axis in clock["axes"]}
    head = ["arm", "parameters", "learning rate", "seeds", "tokens", f"final {words.MEASURES[results['measure']]}"]
    head += ["gap at equal tokens", *(f"ratio: {axis}" for axis in axes.values())]
    rows = []
    for number, (name, arm) in enumerate(results["arms"].items()):
        verdicts = arm["verdicts"] | clock["arms"][name]["verdicts"]
        own = escape(name) + (_small("baseline") if name == results["baseline"] else "")
        row = [own, words.count(arm["parameters"]), _rate(arm), ", ".join(str(r["seed"]) for r in words.finals(arm))]
        row += [
            words.tokens(arm),
            _stacked(words.loss(arm["final"])),
            _stacked(words.gap(verdicts["tokens"])) if verdicts else "",
        ]
        rows.append(row + [_ratio(verdicts.get(axis), number) for axis in axes])
    return _table("arms", head, rows)


def _rate(arm: Found) -> str:
    return f"{arm['rate']:g}" + (_small("on the edge", "edge") if arm["rate_on_edge"] else "")


def _ratio(verdict: Found | None, number: int) -> str:
    """With its ceiling; a dash leads to the sentence that refuses a ratio."""
    if verdict is None:
        return ""
    if verdict["refusal"]:
        return f'<a href="#said-{number}" title="{escape(verdict["refusal"])}">–</a>'
    most = _small(f"ceiling {verdict['ceiling']:.2f}x") if verdict["ceiling"] else ""
    return _stacked(words.ratio(verdict)) + most


def _stacked(found: tuple[str, str]) -> str:
    return found[0] + _small(found[1])


def _small(text: str, kind: str = "") -> str:
    return f'<small class="under {kind}">{escape(text)}</small>' if text else ""


def _table(kind: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The cells of the rows are HTML."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    return f"<div class=wide><table class={kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _lives(results: Found) -> Iterator[str]:
    """What arms that live in stages have learned and forgotten."""
    for number, (title, rows) in enumerate(words.lives(results)):
        head = "" if number else "<h2>Learned and forgotten</h2>"
        yield head + f"<p class=note>{escape(title)}:</p>" + _table("lives", rows[0], _escaped(rows[1:]))


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]


def _rates(results: Found) -> str:
    """Learning rates as columns, in the order of their size; the best one of each row in bold."""
    found = dict(words.tried(results))
    columns = sorted({rate for rates in found.values() for rate in rates})
    rows = []
    for name, rates in found.items():
        best = min(rates, key=lambda rate: (rates[rate] is None, rates[rate]))
        cells = {
            rate: f"<b>{words.trial(loss)}</b>" if rate == best else words.trial(loss) for rate, loss in rates.items()
        }
        rows.append([escape(name), *(cells.get(rate, "") for rate in columns)])
    arms = results["arms"].items()
    taken = [f"{name} took over that of {arm['tuned_by']}" for name, arm in arms if arm["tuned_by"] != name]
    note = f"<p class=note>{escape('; '.join(taken))}.</p>" if taken else ""
    none = "<p class=note>Each arm had one, so that none was tried against another.</p>"
    return (_table("rates", ["arm", *(f"{rate:g}" for rate in columns)], rows) if rows else none) + note


def _predecessors(results: Found) -> str:
    rows = _escaped(words.predecessors(results))
    return "<h2>Predecessors</h2>" + _table("predecessors", rows[0], rows[1:]) if rows else ""


def _details(name: str, arm: Found) -> str:
    """What an arm sets otherwise than the sweep's recipe, and the commands of its runs."""
    settings = {key: value for key, value in arm["settings"].items() if value}
    runs = "".join(
        f"<h3>seed {run['seed']}, budget {run['budget']:g}{'' if run['curve'] else ', diverged'}</h3>"
        f"<pre>{escape(run['command'])}</pre>"
        for run in arm["runs"]
    )
    text = escape(config.text_of(settings))
    return f"<details><summary>{escape(name)}</summary><h3>settings</h3><pre>{text}</pre>{runs}</details>"


def _command(name: str, command: str) -> str:
    return (
        f"<details><summary>{escape(name)} <small>predecessor</small></summary><pre>{escape(command)}</pre></details>"
    )


def _curves(results: Found, clock: Found) -> dict[str, Any]:
    """What the page draws."""
    price = clock["price"]
    axes = {axis: words.SHORT[axis] for axis in results["axes"]} | {axis: axis for axis in clock["axes"]}
    return {
        "axes": axes | ({"money": f"money ({price['currency']})"} if price else {}),
        "measure": CURVES[results["measure"]],
        "arms": [
            {"name": name, "baseline": name == results["baseline"], "runs": _runs(arm, clock["arms"][name], price)}
            for name, arm in results["arms"].items()
        ],
    }


def _runs(arm: Found, clock: Found, price: Found | None) -> list[dict[str, Any]]:
    """The columns of an arm's runs that did not diverge."""
    found = []
    for run, said in zip(arm["runs"], clock["runs"], strict=True):
        if not run["curve"]:
            continue
        columns = {name: [point[name] for point in run["curve"]] for name in run["curve"][0]}
        columns["seconds"] = said["curve"]
        if price:
            columns["money"] = [second / 3600 * price["per_hour"] for second in said["curve"]]
        result = run["budget"] == arm["settings"]["budgets"][0]
        found.append({"budget": run["budget"], "result": result} | {n: _digits(c) for n, c in columns.items()})
    return found


def _digits(column: Sequence[float | None]) -> list[float] | None:
    """Six digits of each; None for a cost that is not known."""
    known = [float(f"{value:.6g}") for value in column if value is not None]
    return known if len(known) == len(column) else None
