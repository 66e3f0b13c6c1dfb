"""Values that are not finite: found before anything is updated with them, named, and left out or a reason to stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.utils import get_total_norm

from pcpo.data.prompts import Prompt
from pcpo.errors import NumericError, PCPOError

IN_A_ROW = 3
SHOWN = 8  # names in a message
FIXES = {
    "log-prob": "the model's output is not finite: look at run.precision and at the weights it started from",
    "latents": "the model's output is not finite: look at run.precision and at the weights it started from",
    "advantage": "the rewards are finite, but too large to take a variance of: scale the reward",
    "log-ratio": "lower optim.learning_rate or train.updates, or look at run.precision",
    "loss": "lower optim.learning_rate or train.updates, or look at kl.beta",
    "gradient": "lower optim.learning_rate, or look at the reward and run.precision",
    "EMA": "resume from a checkpoint",
}


class NonFinite(NumericError):
    """An update that would have used a value that is not finite; nothing was changed by it."""


@dataclass(frozen=True)
class Where:
    """A place in a run. Iterations and minibatches count from 1; prompt_index [B] is the prompt of each picture."""

    iteration: int
    prompts: Sequence[Prompt]
    prompt_index: Tensor
    minibatch: str = ""

    def within(self, minibatch: str) -> Where:
        """The same iteration, in a minibatch such as "2 of 4"."""
        return replace(self, minibatch=minibatch)

    def text(self, pictures: Tensor | None = None, steps: Tensor | None = None) -> str:
        """Iteration, minibatch, and the denoising steps and prompt ids of some pictures (None: of all)."""
        index = self.prompt_index if pictures is None else self.prompt_index[pictures]
        ids = [self.prompts[i].id or repr(self.prompts[i].text[:40]) for i in index.unique().tolist()]
        parts = [f"iteration {self.iteration}"]
        if self.minibatch:
            parts.append(f"minibatch {self.minibatch}")
        if steps is not None:
            parts.append(f"denoising steps {_some([str(step) for step in steps.unique().tolist()])}")
        return ", ".join([*parts, f"prompts {_some(ids)}"])


def check(
    site: str, values: Tensor, where: Where, *, pictures: Tensor | None = None, steps: Tensor | None = None
) -> None:
    """Raise NonFinite unless all values are finite; pictures and steps, of the same shape, say what they belong to."""
    bad = ~values.isfinite()
    if not bad.any():
        return
    bad = bad.cpu()
    kinds = Counter(str(value) for value in values.detach().cpu()[bad].tolist())
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    place = where.text(*(None if of is None else of[bad] for of in (pictures, steps)))
    raise _error(f"{site}: {found} among {bad.numel()} values", place, site)


def check_tensors(site: str, names: Sequence[str], tensors: Sequence[Tensor | None], where: Where) -> None:
    """Raise NonFinite unless all tensors (None: skipped) are finite. One wait for the device where they are."""
    there = [tensor for tensor in tensors if tensor is not None]
    if not there or math.isfinite(float(get_total_norm(there, norm_type=math.inf))):
        return
    bad = [n for n, t in zip(names, tensors, strict=True) if t is not None and not t.isfinite().all()]
    raise _error(f"{site}: not finite in {_some(bad)}", where.text(), site)


def _error(what: str, where: str, site: str) -> NonFinite:
    return NonFinite(f"{what}; no weight was changed by this step", where=where, fix=FIXES[site])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class Guard:
    """What becomes of an update that is not finite: "stop" raises, "skip" leaves it out, at most twice in a row."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.in_a_row = 0

    def leave_out(self, error: PCPOError, warn: Callable[[str], object]) -> None:
        """Leave out what `error` tells of, with a warning. Raises it, or NumericError at the third in a row."""
        if self.policy == "stop":
            raise error
        self.in_a_row += 1
        if self.in_a_row == IN_A_ROW:
            raise NumericError(
                f"{IN_A_ROW} updates in a row were left out; the last for {error.what}",
                where=error.where,
                fix=error.fix,
            ) from error
        warn(f"update left out ({self.in_a_row} in a row; {IN_A_ROW} stop the run): {error}")

    def updated(self) -> None:
        """An update was made."""
        self.in_a_row = 0


__all__ = ["Guard", "NonFinite", "Where", "check", "check_tensors"]
