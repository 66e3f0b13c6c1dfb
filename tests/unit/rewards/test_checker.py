import itertools
import time

import numpy as np
import pytest
import torch

from pcpo.rewards.builtin import colorfulness, jpeg_compressibility, jpeg_incompressibility
from pcpo.rewards.checker import PROMPTS, check_reward, probe_pictures
from pcpo.types import RewardResult

counter = itertools.count()


def brightness(images):
    return images.float().mean(dim=(1, 2, 3))


def raises(images, prompts, metadata):
    raise KeyError("target")


def column(images, prompts, metadata):
    return brightness(images)[:, None]


def scalar(images, prompts, metadata):
    return brightness(images).mean()


def texts(images, prompts, metadata):
    return ["good"] * len(images)


def not_a_number(images, prompts, metadata):
    return brightness(images) / brightness(images)  # the black picture gives 0 / 0


def nothing(images, prompts, metadata):
    brightness(images)


def standardised(images, prompts, metadata):
    return brightness(images) - brightness(images).mean()


def mutating(images, prompts, metadata):
    return brightness(images.div_(2, rounding_mode="floor"))


def renaming(images, prompts, metadata):
    prompts[:] = [prompt.upper() for prompt in prompts]
    return brightness(images)


def noisy(images, prompts, metadata):
    return brightness(images) + torch.from_numpy(np.random.default_rng().random(len(images)))


def counting(images, prompts, metadata):
    return brightness(images) + next(counter)


def reseeding(images, prompts, metadata):
    torch.manual_seed(0)
    return brightness(images) + torch.rand(())


def slow(images, prompts, metadata):
    time.sleep(0.02 * len(images))
    return brightness(images)


def elsewhere(images, prompts, metadata):
    return brightness(images).to("meta")


def with_graph(images, prompts, metadata):
    return brightness(images) * torch.ones((), requires_grad=True)


def squeezing(images, prompts, metadata):
    return brightness(images)[:, None].squeeze()


def flat(images, prompts, metadata):
    return [0.5] * len(images)


def abstaining(images, prompts, metadata):
    return RewardResult(brightness(images), torch.zeros(len(images), dtype=torch.bool))


BROKEN = {
    raises: "raises: KeyError: 'target'",
    column: "bad-return: returned shape (6, 1) instead of (6,)",
    scalar: "bad-return: returned shape () instead of (6,)",
    texts: "bad-return: returned what is not numbers (element 0 is of type str)",
    not_a_number: "bad-return: returned nan at picture 3",
    nothing: "bad-return: returned None",
    standardised: "batch: picture 0 got",
    mutating: "mutates: it writes to its input",
    renaming: "mutates: it writes to its input",
    noisy: "random: the same input gave two answers",
    counting: "random: the same input gave two answers",
    reseeding: "global-seed: it changes the global random state",
    slow: "slow: 0.02 s per picture",
    elsewhere: "wrong-device: it returns a tensor on meta",
    with_graph: "gradient: it returns a tensor with a graph",
    squeezing: "single: a batch of one picture fails (bad-return: returned shape () instead of (1,)",
    flat: "constant: every picture got 0.5",
    abstaining: "abstains: it abstains on every picture",
}


@pytest.mark.parametrize("reward", BROKEN, ids=lambda reward: reward.__name__)
def test_each_fault_is_named_first(reward):
    findings = check_reward(reward, max_seconds=0.015 if reward is slow else 1.0)
    assert findings and findings[0].startswith(BROKEN[reward]), findings


@pytest.mark.parametrize("reward", [colorfulness, jpeg_compressibility, jpeg_incompressibility])
def test_built_ins_pass(reward):
    assert check_reward(reward) == []


def test_what_cannot_be_called():
    assert check_reward([1, 2]) == ["not-callable: it is of type list; pass a function or an object with __call__"]


def test_own_pictures_prompts_and_metadata_are_used():
    seen = []

    def spy(images, prompts, metadata):
        seen.append((len(images), prompts, metadata))
        return brightness(images) + torch.tensor([float(entry["n"]) for entry in metadata])

    images = probe_pictures()[:2]
    assert check_reward(spy, images=images, prompts=["x", "y"], metadata=[{"n": 1}, {"n": 2}]) == []
    assert seen[0] == (2, ["x", "y"], [{"n": 1}, {"n": 2}])
    assert seen[-1] == (1, ["y"], [{"n": 2}])


def test_random_states_are_put_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert check_reward(reseeding)
    assert torch.equal(torch.get_rng_state(), before)


def test_probe_pictures_differ():
    pictures = probe_pictures()
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures) == len(PROMPTS)
