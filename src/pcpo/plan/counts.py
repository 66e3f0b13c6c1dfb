"""How many pictures and model calls a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass

from pcpo.trainer.config import Config


@dataclass(frozen=True)
class Counts:
    """Work of one iteration (of one evaluation, where it says so) and of the run.

    A call is one pass of a batch through the backbone; with classifier-free guidance it holds two rows a picture.

    pictures          B, sampled and scored
    rollout_size      pictures in the largest sampling call; rollout_calls: calls of an iteration, of all T steps
    update_size       (picture, step) pairs in the largest training call
    update_calls      training calls of an iteration, each with a backward pass
    reference_calls   calls to the model before tuning, for a KL penalty or credit.apply=lambda, and replays
    optimiser_steps   of an iteration
    probe_calls       training calls of one gradient_share measurement, of up to probe_size pairs
    evaluations       in the run; evaluation_pictures and evaluation_calls are of one
    """

    iterations: int
    pictures: int
    trained_steps: int
    rollout_size: int
    rollout_calls: int
    update_size: int
    update_calls: int
    reference_calls: int
    optimiser_steps: int
    probe_calls: int
    probe_size: int
    evaluations: int
    evaluation_pictures: int
    evaluation_calls: int

    @property
    def pairs(self) -> int:
        """(picture, step) pairs trained in an iteration, one pass over them."""
        return self.pictures * self.trained_steps

    @property
    def run_pictures(self) -> int:
        """Pictures sampled in the whole run, those of evaluations included."""
        return self.iterations * self.pictures + self.evaluations * self.evaluation_pictures

    @property
    def run_calls(self) -> int:
        """Model calls of the whole run."""
        each = self.rollout_calls + self.update_calls + self.reference_calls
        return self.iterations * each + self.measuring_calls

    @property
    def measuring_calls(self) -> int:
        """Model calls of all evaluations and credit probes; the last evaluation has no rollout to probe."""
        return self.evaluations * self.evaluation_calls + (self.evaluations - 1) * self.probe_calls


def count(config: Config, trained_steps: int, prompts: int) -> Counts:
    """Counts of a configuration whose sampler trains `trained_steps` steps, with `prompts` evaluation prompts."""
    batch, train, evaluation, steps = config.batch, config.train, config.evaluation, config.sampler.steps
    rollout = min(batch.rollout or config.pictures, config.pictures)
    micro = batch.micro or rollout
    minibatch = config.pictures // train.updates
    # pairs of a minibatch are cut into blocks of at most `micro` pictures, and these into calls (micro_batches)
    blocks = [min(micro, minibatch - start) for start in range(0, minibatch, micro)]
    calls = sum(-(-block * trained_steps // micro) for block in blocks)
    update_calls = calls * train.updates * train.epochs
    lambda_calls = config.credit.apply == "lambda"  # every prediction mixes in one of the model before tuning
    replayed = train.replay and train.updates * train.epochs > 1
    referred = (config.kl.form != "none") + lambda_calls + replayed * (1 + lambda_calls)
    rollout_calls = -(-config.pictures // rollout) * steps
    shown = min(evaluation.num_prompts, prompts) * evaluation.per_prompt
    measured = min(evaluation.credit_probe, config.pictures)
    return Counts(
        iterations=train.iterations,
        pictures=config.pictures,
        trained_steps=trained_steps,
        rollout_size=rollout,
        rollout_calls=rollout_calls,
        # calls of the rollout's size are filled up to it, so that they repeat its predictions
        update_size=micro if micro == rollout else min(micro, max(blocks) * trained_steps),
        update_calls=update_calls,
        reference_calls=lambda_calls * rollout_calls + referred * update_calls,
        optimiser_steps=train.updates * train.epochs,
        probe_calls=max(min(2, measured), -(-measured // micro)) * trained_steps,
        probe_size=min(measured, micro),
        evaluations=-(-train.iterations // evaluation.every) + 1,
        evaluation_pictures=shown,
        evaluation_calls=-(-shown // rollout) * (evaluation.steps or steps),
    )


__all__ = ["Counts", "count"]
