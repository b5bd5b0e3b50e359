"""`bequest demo`: a predecessor, then a successor about three times larger twice, from scratch and inheriting.

Without `--text` the corpus is the source code of the running Python's standard library: real text that every machine has.
The recipes are written beside the runs, so that each run can be repeated or changed with `bequest train`.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import config, sense
from ..files import replace_text
from ..job.train import train
from ..report import metrics, table
from ..types import DataError

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def command(text: Path | None, out: Path, scale: float) -> None:
    """Run the demo and print what inheriting saved."""
    out.mkdir(parents=True, exist_ok=True)
    texts = _texts(text, out)
    summaries = {}
    for name, raw in _recipes(texts, out, scale).items():
        path = out / f"{name}.yaml"
        config.write(raw, path)
        summaries[name] = train(sense.load(path), out / name)
    table.show(_table(summaries))
    baseline, inheriting = (
        table.validations(metrics.read(out / name / "metrics.jsonl")) for name in ("scratch", "inherit")
    )
    teachers = table.losses_of_teachers(summaries["inherit"], "text")
    print(table.savings(baseline, inheriting, "text", teachers))
    print(f"Recipes and models are in {out}; the inheriting one is {summaries['inherit']['checkpoint']}")


def _texts(text: Path | None, out: Path) -> list[dict[str, Any]]:
    if text is not None:
        return [{"path": str(text), "source": "text"}]
    path = out / "standard-library.jsonl"
    if not path.exists():
        lines = [json.dumps({"text": code}) for code in _standard_library()]
        if not lines:
            raise DataError(
                "this Python has no standard library in source form; give a folder of your own text with --text"
            )
        replace_text(path, "\n".join(lines) + "\n")
    return [{"path": str(path), "source": "text"}]


def _standard_library() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not LEFT_OUT & set(path.relative_to(root).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a few files are kept in old encodings on purpose
                continue


def _recipes(texts: list[dict[str, Any]], out: Path, scale: float) -> dict[str, dict[str, Any]]:
    """The three runs, in order."""

    def recipe(name: str, student: dict[str, Any], method: dict[str, Any], tokens: int, **more: Any) -> dict[str, Any]:
        batch = 2048
        steps = max(8, round(tokens * scale) // batch)
        return {
            "name": name,
            "data": {"train": texts, "valid_fraction": 0.05, "sequence": 256},
            "student": {"family": "llama", **student},
            **more,
            "method": method,
            "train": {
                "tokens": steps * batch,
                "batch_tokens": batch,
                "optimiser": {"name": "muon", "lr": 1e-2},
                "schedule": {"name": "wsd", "warmup": 0.05},
            },
            "eval": {"every_tokens": max(1, steps // 12) * batch, "tokens": 60_000},
        }

    small, large = {"hidden": 128, "layers": 3, "heads": 4}, {"hidden": 192, "layers": 5, "heads": 6}
    teacher = {"teacher": str(out / "predecessor" / "checkpoint")}
    return {
        "predecessor": recipe("predecessor", small, {"name": "plain"}, 320_000, tokenizer={"train": {"vocab": 1024}}),
        "scratch": recipe("scratch", large, {"name": "plain"}, 400_000, tokenizer={"load": teacher["teacher"]}),
        "inherit": recipe("inherit", large, {"name": "ki", "shape": "wsd", "until": 0.5}, 400_000, teachers=teacher),
    }


def _table(summaries: dict[str, dict[str, Any]]) -> Table:
    found = Table(title="What inheriting saved", title_justify="left")
    for column in ("run", "parameters", "tokens", "loss", "bits per byte", "FLOPs", "of which teacher", "seconds"):
        found.add_column(column, justify="left" if column == "run" else "right")
    for name, s in summaries.items():
        valid, flops = s["valid"]["text"], s["student_flops"] + s["teacher_flops"]
        found.add_row(
            name,
            f"{s['student_parameters'] / 1e6:.2f} M",
            f"{s['tokens']:,}",
            f"{valid['loss']:.4f}",
            f"{valid['bits_per_byte']:.4f}",
            f"{flops:.2e}",
            f"{s['teacher_flops'] / flops:.0%}",
            f"{s['wall_s']:.0f}",
        )
    return found
