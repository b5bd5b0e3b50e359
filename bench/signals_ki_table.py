"""The table of `bench/signals_ki.sh`, from the run folders and the stores."""

import json
from pathlib import Path

from bequest.teach.store import exists, open_store

HEAD = ("signal", "bytes per row", "ids per row", "mass of the rest", "seed", "loss", "bits per byte", "against live")
print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
for summary in sorted(Path("runs/signals").glob("*/seed-*/summary.json")):
    found, folder = json.loads(summary.read_text()), summary.parents[1]
    valid = found["valid"]["wiki"]
    live = json.loads((folder.parent / "live" / summary.parent.name / "summary.json").read_text())["valid"]["wiki"]
    store = open_store(folder / "store").manifest if exists(folder / "store") else None
    rows = store.total("rows") if store else 0
    per_row = (
        (f"{store.total(name) / rows:.{digits}f}" for name, digits in (("bytes", 1), ("kept", 1), ("rest", 3)))
        if store
        else "---"
    )
    print(
        f"| {folder.name} | {' | '.join(per_row)} | {summary.parent.name[5:]} | {valid['loss']:.4f} | "
        f"{valid['bits_per_byte']:.4f} | {valid['loss'] - live['loss']:+.4f} |"
    )
