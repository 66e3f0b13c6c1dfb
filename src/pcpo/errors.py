"""One tree of errors. A message says what is wrong, where, and what to do; the CLI prints it on one line."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class PCPOError(Exception):
    """Base of all errors that a user can cause and mend.

    `what` states the problem, `where` names the file, key or part, `fix` says what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text} -> {fix}" if fix else text)


class ConfigError(PCPOError):
    """An unknown key, a value out of range, or settings that make no sense together."""

    exit_code = 2


class PromptError(PCPOError):
    """A prompts file that is missing, empty, not UTF-8 or has an unusable line."""

    exit_code = 3


class ModelError(PCPOError):
    """A model folder that is missing, broken, or of a family that has no adapter."""

    exit_code = 4


class RewardError(PCPOError):
    """A reward that is unknown, raises, or returns something that is not one finite number per picture."""

    exit_code = 5


class RunFolderError(PCPOError):
    """An output folder that belongs to another run, or a run folder that cannot be read."""

    exit_code = 6


class CheckpointError(PCPOError):
    """A checkpoint that is incomplete or does not fit the configuration."""

    exit_code = 7


class NumericError(PCPOError):
    """A non-finite value met during training; nothing was updated with it."""

    exit_code = 8


class ImageError(PCPOError):
    """A picture file that is missing, too large, of a format that is not allowed, or damaged."""

    exit_code = 9


class EvaluationError(PCPOError):
    """Pictures, features or runs that cannot be compared."""

    exit_code = 10


class MemoryLimitError(PCPOError):
    """Not enough memory for a model call, however few rows it has; nothing was updated with it."""

    exit_code = 11


class DistributedError(PCPOError):
    """Another process of the same run has ended or does not answer."""

    exit_code = 12

    @classmethod
    def gone(cls, error: BaseException, where: str) -> DistributedError:
        """For what a collective raised because another process is no longer there."""
        return cls(
            f"another process of this run has ended or does not answer: {one_line(error)}",
            where=where,
            fix="look at what the others said first; then go on with --resume",
        )


class Interrupted(BaseException):
    """A run stopped by SIGINT (130) or SIGTERM (143), after its last finished iteration was saved.

    Like KeyboardInterrupt it is no error, and is not caught as one.
    """

    def __init__(self, number: signal.Signals, words: str = "") -> None:
        self.number, self.exit_code = number, 128 + number
        super().__init__(f"stopped by {number.name}{words and f': {words}'}")


def one_line(error: BaseException) -> str:
    """The first line of a foreign error's message, at most 200 characters, to be quoted in one of ours."""
    return (str(error).strip().splitlines() or ["(no message)"])[0][:200]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that no registry entry has: names the nearest one, or lists them all."""
    names = sorted(known)
    nearest = get_close_matches(name, names, n=1)
    fix = f"did you mean '{nearest[0]}'?" if nearest else f"use one of: {', '.join(names)}"
    return ConfigError(f"unknown {kind} '{name}'", where=kind, fix=fix)
