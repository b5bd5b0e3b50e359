"""What people read after a run: the page, the card, the lineage, the record of who did what."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from test_cli import run_main

from bequest import config
from bequest.job import push
from bequest.job.teach import teach
from bequest.report import page, record, table
from bequest.types import FolderError

PLAIN, KI = {"name": "plain"}, {"name": "ki", "until": 0.5}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """A predecessor, then a student from scratch and one that inherits."""
    folder = tmp_path_factory.mktemp("runs")
    world.run(folder / "first", PLAIN, name="first", eval__every_tokens=256)
    teacher = {"teacher": {"load": str(folder / "first" / "checkpoint")}}
    world.run(folder / "scratch", PLAIN, name="scratch", eval__every_tokens=256)
    world.run(folder / "second", KI, name="second", teachers=teacher, eval__every_tokens=256, seed=3)
    return folder


def data_of(text):
    return json.loads(re.search(r"const RUNS = (.*?);</script>", text, re.S)[1].replace("<\\/", "</"))


def test_a_page_stands_alone_and_holds_the_curves(runs):
    records = [record.read(runs / name) for name in ("first", "scratch", "second")]
    text = page.page(records)
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:|@import|url\(http""", text)
    assert "<!--" not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    found = data_of(text)
    assert [run["name"] for run in found] == ["first", "scratch", "second"]
    steps = [line for line in records[2].lines if "loss" in line]
    assert found[2]["train"]["loss"] == [round(line["loss"], 5) for line in steps]
    assert found[2]["train"]["all_flops"][-1] > found[2]["train"]["student_flops"][-1]
    assert found[0]["train"]["all_flops"] == found[0]["train"]["student_flops"]
    last = records[2].validations[-1]["valid"]["one"]
    assert found[2]["sources"]["one"]["bits_per_byte"][-1] == last["bits_per_byte"]
    assert "second against first, one: The predecessor itself is already as good" in text
    assert text.count("<i>teacher</i> <b>first</b>") == 1
    assert "bequest" in records[0].history[0]["command"]
    assert records[0].history[0]["versions"]["torch"] in text


def test_a_run_writes_its_own_page(runs):
    assert data_of((runs / "second" / "report.html").read_text())[0]["name"] == "second"


def test_long_curves_are_thinned_to_means():
    lines = [{"loss": float(i % 2), "step": i} for i in range(10_000)]
    found = page._thinned(lines)
    assert len(found) == page.POINTS
    assert found[-1]["step"] == 9999
    assert all(abs(line["loss"] - 0.5) < 0.1 for line in found)
    assert [line["step"] for line in page._thinned(lines[:5])] == [0, 1, 2, 3, 4]


def test_text_cannot_break_out_of_the_page(runs, tmp_path):
    found = record.read(runs / "first")
    evil = "</script><script>alert(1)</script>"
    lines = [{**line, "valid": {evil: line["valid"]["one"]}} if "valid" in line else line for line in found.lines]
    changed = record.Record(evil, tmp_path, found.recipe, lines, None, found.lineage, found.history, {})
    assert evil not in page.page([changed])


def test_an_unfinished_run_has_a_page(runs):
    found = record.read(runs / "first")
    text = page.page([record.Record("now", runs, found.recipe, found.lines[:5], None, {}, [], {})])
    assert "so far" in text


def test_the_command(runs, tmp_path, monkeypatch, capsys):
    from bequest import cli

    monkeypatch.setattr("sys.argv", ["bequest", "report", str(runs / "first"), "--out", str(tmp_path / "page.html")])
    cli.main()
    assert (tmp_path / "page.html").exists()
    code, error = run_main(monkeypatch, capsys, "report", tmp_path)
    assert code == 2
    assert "is not a run folder" in error


