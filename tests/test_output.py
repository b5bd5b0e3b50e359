"""The page and the fragment of a sweep hold everything that was found, and nothing that breaks them."""

import json
import re
from html import unescape

import pytest
from swept import HELP, swept

from bequest.compare import output, words
from bequest.compare.fragment import fragment
from bequest.compare.page import page

EVIL = "</script><script>alert(1)</script><b>|</b>"


def shown(text):
    """What a reader may see: the page without scripts and styles."""
    return unescape(re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.S))


def drawn(text):
    return json.loads(re.search(r"const SWEEP = (.*?);</script>", text, re.S)[1])


def cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("arms", [2, 12])
def test_the_page_holds_everything(arms):
    results, clock = swept(arms)
    text = page(results, clock)
    seen = shown(text)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(http""", text)
    assert "<!--" not in re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.S)
    for sentence in (*results["sentences"], *clock["sentences"]):
        assert sentence["text"] in seen
    assert results["command"] in seen
    for name, arm in results["arms"].items():
        assert f"<summary>{name}</summary>" in text
        assert all(f"<pre>{run['command']}</pre>" in seen for run in arm["runs"])
        assert all(v["refusal"] in seen for v in arm["verdicts"].values())
    assert results["predecessors"]["small"]["command"] in seen
    rows = re.findall(r"<tr>(.*?)</tr>", text[text.index("class=arms") : text.index('id="curves"')], re.S)
    assert len(rows) == 1 + arms
    assert {len(re.findall("<t[hd]>", row)) for row in rows} == {7 + 4 + 1}


def test_every_curve_is_drawn_over_every_cost():
    results, clock = swept(12)
    found = drawn(page(results, clock))
    assert [*found["axes"]] == ["tokens", "student_flops", "all_flops", "counted_flops", "seconds", "money"]
    arms = {arm["name"]: arm["runs"] for arm in found["arms"]}
    assert [*arms] == ["plain", *HELP]
    assert [run["budget"] for run in arms["plain"] if run["result"]] == [1.0] * 3
    assert len(arms["plain"]) == 9
    assert arms["broken"] == []
    assert all(run["counted_flops"] is None for run in arms["unknown"])
    run, said = arms["ki"][0], clock["arms"]["ki"]["runs"][0]["curve"]
    assert run["loss"] == pytest.approx([p["loss"] for p in results["arms"]["ki"]["runs"][0]["curve"]], rel=1e-5)
    assert run["money"] == pytest.approx([3.5 * s / 3600 for s in said], rel=1e-5)
    assert "money" not in drawn(page(*swept(2, price=None)))["axes"]


def test_the_table_marks_what_matters():
    text = page(*swept(12))
    assert text.count("on the edge</small>") == 1
    assert 'title="broken diverged at the best of its learning rates"' in text
    assert {s["kind"] for s in swept(12)[0]["sentences"]} == {"saves", "costs", "refusal", "warning"}
    assert "ki_late took over that of ki" in text


def test_a_ceiling_stands_below_its_ratio():
    results, clock = swept()
    results["arms"]["ki"]["verdicts"]["tokens"]["ceiling"] = 2.345
    assert "ceiling 2.35x</small>" in page(results, clock) or "ceiling 2.34x</small>" in page(results, clock)


def test_text_cannot_break_out():
    results, clock = swept()
    for found in (results, clock):
        found["arms"][EVIL] = found["arms"].pop("ki")
        found["sentences"] = [
            s | {"arm": s["arm"].replace("ki", EVIL), "text": s["text"].replace("ki", EVIL)} for s in found["sentences"]
        ]
    results |= {"name": EVIL, "question": EVIL, "command": EVIL}
    results["arms"][EVIL]["settings"]["set"] = {"name": EVIL}
    results["arms"][EVIL]["tuned_by"] = EVIL
    text = page(results, clock)
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>|" not in text
    assert [arm["name"] for arm in drawn(text)["arms"]] == ["plain", EVIL]
    rows = [line for line in fragment(results, clock).splitlines() if line.startswith("| ") and EVIL[-4:] in line]
    assert len(cells(rows[0])) == 9


@pytest.mark.parametrize("arms", [2, 12])
def test_the_fragment_holds_everything(arms):
    results, clock = swept(arms)
    text = fragment(results, clock)
    assert text.startswith("### made-up\n")
    assert f"```text\n{results['command']}\n```" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    widths = [{len(cells(line)) for line in table.splitlines()} for table in tables]
    assert widths == [{9}, {7}, {2}]
    first = [cells(line)[0].strip() for line in tables[0].splitlines()[2:]]
    assert first == ["plain (baseline)", *list(HELP)[: arms - 1]]
    assert all(f"\n- {sentence['text']}\n" in text for sentence in results["sentences"])
    last = text.strip().splitlines()[-1]
    assert last.startswith("By the clock: ")
    assert last.endswith(words.spent(clock))
    assert all(sentence["text"] in last for sentence in clock["sentences"])


def test_only_the_last_line_of_the_fragment_knows_the_clock():
    results, clock = swept()
    other = clock | {"seconds": 1.0, "sentences": []}
    one, two = (fragment(results, c).strip().splitlines() for c in (clock, other))
    assert one[:-1] == two[:-1]
    assert two[-1] == f"By the clock: {words.spent(other)}"


def test_many_intervals_come_with_a_warning():
    for text in (page(*swept(12)), fragment(*swept(12))):
        assert "11 arms against one baseline at 95%: if none differed, 0.6 would seem to by chance." in text
    assert "by chance" not in fragment(*swept(2, confidence=None, seeds=[0]))


def test_a_price_turns_seconds_into_money():
    clock = {"seconds": 7200.0, "price": {"per_hour": 2.5, "currency": "EUR"}}
    assert words.spent(clock) == "All runs together took 7,200 seconds of training, 5.00 EUR."
    assert words.spent(clock | {"price": None}).endswith("training.")


def test_without_confidence_there_are_means_alone():
    results, clock = swept(2, confidence=None, seeds=[0])
    row = next(line for line in fragment(results, clock).splitlines() if line.startswith("| ki"))
    assert " to " not in row
    assert re.search(r"\| \d\.\d\dx \|", row)
    text = page(results, clock)
    assert "No intervals were asked for." in text
    assert "None" not in shown(text)


def test_one_learning_rate_and_no_predecessors():
    results, clock = swept()
    for arm in results["arms"].values():
        arm["tried"] = []
    results["predecessors"] = {}
    assert "none was tried" in page(results, clock)
    assert len(re.findall(r"^\|---", fragment(results, clock), re.M)) == 1


def test_results_are_written(tmp_path):
    results, clock = swept()
    output.write(results, clock, tmp_path / "made-up")
    assert sorted(p.name for p in (tmp_path / "made-up").iterdir()) == [
        ".lock",
        "clock.json",
        "fragment.md",
        "index.html",
        "results.json",
    ]
    read = [json.loads((tmp_path / "made-up" / name).read_text()) for name in ("results.json", "clock.json")]
    assert (tmp_path / "made-up" / "index.html").read_text() == page(*read)
    assert (tmp_path / "made-up" / "fragment.md").read_text() == fragment(*read)
