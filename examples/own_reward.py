"""Tune a model on a reward of your own: `python examples/own_reward.py [model.path=FOLDER train.iterations=5 ...]`."""

import sys

from pcpo import PCPOTrainer, load_config


def redness(images, prompts, metadata):
    """Pictures uint8 [B, 3, H, W] to one number each; higher is better."""
    red, green, blue = images.float().mean(dim=(2, 3)).unbind(1)
    return red - (green + blue) / 2


if __name__ == "__main__":
    config = load_config("demo", ["name=redness", *sys.argv[1:]])
    summary = PCPOTrainer(reward=redness, config=config, prompts=["a boat", "a flower", "a house", "a fish"]).train()
    print(f"redness {summary.reward_before:.1f} -> {summary.reward_after:.1f}, pictures in {summary.output}")