def test_a_card_says_what_and_from_whom(runs):
    from huggingface_hub import ModelCard

    text = (runs / "second" / "checkpoint" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder on this machine is nobody's base model
    assert "- teacher **first**" in text
    assert "bits per byte" in text
    assert config.parse(re.search(r"```yaml\n(.*?)```", text, re.S)[1], "card")["method"]["name"] == "ki"
    for saved in (runs / "second" / "checkpoints").iterdir():
        assert (saved / "README.md").exists()


def test_hub_predecessors_become_base_models_through_local_ones(runs):
    from huggingface_hub import ModelCard

    from bequest.report.card import card

    own = json.loads((runs / "second" / record.LINEAGE).read_text())
    grandparent = {**own["predecessors"][0], "hub": True, "load": "someone/model", "predecessors": []}
    own["predecessors"][0]["predecessors"] = [grandparent]
    recipe = config.read(runs / "second" / "recipe.yaml")
    cost = {"student_flops": 1.0, "teacher_flops": 0.0, "seconds": 1.0}
    assert ModelCard(card(recipe, own, cost, {})).data.base_model == ["someone/model"]


def test_lineage_goes_back_through_the_folders(runs):
    found = json.loads((runs / "second" / "checkpoint" / record.LINEAGE).read_text())
    (teacher,) = found["predecessors"]
    assert (found["name"], teacher["name"], teacher["as"], teacher["method"]) == ("second", "first", "teacher", "plain")
    assert teacher["tokens"] == record.read(runs / "first").summary["tokens"]
    assert found["tokens"] == record.read(runs / "second").summary["tokens"]
    for member, name in ((found, "second"), (teacher, "first")):
        summary = record.read(runs / name).summary
        assert member["flops"] == summary["student_flops"] + summary["teacher_flops"]
    card = (runs / "second" / "checkpoint" / "README.md").read_text()
    assert f"tokens, {teacher['flops']:.4g} FLOPs" in card


def test_lineage_of_a_store_counts_its_harvest(world, tmp_path):
    both = {"load": world.teacher["causal"], "store": str(tmp_path / "store")}
    changes = {"teachers__teacher": both, "teach": {"kind": "topk"}, "train__tokens": 512}
    teach(world.recipe(KI, **changes))
    summary = world.run(tmp_path / "run", KI, **changes)
    found = json.loads((tmp_path / "run" / record.LINEAGE).read_text())
    assert summary["harvest_flops"] > 0
    assert found["flops"] == summary["student_flops"] + summary["harvest_flops"]
    assert found["predecessors"][0]["flops"] is None  # a model from elsewhere
    assert summary["teachers"]["teacher"]["one"]["loss"] > 0


def test_lineage_from_before_flops_is_read(runs, world, tmp_path):
    def older(member):
        del member["flops"]
        return {**member, "predecessors": [older(p) for p in member["predecessors"]]}

    model = shutil.copytree(runs / "second" / "checkpoint", tmp_path / "model")
    (model / record.LINEAGE).write_text(json.dumps(older(json.loads((model / record.LINEAGE).read_text()))))
    world.run(tmp_path / "third", KI, teachers={"teacher": {"load": str(model)}}, train__tokens=256)
    found = json.loads((tmp_path / "third" / record.LINEAGE).read_text())
    (second,) = found["predecessors"]
    assert (second["flops"], second["predecessors"][0]["flops"]) == (None, None)
    assert found["flops"] > 0


def test_predecessors_are_measured_on_the_same_text(runs, world, tmp_path):
    first, second = (record.read(runs / name).summary for name in ("first", "second"))
    measured = second["teachers"]["teacher"]["one"]
    assert measured == pytest.approx(first["valid"]["one"])
    assert set(first["teachers"]) == {"teacher"}  # also one that is never asked
    left_out = {"flat": {"load": world.teacher["causal"], "control": "uniform"}}
    own = {"tokenizer": {"load": world.teacher["causal"]}, "train__tokens": 256}
    assert world.run(tmp_path / "flat", PLAIN, teachers=left_out, **own)["teachers"] == {}


def test_a_predecessor_that_is_gone_is_not_measured(world, tmp_path, capsys):
    model = shutil.copytree(world.teacher["causal"], tmp_path / "model")
    both = {"load": str(model), "store": str(tmp_path / "store")}
    changes = {"teachers__teacher": both, "train__tokens": 256}
    teach(world.recipe(KI, **changes))
    shutil.rmtree(model)
    assert world.run(tmp_path / "run", KI, **changes)["teachers"] == {}
    assert "the teacher teacher is not measured: there is no model" in " ".join(capsys.readouterr().err.split())


def test_savings_are_never_claimed_when_the_target_is_not_reached():
    def point(tokens, loss):
        return {"tokens": tokens, "student_flops": tokens, "teacher_flops": 0, "valid": {"a": {"loss": loss}}}

    base = [point(10, 5.0), point(20, 4.0)]
    assert "never reached" in table.savings(base, [point(10, 5.0), point(20, 4.1)], "a")
    assert "after 50% of its tokens" in table.savings(base, [point(10, 4.0), point(20, 3.0)], "a", [4.1])
    for teachers in ([4.0], [5.0, 3.9]):
        said = table.savings(base, [point(10, 4.0), point(20, 3.0)], "a", teachers)
        assert said.startswith("The predecessor itself is already as good")
        assert "%" not in said


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload needs."""

    committed: list

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            answer = {"url": f"http://127.0.0.1:{self.server.server_port}/user/model", "name": json.loads(body)["name"]}
            assert b"private" in body
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" not in self.path:
            answer = {"warnings": [], "errors": []}  # the card's YAML is valid
        else:
            self.committed += [json.loads(line)["value"].get("path") for line in body.splitlines()]
            address = f"http://127.0.0.1:{self.server.server_port}/user/model/commit/{'1' * 40}"
            answer = {"commitUrl": address, "commitOid": "1" * 40, "success": True}
        self._send(answer)

    def do_GET(self):
        self._send({"id": "user/model", "sha": "1" * 40, "siblings": [], "xetEnabled": False})

    def _send(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_push_uploads_every_file_to_a_private_repository(runs, monkeypatch):
    Hub.committed = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    try:
        push.push(runs / "second" / "checkpoint", "user/model")
    finally:
        server.shutdown()
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(Hub.committed)


def test_push_that_fails_is_one_sentence(runs):
    with pytest.raises(FolderError, match=r"cannot push .* log in with hf auth login"):
        push.push(runs / "second" / "checkpoint", "not a name")


def test_runs_of_one_name_go_by_their_folders(runs):
    found = record.read(runs / "second")
    text = page.page([found, record.Record("second", runs / "again", *list(vars(found).values())[2:])])
    assert [run["name"] for run in data_of(text)] == ["second", "again"]
    assert text.count("<b>again</b>") == 1


def test_losses_of_other_tokenizers_are_not_compared(runs, world, tmp_path):
    world.run(tmp_path / "masked", PLAIN, "masked", name="masked")
    alike = page.page([record.read(runs / name) for name in ("scratch", "second")])
    unlike = page.page([record.read(runs / "second"), record.read(tmp_path / "masked")])
    assert "cannot be compared between" not in alike
    assert "differ in tokenizer or objective: second | masked" in unlike
