"""What a sweep may say, what it works out from finished runs, and every mistake as one sentence."""

import json
import math
from types import SimpleNamespace

import pytest
from conftest import SHARED, sentences, write_jsonl  # noqa: F401

from bequest.compare import answer, fair, sweep
from bequest.compare.course import Course, Waiting
from bequest.compare.outcome import Point, Result, finished
from bequest.types import BequestError, FolderError


@pytest.fixture
def files(world, tmp_path):
    """A base recipe, and a writer of sweeps over it."""
    raw = world.raw({"name": "plain"}, train__optimiser__lr=0.5)
    raw |= {"teachers": {}, "tokenizer": {"load": world.teacher["causal"]}}
    (tmp_path / "base.yaml").write_text(json.dumps(raw))

    def write(file="a.yaml", **changes):
        found = {
            "name": "a",
            "recipe": str(tmp_path / "base.yaml"),
            "rates": [0.01, 0.02, 0.04],
            "baseline": "scratch",
            "predecessors": {"small": {"set": {"student.layers": 1}, "rates": [0.01], "seeds": [0]}},
            "arms": {
                "scratch": {"budgets": [1, 0.5, 2]},
                "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}},
            },
        }
        path = tmp_path / file
        path.write_text(json.dumps({k: v for k, v in (found | changes).items() if v is not None}))
        return path

    return write


class Imagined(Course):
    """A course whose runs finish as a function says."""

    ended: dict

    def result(self, run):
        loss = self.ended.get((run.arm, run.rate, run.seed, run.budget))
        if loss is None:
            raise Waiting(run)
        curve = () if loss == math.inf else (Point(run.tokens, 1e3 * run.tokens, 1.1e3 * run.tokens, None, 1.0, loss),)
        return Result(run, curve, 1, {}, "causal", 0.0, None, {})


def course(path, tmp_path, **ended):
    found = Imagined(sweep.load(path), tmp_path / "out", "one")
    found.ended = {}
    return found


def due(found):
    return [(run.arm, run.rate, run.seed, run.budget) for run in found.due(tuple(found.sweep.arms))]


def test_learning_rates_come_first_then_seeds(files, tmp_path):
    found = course(files(), tmp_path)
    small = ("small", 0.01, 0, 1.0)
    trials = [("scratch", rate, 0, 1.0) for rate in (0.01, 0.02, 0.04)]
    assert due(found) == [small, *trials]  # the predecessor first: others wait for it
    found.ended[small] = 4.0
    assert due(found) == trials + [("ki", rate, 0, 1.0) for rate in (0.01, 0.02, 0.04)]
    found.ended |= dict(zip(trials, (3.0, 2.0, 2.5), strict=True))
    best = [("scratch", 0.02, seed, budget) for seed in (0, 1, 2) for budget in (1.0, 0.5, 2.0)]
    assert due(found)[:3] == [
        ("ki", rate, 0, 1.0) for rate in (0.01, 0.02, 0.04)
    ]  # seeds can wait, others wait for trials
    assert due(found)[3:] == [one for one in best if one not in found.ended]
    assert found.tuned("scratch").rate == 0.02
    assert not found.tuned("scratch").on_edge


def test_a_best_rate_on_the_edge_extends_the_grid_and_is_flagged_in_the_end(files, tmp_path):
    found = course(files(), tmp_path)
    found.ended = {("scratch", rate, 0, 1.0): loss for rate, loss in ((0.01, 3.0), (0.02, 2.0), (0.04, 1.0))}
    assert ("scratch", 0.08, 0, 1.0) in due(found)
    found.ended["scratch", 0.08, 0, 1.0] = math.inf  # a run that diverged is the worst of rates
    assert found.tuned("scratch").rate == 0.04
    assert not found.tuned("scratch").on_edge
    found.ended["scratch", 0.08, 0, 1.0] = 0.5
    assert ("scratch", 0.16, 0, 1.0) in due(found)
    found.ended["scratch", 0.16, 0, 1.0] = 0.4
    assert found.tuned("scratch").rate == 0.16
    assert found.tuned("scratch").on_edge
    lower = course(files(), tmp_path)
    lower.ended = {("scratch", rate, 0, 1.0): rate for rate in (0.01, 0.02, 0.04)}
    assert ("scratch", 0.005, 0, 1.0) in due(lower)


