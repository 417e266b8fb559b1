"""The run that a training takes its initial weights from: opening it, recording it, and checking that it fits."""

from dataclasses import asdict, dataclass
from pathlib import Path

from model.vocabulary import Vocabulary
from pipeline.captions.vocabulary import read_vocabulary, vocabulary_digest
from pipeline.loading.training_data import TrainingData
from pipeline.runs.checkpoints import MODEL_FILE, best_checkpoint, has_checkpoints, latest_checkpoint
from pipeline.runs.recipes import ARCHITECTURE
from pipeline.runs.run import RunConfig, read_config, refuse_differences
from pipeline.runs.train_config import TrainConfig
from shards.digests import file_sha256
from shards.errors import InputError, MismatchError


@dataclass(frozen=True, kw_only=True)
class InitialRun:
    """The run that the initial weights come from, and the checkpoint that has them."""

    folder: Path
    config: RunConfig
    vocabulary: Vocabulary
    checkpoint: Path

    def record(self) -> dict[str, str]:
        """The value of ``start`` in the new run's config."""
        return {"run": str(self.folder.resolve()), "checkpoint": self.checkpoint.name, "sha256": file_sha256(self.checkpoint / MODEL_FILE)}


def open_initial_run(folder: Path) -> InitialRun:
    """Read a run, and choose its best checkpoint, or the latest one if none is the best.

    Raises:
        InputError, DamageError, MismatchError: The run or its checkpoints are missing or damaged.
    """
    config, vocabulary = read_config(folder)
    checkpoint, position, _ = latest_checkpoint(folder)
    if position.best is not None:
        checkpoint, _ = best_checkpoint(folder, position)
    return InitialRun(folder=folder, config=config, vocabulary=vocabulary, checkpoint=checkpoint)


def recorded_initial_checkpoint(out: Path, recorded: RunConfig) -> Path | None:
    """The initial checkpoint of a resumed run, according to its config; None if it has none, or has checkpoints of its own.

    Raises:
        MismatchError: The weights are missing or have changed.
    """
    if recorded.start is None or has_checkpoints(out):
        return None
    checkpoint = Path(recorded.start["run"]) / "checkpoints" / recorded.start["checkpoint"]
    weights = checkpoint / MODEL_FILE
    found = f"has SHA-256 {file_sha256(weights)}" if weights.is_file() else "is missing"
    if found != f"has SHA-256 {recorded.start['sha256']}":
        raise MismatchError(
            f"{out}: this run has no checkpoint yet and starts from the weights of {checkpoint} (SHA-256 {recorded.start['sha256']}), "
            f"but {MODEL_FILE} there {found}. Restore it, or choose another `out`."
        )
    return checkpoint


def check_initial_run(config: TrainConfig, initial_run: InitialRun | None) -> None:
    """Check that a training has the architecture of the run that it starts from.

    Raises:
        InputError: Self-critical training has no initial run.
        MismatchError: A setting of the architecture differs.
    """
    if initial_run is None:
        if config.self_critical:
            raise InputError("`self_critical` needs a trained captioner: choose a run that was trained without it as `from`.")
        return
    architecture = asdict(initial_run.config.train)
    for name in ARCHITECTURE:
        if architecture[name] != getattr(config, name):
            raise MismatchError(
                f"`{name}` {getattr(config, name)}: the run given as `from`, {initial_run.folder}, has {architecture[name]}. Omit `{name}`."
            )


def check_initial_data(initial_run: InitialRun, data: TrainingData, vocab: Path | None) -> None:
    """Check that the data come from the backbone of the initial run, and that ``vocab``, if given, is its vocabulary.

    Raises:
        MismatchError: Names both sides.
    """
    expected = initial_run.config
    digest = vocabulary_digest(read_vocabulary(vocab)) if vocab else expected.vocabulary_digest
    sides = [*expected.network.sides(data.network), ("digest of the vocabulary", expected.vocabulary_digest, digest)]
    refuse_differences(sides, f"{initial_run.folder}: the run given as `from` has another", "Use the data that it was trained on.")
