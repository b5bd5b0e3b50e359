"""Checkpoints: an ordinary Hugging Face folder and, beside the weights, what the trainer needs to go on.

Nothing is pickled. A checkpoint takes its name in one step when it is whole; `trainer.json` lists every file's hash, so
that a truncated or edited one is noticed before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import fingerprint
from ..files import new_folder
from ..model.language import LanguageModel
from ..types import Entry, FolderError
from .run import Ledger, StageEnded, State, Stepped, require_finite

POSITION = ("node", "step", "run_step", "tokens", "planned")
TRAINER, TENSORS = "trainer.json", "trainer.safetensors"


WriteModel = Callable[[State, Path], None]
"""Fills a folder with the model as Hugging Face reads it: weights (safetensors), config, tokenizer, card."""


def save_model(state: State, folder: Path, write: WriteModel) -> None:
    """The model alone."""
    with new_folder(folder) as temporary:
        write(state, temporary)


def save(state: State, folder: Path, write: WriteModel, identity: Mapping[str, Any]) -> None:
    """The model beside the trainer's state; `identity` must be equal when it is loaded."""
    from safetensors.torch import save_file

    moments, loss_state = state.snapshot()
    tensors = {f"moment/{k}": v for k, v in moments.items()} | {f"loss/{k}": v for k, v in loss_state.items()}
    with new_folder(folder) as temporary:
        write(state, temporary)
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / TENSORS)
        position = {name: getattr(state, name) for name in POSITION}
        journal = [asdict(entry) for entry in state.journal]
        files = {p.name: _hash(p) for p in sorted(temporary.iterdir())}
        trainer = {
            "identity": dict(identity),
            "position": position,
            "journal": journal,
            "ledger": asdict(state.ledger),
            "files": files,
        }
        (temporary / TRAINER).write_text(json.dumps(trainer | {"digest": fingerprint(trainer)}, indent=1))


def load(folder: Path, open_model: Callable[[Path], LanguageModel], identity: Mapping[str, Any]) -> State:
    """The state in a checkpoint.

    Raises FolderError when a file is damaged or the checkpoint belongs to other text, another tokenizer or another teacher.
    """
    from safetensors.torch import load_file

    try:
        trainer = json.loads((folder / TRAINER).read_text())
        edited = trainer.pop("digest") != fingerprint(trainer)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        edited = True
    files = {} if edited else trainer["files"]
    wrong = (n for n, digest in files.items() if not (folder / n).is_file() or _hash(folder / n) != digest)
    if damaged := TRAINER if edited else next(wrong, None):
        raise FolderError(
            f"the checkpoint {folder} is damaged ({damaged}); delete that folder to go on from the one before"
        )
    for key, value in identity.items():
        if trainer["identity"].get(key) != value:
            raise FolderError(
                f"{folder.parent.parent} was trained with another {key}; restore it or start a new run with --out"
            )
    tensors = load_file(folder / TENSORS)
    inside: Callable[[str], dict[str, Tensor]] = lambda place: {
        k.removeprefix(place): v for k, v in tensors.items() if k.startswith(place)
    }
    return State(
        model=open_model(folder),
        **trainer["position"],
        journal=[Entry(**entry) for entry in trainer["journal"]],
        ledger=Ledger(**trainer["ledger"]),
        moments=inside("moment/"),
        loss_state=inside("loss/"),
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def existing(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


class Saver:
    """Saves every so many tokens, at the end, and each stage's model; keeps the last few checkpoints. An observer."""

    def __init__(self, run: Path, write: WriteModel, identity: Mapping[str, Any], every_tokens: int, keep: int) -> None:
        self.run, self.write, self.identity = run, write, identity
        self.every_tokens, self.keep = every_tokens, keep

    def __call__(self, state: State, event: Stepped | StageEnded) -> None:
        """Save if it is time. A stage's end saves before the next stage begins, so that nothing is trained twice."""
        if isinstance(event, StageEnded):
            if not event.last:
                save_model(state, self.run / "stages" / event.stage, self.write)
            self.save(state)
        elif event.crosses(self.every_tokens):
            require_finite(event)
            self.save(state)

    def save(self, state: State) -> Path:
        """Save now, and drop the oldest checkpoints."""
        folder = self.run / "checkpoints" / f"step-{state.run_step:08d}"
        # The same step has the same state: it was saved a moment ago, or before the run was resumed.
        if folder.exists():
            return folder
        save(state, folder, self.write, self.identity)
        for old in existing(self.run)[: -self.keep]:
            shutil.rmtree(old)
        return folder
