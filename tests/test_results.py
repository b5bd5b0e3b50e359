"""The page of results holds what the sweeps said, and says so when it cannot."""

import importlib.util
import json
from pathlib import Path

import pytest
from swept import swept

from bequest.compare import output
from bequest.compare.fragment import fragment

ROOT = Path(__file__).parents[1]


def script():
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def taken(tmp_path):
    """A folder of sweeps that has taken one."""
    results, clock = swept(12)
    output.write(results, clock, tmp_path / "finished")
    script().take(tmp_path / "finished", tmp_path / "sweeps")
    return tmp_path / "sweeps"


def test_the_page_is_current():
    docs = script()
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run python docs/results.py"
    assert docs.README.read_text(encoding="utf-8") == docs.readme(), "run python docs/results.py"
    assert "<!-- arms: " in docs.readme()


def test_a_template_is_filled(taken):
    results, clock = swept(12)
    ki = results["arms"]["ki"]
    template = (
        "# Results\n\n<!-- sweep: made-up -->\n\nIt ends at {{made-up: arms.ki.final.0 .4f}} ({{ made-up: arms.ki.parameters , }}): "
        "{{made-up: ratio ki tokens}}, {{made-up: ratio broken tokens}}, {{made-up: ratio wsl tokens}}, "
        "{{made-up: gap ki tokens}}, {{made-up: gap broken tokens}}.\n"
    )
    text = script().assembled(template, taken)
    assert f"\n\n{fragment(results, clock).strip()}\n\nIt ends" in text
    mean, low, high = ki["verdicts"]["tokens"]["ratio"]
    ratio = f"{mean:.2f}x ({low:.2f} to {high:.2f})"
    mean, low, high = ki["verdicts"]["tokens"]["gap"]
    gap = f"{mean:.4f} ({low:.4f} to {high:.4f})"
    end = f"{ki['final'][0]:.4f} (1,234,567): {ratio}, no ratio, no ratio, {gap}, no gap."
    assert text.endswith(f"It ends at {end}\n")


def test_keys_may_hold_dots(taken):
    results = json.loads((taken / "made-up" / "results.json").read_text())
    results["arms"]["ki.v2"] = results["arms"]["plain"]
    (taken / "made-up" / "results.json").write_text(json.dumps(results))
    text = script().assembled("{{made-up: arms.ki.v2.final.0 .3f}} {{made-up: arms.ki.final.0 .3f}}", taken)
    assert text == f"{results['arms']['plain']['final'][0]:.3f} {results['arms']['ki']['final'][0]:.3f}"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("<!-- sweep: other -->", "the sweep 'other' is not there"),
        ("{{other: confidence}}", "the sweep 'other' is not there"),
        ("{{made-up: arms.kii.final.0}}", "made-up: 'arms.kii.final.0' is no number"),
        ("{{made-up: arms.ki.final.7 .4f}}", "is no number"),
        ("{{made-up: question}}", "is no number"),
        ("{{made-up: ratio kii tokens}}", "no ratio of the arm 'kii' in 'tokens'"),
        ("{{made-up: gap plain tokens}}", "no gap of the arm 'plain' in 'tokens'"),
    ],
)
def test_what_is_not_there_is_one_sentence(taken, template, sentence):
    with pytest.raises(SystemExit, match=sentence):
        script().assembled(template, taken)


def test_only_finished_sweeps_are_taken(tmp_path):
    with pytest.raises(SystemExit, match="no finished sweep"):
        script().take(tmp_path, tmp_path / "sweeps")
