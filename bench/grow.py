"""What growth costs against copying the grown weights once: time, and memory at its worst. `OMP_NUM_THREADS=1 python bench/grow.py`

Both sides in turn, nine times; the median of each. The model has nothing but weights (it is made without drawing them twice).
"""

from __future__ import annotations

import statistics
import time
from functools import partial

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from bequest.device import keep_freed_memory
from bequest.job.footprint import Counting
from bequest.model.grow.growth import Growth, grown
from bequest.model.language import LanguageModel

SIZES = {
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 16384,
}
GPT2 = {"n_embd": 768, "n_layer": 8, "n_head": 12, "n_inner": 3072, "vocab_size": 16384}
TWICE = {"hidden": 1536, "heads": 24, "feed_forward": 6144}
CASES = {
    "llama, twice as wide, zeros": ("llama", Growth(**TWICE)),
    "llama, twice as wide, tiles": ("llama", Growth(**TWICE, width="tile")),
    "llama, half as wide again": ("llama", Growth(hidden=1152, heads=18, feed_forward=4608)),
    "llama, twice as deep, silent blocks": ("llama", Growth(layers=16)),
    "llama, four times as deep, stacked": ("llama", Growth(layers=32, depth="stack")),
    "gpt2, twice as wide": ("gpt2", Growth(**TWICE)),
    "bert, twice as wide, tiles": ("bert", Growth(**TWICE, width="tile")),
}


def main() -> None:
    keep_freed_memory()  # as training has it: page faults would be most of either side
    print(f"{'case':40} {'MB':>6} {'time':>6} {'memory':>6}")
    for name, (family, growth) in CASES.items():
        auto = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
        model = LanguageModel(auto.from_config(AutoConfig.for_model(family, **(GPT2 if family == "gpt2" else SIZES))))
        larger, _ = grown(model, growth)
        weights = [p.detach() for p in larger.parameters()]
        size = sum(w.nbytes for w in weights)
        grows, copies = [], []
        for _ in range(9):
            grows.append(timed(partial(grown, model, growth)))
            copies.append(timed(partial(copied, weights)))
        with Counting() as counting:
            grown(model, growth)
        ratio = statistics.median(grows) / statistics.median(copies)
        print(f"{name:40} {size / 1e6:6.0f} {ratio:6.2f} {counting.peak / size:6.2f}", flush=True)


def copied(weights):
    return [w.clone() for w in weights]


def timed(do) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


if __name__ == "__main__":
    main()
