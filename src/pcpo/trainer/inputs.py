"""What a run reads before any model: its prompts, and rewards that had a look at them."""

from __future__ import annotations

from collections.abc import Sequence

from pcpo.data.prompts import Prompt, hold_out, load_prompts
from pcpo.errors import RewardError
from pcpo.models.device import find_device
from pcpo.rewards.base import ready
from pcpo.rewards.mixing import WeightedSum
from pcpo.rewards.registry import REWARDS, build_rewards, check_built_ins, check_prompts, load_reward
from pcpo.trainer.config import Config, RewardPart
from pcpo.types import Reward

MODEL_FILES = "config.json, model.safetensors, tokenizer and preprocessor_config.json"


def prompt_sets(config: Config) -> tuple[list[Prompt], list[Prompt]]:
    """(training prompts, evaluation prompts); PromptError as `load_prompts` and `hold_out` raise it."""
    prompts = load_prompts(config.prompts)
    if config.held_out:
        return hold_out(prompts, config.held_out)
    return prompts, load_prompts(config.evaluation.prompts) if config.evaluation.prompts else prompts


def make_rewards(
    config: Config, given: Reward | None, prompts: Sequence[Prompt]
) -> tuple[WeightedSum, WeightedSum | None]:
    """(what is trained on, what is held out or None). `given` stands in for the configured reward.

    Raises PromptError or RewardError; what needs no model to be seen is refused before one is loaded.
    """
    parts = config.reward if given is None else []
    check_built_ins([(part.name, part.options) for part in [*parts, *config.evaluation.rewards]], prompts)
    trained = _build(parts) if given is None else WeightedSum([(config.reward[0].name, given, 1.0)])
    held_out = _build(config.evaluation.rewards) if config.evaluation.rewards else None
    for name, reward, _ in [*trained.parts, *(held_out.parts if held_out else [])]:
        check_prompts(reward, prompts, name)
        ready(reward)
    return trained, held_out


def check_rewards(config: Config, prompts: Sequence[Prompt]) -> None:
    """Refuse what can be refused without loading a reward's model: code that the configuration names is imported, a
    reward that is elsewhere is asked whether it is ready, and the files that a built-in one would load are looked for.
    """
    parts = [*config.reward, *config.evaluation.rewards]
    check_built_ins([(part.name, part.options) for part in parts], prompts)
    for part in parts:
        if part.name not in REWARDS or REWARDS[part.name].target.startswith("pcpo.rewards.remote."):
            reward = load_reward(part.name, **part.options)
            check_prompts(reward, prompts, part.name)
            ready(reward)
        else:
            _check_models(part)


def _check_models(part: RewardPart) -> None:
    """Look at what a built-in reward would load: its folders or hub ids, its precision, its device, a small head."""
    from pcpo.rewards.loading import DTYPES, check_files

    where, options = f"reward {part.name!r}", part.options
    for key in ("model", "captioner", "encoder", "processor"):
        if options.get(key) is not None:
            check_files(str(options[key]), f"{where}, {key}", MODEL_FILES, weights=key != "processor")
    if "dtype" in options and options["dtype"] not in DTYPES:
        raise RewardError(f"dtype {options['dtype']!r}", where=where, fix=f"use one of: {', '.join(DTYPES)}")
    if "device" in options:
        find_device(str(options["device"]).split(":")[0], f"{where}, device")
    if "head" in options:
        from pcpo.rewards.aesthetic import load_head

        load_head(str(options["head"]))


def _build(parts: Sequence[RewardPart]) -> WeightedSum:
    return build_rewards([(part.name, part.weight, part.options) for part in parts])


__all__ = ["check_rewards", "make_rewards", "prompt_sets"]
