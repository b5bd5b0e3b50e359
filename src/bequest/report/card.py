"""The README.md of a saved model: what it is, from whom it comes, what it was trained on, what it cost, how good it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import config


def card(
    recipe: Mapping[str, Any], lineage: Mapping[str, Any], cost: Mapping[str, float], valid: Mapping[str, Any]
) -> str:
    """A model card as the Hugging Face Hub reads it.

    `cost` holds student_flops, teacher_flops and seconds; `valid` is the latest validation, empty before the first.
    """
    from huggingface_hub import ModelCardData

    masked = recipe["data"]["objective"] == "masked"
    hubs = sorted({text["hub"] for text in recipe["data"]["train"] if text["hub"]})
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask" if masked else "text-generation",
        base_model=sorted(set(_hub_ids(lineage))) or None,
        datasets=hubs or None,
        tags=["bequest", f"method:{lineage['method']}"],
    )
    auto = "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {lineage['name']}",
            f"A {'masked' if masked else 'causal'} language model of {lineage['parameters']:,} parameters after "
            f"{lineage['tokens']:,} tokens, trained with Bequest, "
            f"method `{lineage['method']}`.",
            "```python\nfrom transformers import AutoTokenizer, " + auto,
            f'model = {auto}.from_pretrained("path/to/this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```',
            "## Predecessors\n",
            *(list(_tree(lineage["predecessors"], 0)) or ["None: trained from scratch."]),
            "\n## Results\n",
            *_results(valid),
            "\n## Cost\n",
            f"{cost['student_flops']:.4g} FLOPs of its own and {cost['teacher_flops']:.4g} of its teachers' forward passes; "
            f"{cost['seconds']:,.0f} seconds of training. The predecessors' own training is not counted.",
            "\n## Text\n",
            *(f"- {text['source']}: {text['hub'] or text['path']}" for text in recipe["data"]["train"]),
            f"\n## Recipe\n\n```yaml\n{config.text_of(recipe)}```\n",
        ]
    )


def _hub_ids(lineage: Mapping[str, Any]) -> Iterator[str]:
    """The nearest predecessors that the Hub can link to: through local ones to theirs."""
    for predecessor in lineage["predecessors"]:
        if predecessor["hub"]:
            yield predecessor["load"]
        else:
            yield from _hub_ids(predecessor)


def _tree(predecessors: list[Mapping[str, Any]], depth: int) -> Iterator[str]:
    for p in predecessors:
        tokens = "an unknown number of" if p["tokens"] is None else f"{p['tokens']:,}"
        flops = "" if p["flops"] is None else f", {p['flops']:.4g} FLOPs"
        yield f"{'  ' * depth}- {p['as']} **{p['name']}**: {p['parameters']:,} parameters, {tokens} tokens{flops}"
        yield from _tree(p["predecessors"], depth + 1)


def _results(valid: Mapping[str, Any]) -> list[str]:
    if not valid:
        return ["Not validated yet."]
    lines = ["| source | loss (nats per token) | perplexity | bits per byte |", "|---|---|---|---|"]
    for source, v in valid.items():
        bits = f"{v['bits_per_byte']:.4f}" if "bits_per_byte" in v else "-"
        lines.append(f"| {source} | {v['loss']:.4f} | {v['perplexity']:.2f} | {bits} |")
    return lines
