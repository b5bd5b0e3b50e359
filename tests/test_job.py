"""Run folders: resuming, refusing, extending, stopping, and what disks and files do to them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import laws
import pytest
import torch
from conftest import losses, same_bits, weights

from bequest import config
from bequest.job.train import train
from bequest.report import metrics
from bequest.train import checkpoint
from bequest.types import DataError, FolderError, ModelError, RecipeError, Stopped, TrainingError

PLAIN, KI = {"name": "plain"}, {"name": "ki", "until": 0.5}


def test_what_a_run_leaves(world, tmp_path):
    summary = world.run(tmp_path / "run", KI, eval__every_tokens=512)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    costs = {"tokens", "student_flops", "teacher_flops", "wall_s", "tokens_per_s", "peak_rss_mb"}
    assert costs | {"valid", "checkpoint"} <= set(summary)
    assert set(summary["valid"]["one"]) == {"loss", "perplexity", "bits_per_byte"}
    assert {name: set(found) for name, found in summary["teachers"].items()} == {"teacher": {"one"}}
    assert set(summary["teachers"]["teacher"]["one"]) == {"loss", "perplexity", "bits_per_byte"}
    lines = list(metrics.read(tmp_path / "run" / "metrics.jsonl"))
    steps = [x for x in lines if "loss" in x]
    assert [x["step"] for x in steps] == list(range(1, 13))
    assert {"step", "tokens", "loss", "parts", "lr", "rate", "seconds"} <= set(steps[0])
    assert [x["step"] for x in lines if "valid" in x] == [4, 8, 12]
    assert summary["student_flops"] == pytest.approx([x for x in lines if "valid" in x][-1]["student_flops"])
    assert [p.name for p in checkpoint.existing(tmp_path / "run")] == ["step-00000008", "step-00000012"]
    resolved = config.read(tmp_path / "run" / "recipe.yaml")
    assert resolved["method"] == {
        "name": "ki",
        "start": 1.0,
        "until": 0.5,
        "shape": "linear",
        "temperature": 1.0,
        "compare_every": None,
    }


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_result_loads_with_transformers(world, tmp_path, objective):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    out = world.run(tmp_path / "run", KI, objective)["checkpoint"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    if objective == "causal":
        model = AutoModelForCausalLM.from_pretrained(out)
        found = model.generate(**tokenizer("the house", return_tensors="pt"), max_new_tokens=5, do_sample=False)
        assert isinstance(tokenizer.decode(found[0]), str)
    else:
        model = AutoModelForMaskedLM.from_pretrained(out)
        assert model(**tokenizer("the <mask> sees", return_tensors="pt")).logits.shape[-1] == len(tokenizer)


def test_finished_run_says_so_and_does_nothing(world, tmp_path):
    first = world.run(tmp_path / "run", PLAIN)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = world.run(tmp_path / "run", PLAIN)
    assert again == first | {"was_finished": True}
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_changed_recipe_is_refused_by_name(world, tmp_path):
    world.run(tmp_path / "run", KI)
    for change, words in (
        ({"train__optimiser__lr": 0.02}, "train.optimiser.lr was 0.01 and is 0.02"),
        ({"seed": 5}, "seed was 0 and is 5"),
        ({"student__hidden": 32, "seed": 1}, "and 1 more key"),
    ):
        with pytest.raises(FolderError, match=words):
            world.run(tmp_path / "run", KI, **change)
    with pytest.raises(FolderError, match=r"method\.until was 0\.5 and is 0\.6"):
        world.run(tmp_path / "run", {"name": "ki", "until": 0.6})
    with pytest.raises(FolderError, match="can only be raised"):
        world.run(tmp_path / "run", KI, train__tokens=1408)


def test_frequencies_may_change_and_change_nothing(world, tmp_path):
    world.run(tmp_path / "whole", KI)
    laws.stopped_at(world, tmp_path / "run", 5, KI, "causal")
    world.run(
        tmp_path / "run",
        KI,
        eval__every_tokens=256,
        train__save_every_tokens=0,
        train__log_every_steps=4,
        train__keep=1,
    )
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "run"))


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_longer_run_equals_one_planned_longer(world, tmp_path, schedule):
    changes = {"train__schedule": {"name": schedule, "warmup": 256}}
    world.run(tmp_path / "long", PLAIN, train__tokens=2560, **changes)
    if schedule == "constant":
        world.run(tmp_path / "run", PLAIN, **changes)
    else:
        laws.stopped_at(world, tmp_path / "run", 6, PLAIN, "causal", **changes)
    world.run(tmp_path / "run", PLAIN, train__tokens=2560, **changes)
    assert same_bits(weights(tmp_path / "long"), weights(tmp_path / "run"))


def test_longer_run_is_refused_where_it_would_rewrite_the_past(world, tmp_path):
    world.run(tmp_path / "decayed", PLAIN)
    with pytest.raises(FolderError, match="the learning rate's share of its peak at step"):
        world.run(tmp_path / "decayed", PLAIN, train__tokens=2560)
    constant = {"train__schedule": {"name": "constant", "warmup": 0.0}}
    world.run(tmp_path / "ki", KI, **constant)
    with pytest.raises(FolderError, match="the weight of its losses at step 1"):
        world.run(tmp_path / "ki", KI, train__tokens=2560, **constant)
    assert weights(tmp_path / "ki")
    assert world.run(tmp_path / "ki", KI, **constant)["was_finished"]


def test_other_text_is_refused_on_resume(world, tmp_path):
    text = shutil.copy(world.train, tmp_path / "train.jsonl")
    changes = {"data__train": [{"path": str(text), "source": "one"}]}
    laws.stopped_at(world, tmp_path / "run", 5, PLAIN, "causal", **changes)
    with open(text, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(FolderError, match="trained with another training text"):
        world.run(tmp_path / "run", PLAIN, **changes)


def test_touched_text_is_the_same_text(world, tmp_path):
    text = shutil.copy(world.train, tmp_path / "train.jsonl")
    changes = {"data__train": [{"path": str(text), "source": "one"}]}
    laws.stopped_at(world, tmp_path / "run", 5, PLAIN, "causal", **changes)
    os.utime(text, (1, 1))
    world.run(tmp_path / "run", PLAIN, **changes)


def test_damaged_checkpoint_is_named(world, tmp_path):
    laws.stopped_at(world, tmp_path / "run", 9, PLAIN, "causal")
    newest = checkpoint.existing(tmp_path / "run")[-1]
    for name in ("model.safetensors", "trainer.safetensors", "trainer.json", "config.json"):
        content = (newest / name).read_bytes()
        for broken in (content[: len(content) // 2], b"", content[:-3] + b"xyz"):
            (newest / name).write_bytes(broken)
            with pytest.raises(FolderError, match=f"is damaged .*{name}.*delete that folder"):
                world.run(tmp_path / "run", PLAIN)
        (newest / name).write_bytes(content)
    shutil.rmtree(newest)
    world.run(tmp_path / "run", PLAIN)
    world.run(tmp_path / "whole", PLAIN)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_stop_signal_saves_and_says_how_to_go_on(world, tmp_path):
    laws.stopped_at(world, tmp_path / "run", 3, PLAIN, "causal")
    assert checkpoint.existing(tmp_path / "run")[-1].name == "step-00000003"
    assert not (tmp_path / "run" / "summary.json").exists()
    assert issubclass(Stopped, Exception)


def test_one_process_per_folder(world, tmp_path):
    from bequest.files import locked

    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / ".lock", wait=False), pytest.raises(FolderError, match="in use by another process"):
        world.run(tmp_path / "run", PLAIN)


def test_loss_that_is_no_number_stops_with_step_and_checkpoint(world, tmp_path, monkeypatch):
    from bequest.model.language import LanguageModel

    original = LanguageModel.features
    calls = []

    def broken(self, batch):
        calls.append(self.training)
        features = original(self, batch)
        return features * torch.nan if sum(calls) == 10 else features

    monkeypatch.setattr(LanguageModel, "features", broken)
    with pytest.raises(
        TrainingError, match=r"no longer finite at step 10 .*the last good checkpoint is .*step-00000008"
    ):
        world.run(tmp_path / "run", PLAIN)
    diverged = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert diverged["step"] == 10
    assert diverged["sentence"].startswith("the loss is no longer finite at step 10 ")
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    world.run(tmp_path / "run", PLAIN)
    assert not (tmp_path / "run" / "diverged.json").exists()
    world.run(tmp_path / "whole", PLAIN)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_teachers_that_do_not_fit(world, tmp_path):
    from conftest import make_model, make_vocabulary

    def teacher(path, **more):
        return {"teachers__teacher": {"load": str(path)}, **more}

    bigger = make_vocabulary("causal", 400)
    other = tmp_path / "other"
    make_model("llama", bigger).model.save_pretrained(other)
    bigger.tokenizer.save_pretrained(other)
    own = {"tokenizer": {"load": world.teacher["causal"]}}
    with pytest.raises(ModelError, match=r"another vocabulary: 400 ids .* against 300 ids"):
        world.run(tmp_path / "a", KI, **teacher(other, **own))
    with pytest.raises(ModelError, match="no model at"):
        world.run(tmp_path / "b", KI, **teacher(tmp_path / "nothing", **own))
    with pytest.raises(ModelError, match=r"does not fit data\.objective causal"):
        world.run(tmp_path / "c", KI, **teacher(world.teacher["masked"]))
    with pytest.raises(ModelError, match="at most 64 positions"):
        world.run(tmp_path / "d", KI, data__sequence=128)
    with pytest.raises(RecipeError, match="needs a teacher"):
        world.run(tmp_path / "e", KI, teachers={}, tokenizer={"load": world.teacher["causal"]})
    half = tmp_path / "half"
    shutil.copytree(world.teacher["causal"], half)
    whole = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load the model"):
        world.run(tmp_path / "f", KI, **teacher(half))
    (half / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        world.run(tmp_path / "g", KI, **teacher(half))


def test_padded_teacher_and_padded_student(world, tmp_path):
    padded = world.save("llama", "causal", vocab=320)
    summary = world.run(tmp_path / "run", KI, teachers__teacher={"load": padded}, student__vocab=352)
    assert summary["valid"]["one"]["loss"] < 6.0


def test_student_loaded_from_a_folder(world, tmp_path):
    first = world.run(tmp_path / "first", PLAIN)
    more = world.run(tmp_path / "more", PLAIN, student={"load": first["checkpoint"]}, train__schedule={"warmup": 0.0})
    lines = [x for x in metrics.read(tmp_path / "more" / "metrics.jsonl") if "loss" in x]
    assert lines[0]["loss"] < 5.0
    assert more["valid"]["one"]["loss"] < first["valid"]["one"]["loss"]


def test_valid_fraction_splits_documents(world, tmp_path):
    changes = {"data__valid": [], "data__valid_fraction": 0.2}
    summary = world.run(tmp_path / "run", PLAIN, **changes)
    assert set(summary["valid"]) == {"one", "two"}


def test_too_little_text(world, tmp_path):
    (tmp_path / "tiny.txt").write_text("a few words")
    with pytest.raises(DataError, match=r"give more text or lower data\.sequence"):
        world.run(tmp_path / "run", PLAIN, data__train=[{"path": str(tmp_path / "tiny.txt")}])


# killed processes


def start(recipe, out, world):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bequest", "train", str(recipe), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def steps_done(out) -> int:
    try:
        return (out / "metrics.jsonl").read_text().count('"loss"')
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    ("method", "objective"),
    [({"name": "ki", "shape": "constant", "start": 0.5, "compare_every": 0.1}, "causal"), (KI, "masked")],
)
def test_sigkill_anywhere_then_the_same_bits(world, tmp_path, method, objective):
    changes = {
        "train__precision": "bf16",
        "train__tokens": 12800,
        "train__save_every_tokens": 1280,
        "student__dropout": 0.1,
        "train__threads": 1,
    }
    if "compare_every" in method:
        changes["teachers__teacher"] = world.weak_teacher()
    recipe = tmp_path / "recipe.yaml"
    config.write(world.raw(method, objective, **changes), recipe)
    train(world.recipe(method, objective, **changes), tmp_path / "whole")
    rng = random.Random(len(method))
    out = tmp_path / "killed"
    kills = 0
    for target in (rng.randrange(2, 40), rng.randrange(45, 90)):
        process = start(recipe, out, world)
        while process.poll() is None and steps_done(out) < target:
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills > 0
    process = start(recipe, out, world)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert same_bits(weights(tmp_path / "whole"), weights(out))
    assert losses(tmp_path / "whole") == losses(out)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_is_one_sentence_and_loses_nothing(world, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        recipe = tmp_path / "recipe.yaml"
        changes = {"train__tokens": 2560, "train__save_every_tokens": 128, "train__keep": 20, "train__threads": 1}
        config.write(world.raw(PLAIN, **changes), recipe)
        process = start(recipe, disk / "run", world)
        _, errors = process.communicate()
        assert process.returncode == 2, errors
        assert errors.decode().splitlines()[-1].startswith("bequest: cannot use")
        assert "the disk is full" in errors.decode().splitlines()[-1]
        assert b"Traceback" not in errors
        saved = checkpoint.existing(disk / "run")
        assert saved
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        process = start(recipe, disk / "run", world)
        assert process.wait() == 0
        train(world.recipe(PLAIN, **changes), tmp_path / "whole")
        assert same_bits(weights(tmp_path / "whole"), weights(disk / "run"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_folder_in_which_nothing_was_saved_belongs_to_no_recipe(world, tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint before it"):
        world.run(tmp_path / "run", PLAIN, train__optimiser__lr=1e14, train__clip=0.0, train__save_every_tokens=0)
    world.run(tmp_path / "run", PLAIN)
    world.run(tmp_path / "fresh", PLAIN)
    assert losses(tmp_path / "run") == losses(tmp_path / "fresh")
