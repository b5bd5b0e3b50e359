"""The table and the sentences of `bench/wiki.sh`, from the run folders."""

import json
from pathlib import Path

from bequest.report import metrics, table

for objective in ("causal", "masked"):
    print(
        f"\n{objective}\n\n"
        "| run | parameters | tokens | loss | perplexity | bits per byte | FLOPs | of which teacher |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for run in ("teacher", "plain", "ki"):
        s = json.loads(Path(f"runs/wiki-{objective}-{run}/summary.json").read_text())
        v, flops = s["valid"]["wiki"], s["student_flops"] + s["teacher_flops"]
        bits = f"{v['bits_per_byte']:.4f}" if "bits_per_byte" in v else "-"
        print(
            f"| {run} | {s['student_parameters']:,} | {s['tokens']:,} | "
            f"{v['loss']:.4f} | {v['perplexity']:.2f} | {bits} | {flops:.3e} | "
            f"{s['teacher_flops'] / flops:.1%} |"
        )
    plain, ki = (
        table.validations(metrics.read(Path(f"runs/wiki-{objective}-{run}/metrics.jsonl"))) for run in ("plain", "ki")
    )
    print(f"\n{table.savings(plain, ki, 'wiki')}")