def test_an_arm_like_another_takes_its_settings_and_its_best_rate(files, tmp_path):
    arms = {
        "scratch": {},
        "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}, "rates": [0.03]},
        "half": {"like": "ki", "set": {"method.until": 0.5}},
        "dwt": {"like": "half", "set": {"method": {"name": "dwt"}}},
    }
    found = course(files(arms=arms), tmp_path)
    found.ended["small", 0.01, 0, 1.0] = 4.0
    run = found.chosen("half", 1)
    assert (run.rate, run.recipe.method) == (0.03, {"name": "ki", "until": 0.5})
    assert found.chosen("dwt", 1).recipe.method == {"name": "dwt"}
    teacher = found.chosen("small", 1)
    assert teacher.seed == 0  # it has no other
    assert run.recipe.teachers["teacher"].load == str(teacher.folder / "checkpoint")
    assert run.command[:2] == ("train", found.sweep.recipe)
    assert "--teach" not in run.command
    assert f"train.tokens={run.tokens}" in run.command


def test_stores_are_shared_by_rates_not_by_seeds_or_kinds(files, tmp_path):
    arms = {
        "scratch": {},
        "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}, "stored": True},
        "top": {"like": "ki", "set": {"teach.kind": "topk"}},
    }
    found = course(files(arms=arms), tmp_path)
    found.ended["small", 0.01, 0, 1.0] = 4.0
    store = lambda arm, rate, seed: found.run(arm, rate, seed, 1.0).recipe.teachers["teacher"].store
    assert store("ki", 0.01, 0) == store("ki", 0.02, 0)
    assert len({store("ki", 0.01, 0), store("ki", 0.01, 1), store("top", 0.01, 0)}) == 3
    assert "--teach" in found.run("ki", 0.01, 0, 1.0).command
    names = {found.run(arm, rate, 0, 1.0).folder for arm in ("ki", "top") for rate in (0.01, 0.02)}
    assert len(names) == 4


def test_cost_of_another_arm_becomes_tokens(files, tmp_path):
    arms = {
        "scratch": {"rates": [0.01]},
        "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}, "rates": [0.01]},
        "more": {"like": "scratch", "cost_of": "ki"},
    }
    found = course(files(arms=arms), tmp_path)
    found.ended = {("small", 0.01, 0, 1.0): 4.0, ("ki", 0.01, 0, 1.0): 3.0}
    found.ended["scratch", 0.01, 0, 1.0] = 3.5
    assert found.chosen("more", 0).tokens == 1536
    found.result = lambda run: Result(
        run, (Point(1536, 1, 2e3 if run.arm == "ki" else 1e3, None, 1, 1),), 1, {}, "", 0, None, {}
    )
    other = course(files(arms=arms), tmp_path)
    other.result = found.result
    assert other.chosen("more", 0).tokens == 3072


def test_seconds_of_another_arm_become_tokens_once_and_for_all_seeds(files, tmp_path, monkeypatch):
    from bequest.compare import seconds

    arms = {
        "scratch": {"rates": [0.01]},
        "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}, "rates": [0.01]},
        "more": {"like": "scratch", "cost_of": "ki", "cost_in": "seconds"},
    }
    timed = []

    def calibrate(recipe, folder, budget):
        timed.append((recipe.method["name"], recipe.train.threads))
        return SimpleNamespace(training=30.0 if recipe.method["name"] == "ki" else 20.0)

    monkeypatch.setattr(seconds, "calibrate", calibrate)
    found = course(files(arms=arms), tmp_path)
    found.ended = {(arm, 0.01, seed, 1.0): 3.5 for arm in ("small", "ki", "scratch") for seed in (0, 1, 2)}
    assert found.chosen("more", 0).tokens == 2304  # 1.5 x 1536
    assert found.chosen("more", 1).tokens == 2304
    assert timed == [("ki", 1), ("plain", 1)] * seconds.TURNS
    (file,) = (tmp_path / "out" / "seconds").glob("*.json")
    file.write_text("{}")
    with pytest.raises(BequestError, match="is damaged; delete it"):
        found.chosen("more", 2)


def test_a_predecessor_that_diverged_is_a_sentence(files, tmp_path):
    found = course(files(), tmp_path)
    found.ended = {("small", 0.01, 0, 1.0): math.inf}
    with pytest.raises(
        BequestError, match="arm ki: it needs small, which diverged; give that one lower learning rates"
    ):
        due(found)


