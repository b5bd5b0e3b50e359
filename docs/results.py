"""Write `results.md` from its template and the results of sweeps, and the README's table: `python docs/results.py [--take FOLDER...]`.

With --take it first copies what finished sweeps have written, results.json and clock.json, into docs/results/NAME.

In the template a line `<!-- sweep: NAME -->` stands for all that is said of a sweep. Within the text stand numbers of its
results.json, {{NAME: PATH FORMAT}} such as {{headline: arms.ki.final.0 .4f}}, and the two that a sentence needs most:
{{NAME: ratio ARM AXIS}} and {{NAME: gap ARM AXIS}}. In the README everything between `<!-- arms: NAME ARM ARM... -->` and
`<!-- end -->` is the table of those arms.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bequest.compare import words
from bequest.compare.fragment import arms, fragment

README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).with_name("results.md")
TEMPLATE = Path(__file__).with_name("results.template.md")
SWEEPS = Path(__file__).with_name("results")
FILES = ("results.json", "clock.json")


def page() -> str:
    """The page as it should be."""
    return assembled(TEMPLATE.read_text(encoding="utf-8"), SWEEPS)


def readme() -> str:
    """The README as it should be."""

    def table(found: re.Match[str]) -> str:
        name, *names = found[2].split()
        return f"{found[1]}\n" + "\n".join(arms(_read(SWEEPS, name)[0], names)) + "\n<!-- end -->"

    return re.sub(
        r"^(<!-- arms: (.*) -->)\n.*?^<!-- end -->$", table, README.read_text(encoding="utf-8"), flags=re.M | re.S
    )


def assembled(template: str, sweeps: Path) -> str:
    """A template with sweeps and numbers filled in."""
    text = re.sub(
        r"\{\{([^:{}]+):([^{}]+)\}\}", lambda found: _number(sweeps, found[1].strip(), found[2].split()), template
    )
    whole = r"^<!-- sweep: (\S+) -->$"
    return re.sub(whole, lambda found: fragment(*_read(sweeps, found[1])).strip(), text, flags=re.M)


def _read(sweeps: Path, name: str) -> list[dict[str, Any]]:
    folder = sweeps / name
    _require(folder, f"the sweep {name!r} is not there, take it with --take")
    return [json.loads((folder / file).read_text(encoding="utf-8")) for file in FILES]


def _require(folder: Path, otherwise: str) -> None:
    if missing := [file for file in FILES if not (folder / file).exists()]:
        raise SystemExit(f"{otherwise}: {folder} has no {missing[0]}")


def _number(sweeps: Path, name: str, parts: Sequence[str]) -> str:
    results, _ = _read(sweeps, name)
    if len(parts) == 3 and parts[0] in ("ratio", "gap"):
        kind, arm, axis = parts
        verdict = _look(results, f"arms.{arm}.verdicts.{axis}")
        if not isinstance(verdict, dict):
            raise SystemExit(f"{name}: there is no {kind} of the arm {arm!r} in {axis!r}")
        found = words.joined(words.ratio(verdict) if kind == "ratio" else words.gap(verdict))
        return f"no {kind}" if found == words.NONE else found
    value = _look(results, parts[0])
    if not isinstance(value, int | float) or len(parts) > 2:
        raise SystemExit(f"{name}: {' '.join(parts)!r} is no number of its results.json")
    return format(value, *parts[1:])


def _look(found: Any, path: str) -> Any:
    """What stands at a dotted path, None if nothing does; keys may hold dots themselves."""
    if not path:
        return found
    inner = dict(enumerate(found)) if isinstance(found, list) else found if isinstance(found, dict) else {}
    fitting = [key for key in map(str, inner) if f"{path}.".startswith(f"{key}.")]
    values = (_look(inner[int(key) if isinstance(found, list) else key], path[len(key) + 1 :]) for key in fitting)
    return next((value for value in values if value is not None), None)


def take(folder: Path, sweeps: Path) -> None:
    """Copy a finished sweep's results."""
    _require(folder, "this is no finished sweep")
    name = json.loads((folder / "results.json").read_text(encoding="utf-8"))["name"]
    (sweeps / name).mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (sweeps / name / file).write_bytes((folder / file).read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write docs/results.md and the README's table.")
    parser.add_argument("--take", type=Path, nargs="+", default=[], metavar="FOLDER", help="of a finished sweep")
    for folder in parser.parse_args().take:
        take(folder, SWEEPS)
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
