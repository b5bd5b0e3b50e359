"""What `bequest check` says about memory and FLOPs against what runs then need: three families and more, both objectives.

    .venv/bin/python bench/memory.py TEXT FOLDER [CASE ...]

Thirty-two steps each (the heap grows for about twenty), in processes of their own. The heap's one fitted number
(job/heap.py) was fitted to other shapes.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from bequest import config

MASKED = "data.objective=masked"
CASES = {
    "llama": ["student.hidden=320", "student.layers=6", "student.heads=5"],
    "llama-micro-muon": ["student.hidden=512", "train.micro_batch_tokens=2048", "train.optimiser.name=muon"],
    "gpt2": ["student.family=gpt2", "student.hidden=256", "student.layers=6"],
    "gpt2-fp32": ["student.family=gpt2", "train.precision=fp32", "train.micro_batch_tokens=4096"],
    "qwen3-gqa": ["student.family=qwen3", "student.hidden=384", "student.heads=6", "student.kv_heads=2"],
    "bert": [MASKED, "student.family=bert", "student.hidden=384", "student.layers=6", "student.heads=6"],
    "bert-micro": [
        MASKED,
        "student.family=bert",
        "student.hidden=512",
        "student.heads=8",
        "train.micro_batch_tokens=2048",
    ],
    "roberta-fp32": [MASKED, "student.family=roberta", "train.precision=fp32"],
    "ki": [
        "student.hidden=384",
        "student.heads=6",
        "method=ki",
        "tokenizer=null",
        "teachers.teacher={out}/llama/checkpoint",
    ],
}


def main() -> None:
    text, out, *chosen = sys.argv[1:]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    raw = {
        "name": "memory",
        "data": {"train": [{"path": text}], "valid_fraction": 0.02, "sequence": 256},
        "tokenizer": {"train": {"vocab": 4096}},
        "student": {"family": "llama", "hidden": 256, "layers": 4, "heads": 4},
        "method": "plain",
        "train": {"tokens": 262144, "batch_tokens": 8192},
        "eval": {"tokens": 20000},
    }
    config.write(raw, folder / "base.yaml")
    print("| case | check, MB | run, MB | ratio | FLOPs equal |\n|---|---|---|---|---|")
    for name, changes in CASES.items():
        if chosen and name not in chosen:
            continue
        command = [str(folder / "base.yaml"), *(c.format(out=out) for c in changes), "--out", str(folder / name)]
        said = _run("check", command)
        _run("train", command)
        found = json.loads((folder / name / "summary.json").read_text())
        memory = float(re.search(r"memory: ([\d,]+) MB", said)[1].replace(",", ""))
        flops = re.search(r"cost: (\S+) FLOPs", said)[1] == f"{found['student_flops'] + found['teacher_flops']:.4g}"
        real = found["peak_rss_mb"]
        print(f"| {name} | {memory:.0f} | {real:.0f} | {memory / real:.2f} | {'yes' if flops else 'no'} |", flush=True)


def _run(command: str, arguments: list[str]) -> str:
    return subprocess.run(
        [sys.executable, "-m", "bequest", command, *arguments], check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    main()
