"""When a run saves itself, and what happens when it cannot."""

from __future__ import annotations

from pathlib import Path

from pcpo.errors import CheckpointError
from pcpo.observe.console import Console
from pcpo.observe.events import EventWriter
from pcpo.trainer import checkpoint, protocol
from pcpo.trainer.config import Config
from pcpo.trainer.distributed import Runtime
from pcpo.trainer.state import TrainState


class Saver:
    """Saves `state` below `folder`/checkpoints. A disk that refuses stops no run: it warns, and `failed` says why.

    Of several processes the main one saves; the state is the same in all of them, or (ZeRO) put together from all.

    `failed` is the error of the last save, None when that went well.
    """

    def __init__(self, folder: Path, config: Config, state: TrainState, console: Console, runtime: Runtime) -> None:
        self.runtime = runtime
        self.folder, self.parent = folder, folder / "checkpoints"
        self.config, self.state, self.console = config, state, console
        self.failed: CheckpointError | None = None

    def is_due(self) -> bool:
        """Whether the iteration that has just ended is to be saved."""
        run, done = self.config.run, self.state.iteration
        return done % run.checkpoint_every == 0 or done == self.config.train.iterations

    def save(self, events: EventWriter) -> Path | None:
        """Save the state as it is and write the checkpoint event; None, and a warning, when that fails.

        The log goes to the disk first: it is never behind a checkpoint. Older checkpoints go last.
        """
        snapshot = self.state.snapshot(self.config.model_dump(mode="json"))
        if not self.runtime.is_main:
            return None
        troubles, path = [], None
        try:
            events.sync()
        except OSError as error:
            troubles.append(f"{events.path}: cannot be written ({error.strerror}); its events wait in memory")
        try:
            path = checkpoint.save(self.parent, snapshot)
            self.failed = None
        except CheckpointError as error:
            self.failed = error
            troubles.append(str(error))
        if path is not None:
            try:
                protocol.retire(self.parent, self.config.run.keep_checkpoints)
            except OSError as error:
                troubles.append(f"{self.parent}: older checkpoints cannot be removed ({error.strerror})")
            events.write("checkpoint", iteration=self.state.iteration, path=str(path.relative_to(self.folder)))
        if troubles:
            self.warn(events, "; ".join(troubles))
        return path

    def save_border(self, events: EventWriter) -> Path | None:
        """Save the last finished iteration when a run is stopped in the middle of one; None when that fails."""
        try:
            if self.state.roll_back():
                return self.save(events)
            self.warn(events, "stopped between two updates of an iteration: not saved")
        except RuntimeError as error:  # an accelerator that has failed gives no tensors back
            self.warn(events, f"the last finished iteration could not be saved ({error})")
        return None

    def warn(self, events: EventWriter, message: str) -> None:
        """Show a warning and log it."""
        self.console.warn(message)
        events.write("warning", message=message, iteration=self.state.iteration)