def test_runs_are_named_after_what_they_are(files, tmp_path, world):
    found = course(files(), tmp_path)
    run = found.run("scratch", 0.01, 0, 1.0)
    assert run.folder == tmp_path / "out" / "runs" / run.recipe.name
    moved = write_jsonl(tmp_path / "moved.jsonl", sentences(1, 200))
    same = files(file="b.yaml", arms={"one": {"set": {"data.train.0.path": str(moved)}}, "two": {}}, baseline="one")
    assert course(same, tmp_path).run("one", 0.01, 0, 1.0).folder == run.folder
    write_jsonl(moved, sentences(1, 201))
    assert course(same, tmp_path).run("one", 0.01, 0, 1.0).folder != run.folder
    others = [("scratch", 0.02, 0, 1.0), ("scratch", 0.01, 1, 1.0), ("scratch", 0.01, 0, 2.0)]
    assert len({run.folder, *(found.run(*other).folder for other in others)}) == 4


def test_a_sweep_takes_over_the_arms_of_another(files, tmp_path):
    first = files()
    second = files(
        file="b.yaml",
        **dict.fromkeys(["recipe", "rates", "predecessors", "baseline"]),
        extends=str(first),
        arms={"scratch": None, "shuffled": {"like": "ki", "set": {"teachers.teacher.control": "shuffle"}}},
    )
    found = sweep.load(second)
    assert list(found.arms) == ["scratch", "shuffled"]
    assert found.arms["scratch"].budgets == (1, 0.5, 2)
    assert set(found.predecessors) == {"small", "ki"}
    assert list(found.needed(["shuffled"])) == ["small", "ki", "shuffled"]
    assert (
        course(second, tmp_path).run("scratch", 0.01, 0, 1.0).folder
        == course(first, tmp_path).run("scratch", 0.01, 0, 1.0).folder
    )


