"""Every law notices when its subject is broken: each test breaks one thing and expects the law to fail."""

import dataclasses
import random

import laws
import pytest
import torch

from bequest.loss import project
from bequest.loss.combine import Weighted
from bequest.loss.kernels import chunked
from bequest.loss.schedule import Schedule
from bequest.optim import Optimiser
from bequest.teach.live import Live, without_rest
from bequest.train import run as spine
from bequest.types import Batch

KI = {"name": "ki", "until": 0.5}


def test_bits_differ_when_dropout_is_not_a_function_of_the_step(world, tmp_path, monkeypatch):
    monkeypatch.setattr(spine, "seed_of", lambda *parts: random.SystemRandom().getrandbits(60))
    with pytest.raises(AssertionError):
        laws.same_seed_same_bits(world, tmp_path, KI, "causal", student__dropout=0.1)


def test_resume_notices_lost_moments(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Optimiser, "load", lambda self, state: None)
    with pytest.raises(AssertionError):
        laws.stop_and_resume_same_bits(world, tmp_path, KI, "causal", (5,))


def test_resume_notices_a_lost_journal(world, tmp_path, monkeypatch):
    from bequest.train import checkpoint

    original = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *a: dataclasses.replace(original(*a), journal=[]))
    method = {"name": "ki", "shape": "constant", "start": 0.5, "compare_every": 0.25}
    with pytest.raises(AssertionError):
        laws.stop_and_resume_same_bits(world, tmp_path, method, "causal", (8,), teachers__teacher=world.weak_teacher())


def test_zero_notices_a_weight_that_is_not(world, tmp_path, monkeypatch):
    original = Schedule.__call__
    monkeypatch.setattr(Schedule, "__call__", lambda self, clock: original(self, clock) or 1e-4)
    with pytest.raises(AssertionError):
        laws.weight_zero_equals_plain(world, tmp_path, {"name": "ki", "start": 0.0}, "causal")


def test_unchanged_teacher_notices_training(world, tmp_path, monkeypatch):
    original = Live.__call__

    def drifting(self, batch, temperature):
        with torch.no_grad():
            next(self.model.parameters()).add_(1e-3)
        return original(self, batch, temperature)

    monkeypatch.setattr(Live, "__call__", drifting)
    with pytest.raises(AssertionError):
        laws.teacher_unchanged(world, tmp_path, KI, "causal")


def test_one_forward_notices_a_second(world, tmp_path, monkeypatch):
    original = Weighted.__call__
    monkeypatch.setattr(
        Weighted,
        "__call__",
        lambda self, model, batch, clock: (model.features(batch), original(self, model, batch, clock))[1],
    )
    with pytest.raises(AssertionError):
        laws.one_student_forward_per_step(world, tmp_path, KI, "causal")


def test_micro_batches_notice_their_own_mean(world, tmp_path, monkeypatch):
    original = Batch.micro

    def own_mean(self, sequences):
        for part in original(self, sequences):
            yield dataclasses.replace(part, rows_total=len(part.rows.index_N))

    monkeypatch.setattr(Batch, "micro", own_mean)
    with pytest.raises(AssertionError):
        laws.micro_batches_change_nothing(world, tmp_path, KI, "causal")


def test_dense_notices_a_lost_entry():
    def lose(s):
        return s if s.ids_NK is None else dataclasses.replace(s, ids_NK=s.ids_NK[:, :-1], logp_NK=s.logp_NK[:, :-1])

    with pytest.raises(AssertionError):
        laws.keeping_all_equals_dense(lose)


def test_zero_gradient_notices_a_dropped_rest():
    with pytest.raises(AssertionError):
        laws.equal_teacher_gives_no_gradient(without_rest)


def test_stored_notices_a_dropped_rest(world, tmp_path):
    with pytest.raises(AssertionError):
        laws.stored_equals_live(world, tmp_path, "causal", 6, without_rest)


def test_stored_notices_another_sequences_answer(world, tmp_path, monkeypatch):
    """Every key finds the answer of the one beside it."""
    from bequest.teach.store import Store

    original = Store.commit
    monkeypatch.setattr(
        Store,
        "commit",
        lambda self, name, keys, rows, *rest, **counts: original(
            self, name, (*keys[1:], keys[0]), rows, *rest, **counts
        ),
    )
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        laws.stored_equals_live(world, tmp_path, "causal", 6)


def test_fused_notices_a_forgotten_chunk(monkeypatch):
    original = project._accumulate
    monkeypatch.setattr(
        project,
        "_accumulate",
        lambda gradients, rows, *rest: None if rows.start == 4 else original(gradients, rows, *rest),
    )
    with pytest.raises(AssertionError):
        laws.fused_equals_unfused()


def test_fused_notices_a_dropped_rest(monkeypatch):
    without = lambda z, pair, signal, ids, told: chunked._drawn_(z, pair, without_rest(signal), ids, told)
    monkeypatch.setattr(chunked, "_kept_", without)
    with pytest.raises(AssertionError):
        laws.fused_equals_unfused()


def test_fused_notices_a_target_that_is_kept_and_forgotten(monkeypatch):
    original = chunked._kept_

    def forgetful(logits, pair, signal, ids, told):
        losses = original(logits, pair, signal, ids, told)
        kept = (ids == pair.target_C[:, None]).any(-1)
        logits[kept] += torch.nn.functional.one_hot(pair.target_C, logits.shape[1])[kept] * pair.gold_C[kept, None]
        return losses

    monkeypatch.setattr(chunked, "_kept_", forgetful)
    monkeypatch.setattr(laws, "kept", lambda teacher, keep, original=laws.kept: original(teacher, 30))
    with pytest.raises(AssertionError):
        laws.fused_equals_unfused()


def test_shift_notices_shifted_targets(world, monkeypatch):
    from bequest.data.objective import Causal

    original = Causal.__call__

    def late(self, tokens, segments, draw):
        inputs, inside, positions, targets = original(self, tokens, segments, draw)
        return inputs, inside, positions, torch.from_numpy(targets).roll(1).numpy()

    laws.world_student(world)  # learned before anything is broken
    monkeypatch.setattr(Causal, "__call__", late)
    with pytest.raises(AssertionError):
        laws.shifted_teacher_is_worse(world)


def test_document_border_notices_a_lost_mask(monkeypatch, vocabulary):
    import test_language

    from bequest.model import language

    monkeypatch.setattr(language, "additive", lambda segments, causal, dtype: None)
    with pytest.raises(AssertionError):
        test_language.test_packed_equals_separate("bert", "sdpa")
