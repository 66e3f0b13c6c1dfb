"""What an iteration costs: rows through the backbone, bytes that processes exchange, bytes that a rollout keeps."""

from __future__ import annotations

from dataclasses import dataclass

from pcpo.trainer.config import Config
from pcpo.trainer.distributed import PRESENCE_BYTES
from pcpo.trainer.schedule import count_calls

FLOAT = 4  # bytes of latents, LoRA and tuned weights


@dataclass(frozen=True)
class Cost:
    """Of one iteration, for the process with most pictures.

    pictures    sampled by it
    sampled     rows through the backbone without gradient, in the rollout
    reference   the same, of the model before tuning (KL penalty, credit.apply=lambda) and of replayed old predictions
    trained     rows forward and backward; about three times the work of a sampled one
    reduced     bytes that it hands to all-reduce; a ring sends and receives 2 (R - 1) / R of them
    trajectory  bytes of latents, noises and predictions kept from the rollout to the updates
    gathered    bytes of all that it gets from all-gather (ZeRO-2: the updated weights); a ring receives (R - 1) / R
    """

    pictures: int
    sampled: int
    reference: int
    trained: int
    reduced: int
    trajectory: int
    gathered: int = 0

    @property
    def work(self) -> int:
        """Rows in units of one forward pass."""
        return self.sampled + self.reference + 3 * self.trained

    def seconds(self, row: float, bandwidth: float, world: int) -> float:
        """Predicted time: `row` seconds per forward row, collectives over a ring of `bandwidth` bytes per second.

        Decoding and rewards come on top.
        """
        return row * self.work + (world - 1) / world * (2 * self.reduced + self.gathered) / bandwidth


def iteration_cost(
    config: Config,
    *,
    trained_steps: int,
    latent: int,
    parameters: int,
    tensors: int,
    world: int = 1,
    zero: bool = False,
) -> Cost:
    """The cost of one iteration by `world` processes; `zero`: by DeepSpeed's ZeRO-2, which reduces at every backward.

    trained_steps S; latent: numbers D in one picture's latents; parameters: trained numbers, in so many tensors.
    Calls that are filled up to the rollout's shape, where the shares do not divide, are not counted; nor are backward
    passes that the processes make more where a minibatch is not the same share of each (`train.updates` above 1).
    """
    pictures = -(-config.pictures // world)
    rows = 2 if config.sampler.guidance_scale > 1 else 1
    mixed = config.credit.apply == "lambda"  # every prediction mixes in one of the model before tuning
    sampled = pictures * config.sampler.steps * rows
    trained = pictures * trained_steps * config.train.epochs * rows
    updates, replay = config.train.updates * config.train.epochs, config.train.replay
    referred = (config.kl.form != "none") + mixed + (replay and updates > 1) * (1 + mixed)
    reductions, several = updates, world > 1
    if zero:
        own = -(-pictures // config.train.updates)
        reductions *= count_calls(own, trained_steps, config.batch.micro or config.batch.rollout or pictures)
    return Cost(
        pictures=pictures,
        sampled=sampled,
        reference=sampled * mixed + trained * referred,
        trained=trained,
        reduced=several * (reductions * FLOAT * parameters + updates * PRESENCE_BYTES * tensors),
        trajectory=pictures * ((3 - replay) * trained_steps + 1) * latent * FLOAT,
        gathered=several * zero * updates * FLOAT * parameters,
    )


__all__ = ["Cost", "iteration_cost"]