ARMS = {"scratch": {}, "ki": {"like": "scratch"}}
MISTAKES = {
    "the baseline 'plain' is no arm": {"baseline": "plain"},
    "nothing to compare": {"arms": {"scratch": {}}},
    "one seed gives no intervals": {"seeds": [3]},
    "seeds must be different": {"seeds": [], "confidence": None},
    "seeds must be different numbers": {"seeds": [1, 1, 2]},
    "that scratch has too": {"seeds": [0, 1], "arms": {"scratch": {}, "ki": {"seeds": [1, 2]}}},
    "names the arm ''": {"arms": {"scratch": {}, "ki": {"set": {"teachers.teacher.load": "arm:"}}}},
    "'small' is both an arm and a predecessor": {"arms": {"scratch": {}, "small": {}}},
    "predecessors must be a mapping": {"predecessors": 3},
    "there is no sweep nowhere.yaml to extend": {"extends": "nowhere.yaml"},
    "has train.optimiser.lr, which is the sweep's own: give rates": {
        "arms": {"scratch": {}, "ki": {"set": {"train.optimiser": {"lr": 0.1}}}}
    },
    "cannot be a folder's name": {"name": "a" * 300},
    "arms.ki: one seed gives no intervals": {"arms": {"scratch": {}, "ki": {"seeds": [1]}}},
    "rates must be different": {"rates": [0.1, 0.1]},
    "names the arm 'scrtch', which is not there; did you mean 'scratch'": {
        "arms": {"scratch": {}, "ki": {"like": "scrtch"}}
    },
    "names the arm 'big'": {"arms": {"scratch": {}, "ki": {"set": {"teachers.teacher.load": "arm:big"}}}},
    "need each other in a circle": {
        "arms": {"scratch": {}, "a": {"like": "b"}, "b": {"like": "a"}, "c": {"like": "a"}}
    },
    "arms.ki.set has seed, which is the sweep's own": {"arms": {"scratch": {}, "ki": {"set": {"seed": 3}}}},
    "has both budgets and cost_of": {
        "arms": {"scratch": {}, "ki": {"like": "scratch", "cost_of": "scratch", "budgets": [2]}}
    },
    "cost_of needs like": {"arms": {"scratch": {}, "ki": {"cost_of": "scratch"}}},
    "cost_in seconds needs cost_of": {"arms": {"scratch": {}, "ki": {"cost_in": "seconds"}}},
    "counted has no meaning": {"arms": {"scratch": {}, "ki": {"counted": True}}},
    "budgets must be one number or several different ones": {"arms": {"scratch": {"budgets": [1, 1]}, "ki": {}}},
    "arms.a/b cannot be a name": {"arms": {"scratch": {}, "a/b": {}}},
    "name '../x' cannot be a folder's name": {"name": "../x"},
    "unknown key 'arms.ki.sets'; did you mean 'arms.ki.set'": {"arms": {"scratch": {}, "ki": {"sets": {}}}},
    "the arm 'ki' is not there; there are none": {"arms": {"scratch": {}, "ki": None}},
    "extends leads back": {"extends": "a.yaml"},
    "arms must be a mapping": {"arms": ["scratch"]},
    "the key 'recipe' is missing": {"recipe": None},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_sentences(files, tmp_path, monkeypatch, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BequestError) as caught:
        sweep.load(files(**MISTAKES[sentence]))
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems


def unfair(world, tmp_path):
    other = world.save("llama", "causal", layers=1)
    tokenizer = tmp_path / "tokenizer"
    from conftest import make_vocabulary

    make_vocabulary("causal", 400).tokenizer.save_pretrained(tokenizer)
    return {
        "has another vocabulary": {"tokenizer.load": str(tokenizer)},
        "measured on other held-out text": {"data.valid": [{"path": str(world.other), "source": "one"}]},
        "has the objective masked": {
            "data.objective": "masked",
            "student.family": "bert",
            "tokenizer.load": world.teacher["masked"],
        },
        "unknown key 'student.layer'": {"student.layer": 2},
        "unknown key 'method.untl'": {"method": {"name": "ki", "untl": 1}, "teachers.teacher.load": other},
        "needs a teacher": {"method": {"name": "ki"}},
        "there is no model at": {"method": {"name": "ki"}, "teachers.teacher.load": "./nowhere/checkpoint"},
    }


@pytest.mark.parametrize("number", range(7))
def test_arms_that_cannot_be_compared_are_refused_before_any_run(files, world, tmp_path, number):
    sentence, changes = list(unfair(world, tmp_path).items())[number]
    found = sweep.load(files(arms={"scratch": {}, "ki": {"set": changes}}))
    with pytest.raises(BequestError, match=sentence) as caught:
        fair.require(found)
    assert "ki" in str(caught.value)


def test_stored_needs_a_teacher(files):
    found = sweep.load(files(arms={"scratch": {}, "ki": {"stored": True}}))
    with pytest.raises(BequestError, match="arm ki: stored needs a teacher"):
        fair.require(found)


def test_an_average_of_arms_has_their_vocabulary(files, world, tmp_path):
    teachers = {"teachers.mean.ensemble": {"one": 1.0}, "teachers.one.load": "arm:small"}
    found = sweep.load(files(arms={"scratch": {}, "ki": {"set": teachers}}))
    fair.require(found)


def test_a_sweep_that_cannot_be_read_says_so_once(files, tmp_path):
    with pytest.raises(BequestError, match="cannot read the sweep") as caught:
        sweep.load(tmp_path / "none.yaml")
    assert len(caught.value.problems) == 1
    with pytest.raises(BequestError, match="cannot read the recipe nowhere") as caught:
        fair.require(sweep.load(files(recipe="nowhere.yaml")))
    assert len(caught.value.problems) == 1


def test_bits_per_byte_compare_vocabularies(files, world, tmp_path):
    changes = unfair(world, tmp_path)["has another vocabulary"]
    fair.require(sweep.load(files(measure="bits_per_byte", arms={"scratch": {}, "ki": {"set": changes}})))


def test_a_source_must_be_named_where_there_are_several(files, world):
    both = [{"path": str(world.valid), "source": name} for name in ("one", "two")]
    arms = {"scratch": {"set": {"data.valid": both}}, "other": {"like": "scratch", "set": {"student.layers": 1}}}
    with pytest.raises(BequestError, match="several sources"):
        fair.source_of(sweep.load(files(arms=arms)))
    assert fair.source_of(sweep.load(files(arms=arms, source="two"))) == "two"
    with pytest.raises(BequestError, match="none of the held-out text's"):
        fair.source_of(sweep.load(files(arms=arms, source="three")))


def good(found, run, world):
    """A finished run, made in this process."""
    from bequest.job.train import train

    train(run.recipe, run.folder)
    return finished(run, "loss", "one")


def test_a_finished_run_may_lie_elsewhere(files, tmp_path, world):
    found = course(files(), tmp_path)
    run = found.run("scratch", 0.01, 0, 1.0)
    first = good(found, run, world)
    assert first.end.tokens == run.tokens
    moved = write_jsonl(tmp_path / "moved.jsonl", sentences(1, 200))
    same = files(file="b.yaml", arms={"one": {"set": {"data.train.0.path": str(moved)}}, "two": {}}, baseline="one")
    again = course(same, tmp_path).run("one", 0.01, 0, 1.0)
    assert finished(again, "loss", "one").curve == first.curve


def spoil(path, how):
    text = path.read_text()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        lines = text.splitlines(keepends=True)
        path.write_text("".join(lines[: len(lines) // 2]) if len(lines) > 3 else text[: len(text) // 2])
    else:
        path.write_text(how(text))


DAMAGE = {
    "metrics.jsonl": ["cut", "gone", lambda text: text.replace('"valid": {', '"valid": null, "x": {')],
    "lineage.json": ["cut", "gone", lambda text: "{}", lambda text: "null"],
    "summary.json": [
        "cut",
        lambda text: text.replace('"harvest_flops": 0', '"harvest_flops": null'),
        lambda text: text.replace('"teachers"', '"teacher"'),
        lambda text: text.replace('"student_parameters"', '"parameters"'),
    ],
    "recipe.yaml": ["cut", lambda text: "nothing"],
}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in DAMAGE for n in range(len(DAMAGE[name]))])
def test_a_damaged_run_folder_is_a_sentence(files, tmp_path, world, name, number):
    found = course(files(), tmp_path)
    run = found.run("scratch", 0.01, 0, 1.0)
    good(found, run, world)
    spoil(run.folder / name, DAMAGE[name][number])
    with pytest.raises(BequestError, match=r"damaged|not a run folder|belongs to another|YAML"):
        finished(run, "loss", "one")


def test_a_folder_of_another_recipe_is_refused(files, tmp_path, world):
    found = course(files(), tmp_path)
    run = found.run("scratch", 0.01, 0, 1.0)
    world.run(run.folder, {"name": "plain"}, seed=9)
    with pytest.raises(FolderError, match="belongs to another recipe"):
        finished(run, "loss", "one")


def test_a_run_that_diverged_is_finished_and_worse_than_any(files, tmp_path):
    run = course(files(), tmp_path).run("scratch", 0.01, 0, 1.0)
    run.folder.mkdir(parents=True)
    assert finished(run, "loss", "one") is None
    (run.folder / "diverged.json").write_text("{}")
    assert finished(run, "loss", "one").loss == math.inf


def answered(files, tmp_path, arms, losses):
    """The sentences of a sweep whose runs end at these losses at seeds 0 and 1, by arm."""
    found = course(files(arms=arms, rates=[0.01], seeds=[0, 1]), tmp_path)
    found.ended = {("small", 0.01, 0, 1.0): 3.2}
    found.ended |= {(arm, 0.01, seed, 1.0): loss + seed / 100 for arm, loss in losses.items() for seed in (0, 1)}
    said = answer.results(found, answer.sides(found), tmp_path / "a.yaml")["sentences"]
    return {arm: [(s["kind"], s["text"]) for s in said if s["arm"] == arm] for arm in arms}


def test_an_arm_that_begins_with_a_predecessors_weights_is_held_to_its_loss(files, tmp_path):
    arms = {"scratch": {}, "warm": {"set": {"student": {"load": "arm:small"}}}}
    said = answered(files, tmp_path, arms, {"scratch": 3.3, "warm": 3.2})
    assert said["warm"] == [
        (
            "refusal",
            "warm: no ratio: the predecessor's own loss, 3.2000, is already as good as the 3.3050 to be reached.",
        )
    ]


def test_what_is_not_known_of_a_predecessor_is_said(files, tmp_path):
    arms = {"scratch": {}, "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}}}
    said = answered(files, tmp_path, arms, {"scratch": 3.3, "ki": 3.1})
    assert said["ki"][0][0] == "warning"
    assert "how good its predecessor is on this text is not known" in said["ki"][0][1]


def test_an_arm_at_the_cost_of_another_is_held_against_that_one(files, tmp_path):
    arms = {
        "scratch": {},
        "ki": {"set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}},
        "more": {"like": "scratch", "cost_of": "ki"},
    }
    said = answered(files, tmp_path, arms, {"scratch": 3.3, "ki": 3.1, "more": 3.2})
    assert said["more"][0] == ("note", "more: at the cost of ki it ends +0.1000 (+0.1000 to +0.1000) from it: worse.")
    assert said["more"][1][0] == "refusal"
    assert "it is scratch with another budget" in said["more"][1][1]
