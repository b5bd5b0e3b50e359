"""The laws of the house over every method that exists."""

import importlib

import laws
import pytest

from bequest import methods

NAMES = methods.names()
MODULES = {name: importlib.import_module(f"methods.test_{name}") for name in NAMES if name in methods._built_in()}
OBJECTIVES = ("causal", "masked")


@pytest.fixture(params=sorted(MODULES))
def module(request):
    return MODULES[request.param]


def wanted(module, world, objective: str, which: str = "CHANGES") -> dict:
    """What a method's tests ask of the recipe around it, for instance a student that its teacher can become."""
    return getattr(module, which, lambda world, objective: {})(world, objective)


def test_every_method_has_its_tests():
    assert set(methods._built_in()) == set(MODULES)
    assert all(hasattr(m, "ZERO") and hasattr(m, "METHOD") for m in MODULES.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_same_seed_same_bits(world, tmp_path, module, objective):
    changes = {"student__dropout": 0.1} | wanted(module, world, objective)
    laws.same_seed_same_bits(world, tmp_path, module.METHOD, objective, **changes)


@pytest.mark.parametrize(("precision", "objective"), [("fp32", "causal"), ("fp32", "masked"), ("bf16", "causal")])
def test_stop_and_resume_same_bits(world, tmp_path, module, objective, precision):
    changes = {"student__dropout": 0.1, "train__precision": precision, "train__micro_batch_tokens": 64}
    changes |= wanted(module, world, objective)
    laws.stop_and_resume_same_bits(world, tmp_path, module.METHOD, objective, (2, 7), **changes)


def test_stop_and_resume_with_muon_and_the_journal(world, tmp_path):
    method = {"name": "ki", "shape": "constant", "start": 0.5, "compare_every": 0.25}
    changes = {"train__optimiser__name": "muon", "teachers__teacher": world.weak_teacher()}
    laws.stop_and_resume_same_bits(world, tmp_path, method, "causal", (2, 3, 11), **changes)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weight_zero_equals_plain(world, tmp_path, module, objective):
    changes = wanted(module, world, objective, "ZERO_CHANGES")
    laws.weight_zero_equals_plain(world, tmp_path, module.ZERO, objective, **changes)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_teacher_unchanged(world, tmp_path, module, objective):
    laws.teacher_unchanged(world, tmp_path, module.METHOD, objective, **wanted(module, world, objective))


def test_one_student_forward_per_step(world, tmp_path, module):
    laws.one_student_forward_per_step(world, tmp_path, module.METHOD, "causal", **wanted(module, world, "causal"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_change_nothing(world, tmp_path, module, objective):
    method = getattr(module, "ONE_STEP", module.METHOD)
    changes = wanted(module, world, objective) if method == module.METHOD else {}
    laws.micro_batches_change_nothing(world, tmp_path, method, objective, **changes)


def test_keeping_all_equals_dense():
    laws.keeping_all_equals_dense()


def test_equal_teacher_gives_no_gradient():
    laws.equal_teacher_gives_no_gradient()


def test_fused_equals_unfused():
    laws.fused_equals_unfused()


def test_shifted_teacher_is_worse(world):
    laws.shifted_teacher_is_worse(world)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("keep", [0, 6])
def test_stored_equals_live(world, tmp_path, objective, keep):
    laws.stored_equals_live(world, tmp_path, objective, keep)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_stop_and_resume_with_a_store(world, tmp_path, kind):
    from bequest.job.teach import teach

    changes = {"teachers__teacher": {"load": world.teacher["causal"], "store": str(tmp_path / "store")}}
    changes |= {"teach": {"kind": kind}, "train__micro_batch_tokens": 64}
    method = {"name": "ki", "until": 0.7}
    teach(world.recipe(method, **changes))
    laws.stop_and_resume_same_bits(world, tmp_path, method, "causal", (2, 8), **changes, student__dropout=0.1)
    laws.micro_batches_change_nothing(world, tmp_path, method, "causal", **changes)
