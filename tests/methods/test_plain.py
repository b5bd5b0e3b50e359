"""Plain pre-training."""

ZERO = {"name": "plain"}
METHOD = {"name": "plain"}
NEEDS_TEACHER = False


def test_learns(world, tmp_path):
    before = world.run(tmp_path / "a", METHOD, train__tokens=128, train__save_every_tokens=0)
    after = world.run(tmp_path / "b", METHOD, train__tokens=12800, train__save_every_tokens=0)
    assert after["valid"]["one"]["loss"] < before["valid"]["one"]["loss"] - 1.0
    assert after["teacher_flops"] == 0.0
