"""Training loops as the published scripts write them, for `reference.py` to compare with.

No library around the algorithm: prompts are encoded anew for every rollout, there is one network call for
each half of classifier-free guidance, a pass of its own for the old log-probabilities, an update that goes step by step
through the trajectory, and peft's LoRA layers as they are. They learn what the library learns with
`credit.schedule=native`, `objective.name=ppo_clip`: a test compares the gradients of the first update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from pcpo.models.loading import load_adapter
from pcpo.models.lora import add_lora, trainable
from pcpo.rewards.base import as_result
from pcpo.rewards.registry import load_reward
from pcpo.trainer.config import Config


class Loop:
    """One iteration of policy gradient on a pipeline: calling it samples, scores and updates."""

    eta: float

    def __init__(self, config: Config) -> None:
        self.config = config
        adapter = load_adapter(config.model.path, max_sequence_length=config.model.max_sequence_length)
        set_seed(config.run.seed)
        add_lora(adapter, config.model.lora.rank, config.model.lora.alpha, config.model.lora.targets)
        self.pipe, self.net, self.shape = adapter.pipe, adapter.unwrapped, adapter.latent_shape
        self.length = adapter.text_length
        self.reward: Callable[..., Any] = load_reward(config.reward[0].name, **config.reward[0].options)
        self.parameters = [p for _, p in trainable(self.net)]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            self.parameters, optim.learning_rate, optim.betas, optim.epsilon, optim.weight_decay
        )
        self.iteration = 0
        self.set_steps(config.sampler.steps)

    # what a family defines

    def set_steps(self, steps: int) -> None:
        """Set self.timesteps and what `gaussian` needs."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Conditioning of pictures, by their texts."""
        raise NotImplementedError

    def call(self, x: Tensor, i: int, cond: dict[str, Tensor]) -> Tensor:
        """The network at step i."""
        raise NotImplementedError

    def gaussian(self, f: Tensor, x: Tensor, i: int) -> tuple[Tensor, float]:
        """Mean and standard deviation of the next state."""
        raise NotImplementedError

    # the loop

    def prompts(self) -> list[str]:
        """The prompts of this iteration."""
        texts = self.config.prompts
        return [texts[(self.iteration + k) % len(texts)] for k in range(self.config.batch.prompts)]

    def noise(self, step: int, texts: list[str]) -> Tensor:
        """Noise of a step for all pictures; step -1 is the initial noise."""
        return torch.randn(len(texts), *self.shape)

    def predict(self, x: Tensor, i: int, cond: dict[str, Tensor], empty: dict[str, Tensor]) -> Tensor:
        scale = self.config.sampler.guidance_scale
        prompted, blank = self.call(x, i, cond), self.call(x, i, empty)
        return blank + scale * (prompted - blank)

    def log_prob(self, x_next: Tensor, mean: Tensor, std: float) -> Tensor:
        log_prob = -((x_next.detach() - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
        return log_prob.mean(dim=tuple(range(1, log_prob.ndim)))

    def __call__(self) -> None:
        config = self.config
        texts = [text for text in self.prompts() for _ in range(config.batch.group_size)]
        steps = config.sampler.steps
        with torch.no_grad():
            cond, empty = self.encode(texts), self.encode([""] * len(texts))
            states = [self.noise(-1, texts)]
            for i in range(steps):
                mean, std = self.gaussian(self.predict(states[-1], i, cond, empty), states[-1], i)
                states.append(mean + std * self.noise(i, texts) if std > 0 else mean)
            advantages = self.advantages(self.decode(states[-1]), texts)
            old = [self.score(states, i, cond, empty) for i in range(steps)]
        self.iteration += 1
        trained = [i for i in range(steps) if old[i] is not None]
        for part in torch.arange(len(texts)).tensor_split(config.train.updates):
            rows = {name: value[part] for name, value in cond.items()}
            blank = {name: value[part] for name, value in empty.items()}
            here = [state[part] for state in states]
            for i in trained:
                ratio = torch.exp(self.score(here, i, rows, blank) - old[i][part])
                clipped = ratio.clamp(1 - config.objective.clip_range, 1 + config.objective.clip_range)
                loss = torch.maximum(-advantages[part] * ratio, -advantages[part] * clipped).mean()
                (loss / len(trained)).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, config.optim.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def score(self, states: list[Tensor], i: int, cond: dict[str, Tensor], empty: dict[str, Tensor]) -> Any:
        """Log-probability [B] of a step that was taken; None where it had no noise."""
        mean, std = self.gaussian(self.predict(states[i], i, cond, empty), states[i], i)
        return self.log_prob(states[i + 1], mean, std) if std > 0 else None

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        images = vae.decode(latents, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)

    def advantages(self, images: Tensor, texts: list[str]) -> Tensor:
        rewards = as_result(self.reward(images, texts, [{}] * len(texts)), texts, where="reward").values
        groups = rewards.view(-1, self.config.batch.group_size)
        centred = groups - groups.mean(1, keepdim=True)
        scaled = centred / (groups.std(1, correction=0, keepdim=True) + 1e-4)
        return scaled.flatten().clamp(-self.config.advantage.clip, self.config.advantage.clip)


class DiffusionLoop(Loop):
    """DDIM with noise, as DDPO's scripts."""

    def set_steps(self, steps: int) -> None:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        self.timesteps = scheduler.timesteps.tolist()
        self.stride = scheduler.config.num_train_timesteps // steps

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self.pipe.encode_prompt(list(texts), "cpu", 1, False)[0]}

    def call(self, x: Tensor, i: int, cond: dict[str, Tensor]) -> Tensor:
        return self.net(x, self.timesteps[i], **cond).sample

    def gaussian(self, f: Tensor, x: Tensor, i: int) -> tuple[Tensor, float]:
        scheduler, t = self.pipe.scheduler, self.timesteps[i]
        a = float(scheduler.alphas_cumprod[t])
        before = t - self.stride
        b = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
        eta = 1.0 if self.config.sampler.eta is None else self.config.sampler.eta
        std = eta * math.sqrt(max(0.0, (1 - b) / (1 - a) * (1 - a / b)))
        clean = (x - math.sqrt(1 - a) * f) / math.sqrt(a)
        return math.sqrt(b) * clean + math.sqrt(max(0.0, 1 - b - std**2)) * f, std


class FlowLoop(Loop):
    """Flow matching with the noise of Flow-GRPO's scripts."""

    def set_steps(self, steps: int) -> None:
        self.pipe.scheduler.set_timesteps(steps)
        self.timesteps, self.sigmas = self.pipe.scheduler.timesteps, self.pipe.scheduler.sigmas.tolist()

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, **self.length
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def call(self, x: Tensor, i: int, cond: dict[str, Tensor]) -> Tensor:
        return self.net(hidden_states=x, timestep=self.timesteps[i].expand(len(x)), return_dict=False, **cond)[0]

    def gaussian(self, f: Tensor, x: Tensor, i: int) -> tuple[Tensor, float]:
        t, u = self.sigmas[i], self.sigmas[i + 1]
        dt = t - u
        a = 0.7 if self.config.sampler.eta is None else self.config.sampler.eta
        g = a * math.sqrt(t / (1 - (self.sigmas[1] if t == 1 else t)))
        mean = x * (1 - g**2 / (2 * t) * dt) - f * (1 + g**2 * (1 - t) / (2 * t)) * dt
        return mean, g * math.sqrt(dt)


LOOPS = {"diffusion": DiffusionLoop, "flow": FlowLoop}
