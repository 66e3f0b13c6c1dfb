"""PCPO (arXiv 2509.25774) for Stable Diffusion in one file, to be read from top to bottom.

    python examples/pcpo_single_file.py --model emoji-sd --iterations 40 --output runs/single

It needs torch, diffusers, transformers, peft, numpy and Pillow, and of the pcpo package nothing but the embedded model
and prompt files. A test holds its weights equal to the library's with `model.lora.fold=false`, bit for bit, so what is
read here is what runs there; with that setting's default the library is faster and rounds otherwise.

Shapes: P prompts, G pictures of each, B = P G pictures, T denoising steps, S <= T trained ones, latents [C, H, W].
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

INITIAL = -1  # the "step" of the noise that a picture starts from
EVALUATION_SEED = 20250917  # evaluation noise is the same in every run, whatever its seed


@dataclass
class Settings:
    """Every field is an option of the command line. The defaults are those of `pcpo train demo`."""

    model: str = "emoji-sd"  # an embedded model, or any Stable Diffusion 1.x pipeline folder
    prompts: str = "prompts/common50.txt"  # one prompt a line
    output: str = "runs/single"
    seed: int = 0
    # sampling
    steps: int = 10  # T
    guidance_scale: float = 4.0  # above 1
    prompts_per_iteration: int = 6  # P
    group_size: int = 8  # G
    # learning
    iterations: int = 40
    updates: int = 2  # optimiser steps per iteration; divides B
    clip_range: float = 1e-3  # xi
    learning_rate: float = 3e-3
    max_grad_norm: float = 1.0
    lora_rank: int = 16
    # evaluation
    evaluation_prompts: int = 8
    evaluation_pictures: int = 2  # of each prompt


# ---------------------------------------------------------------------------------------------------------------------
# Noise: z = f(seed, prompt, picture, step). It does not depend on batch size or order, so a picture can be made again.
# ---------------------------------------------------------------------------------------------------------------------


def noise(seed: int, texts: list[str], pictures: list[int], step: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [B, *shape] of one step."""
    rows = []
    for text, picture in zip(texts, pictures, strict=True):
        digest = hashlib.blake2b(f"{seed}/{picture}/{step}/{text}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        rows.append(torch.randn(shape, generator=generator))
    return torch.stack(rows)


# ---------------------------------------------------------------------------------------------------------------------
# The sampler: DDIM (2010.02502 eq. 12). One step is Gaussian and affine in the latents x and the prediction eps:
#
#     x_next = a x - k eps + s z        a = sqrt(ab_p / ab_t)
#                                       k = sqrt(1 - ab_t) / sqrt(ab_t / ab_p) - sqrt(1 - ab_p - s^2)
#                                       s = eta sqrt((1 - ab_p) / (1 - ab_t) (1 - ab_t / ab_p))
#
# with ab = alpha bar at the start (ab_t) and the end (ab_p) of the step. eta = 1 to learn, eta = 0 to evaluate.
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Steps:
    """timesteps [T] float32 for the U-Net; a, k, s [T] float64."""

    timesteps: Tensor
    a: Tensor
    k: Tensor
    s: Tensor


def ddim_steps(scheduler: DDIMScheduler, num_steps: int, eta: float) -> Steps:
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps
    alpha_bar = scheduler.alphas_cumprod.double()
    last = int(timesteps[-1]) - scheduler.config.num_train_timesteps // num_steps
    final = alpha_bar[last] if last >= 0 else torch.as_tensor(scheduler.final_alpha_cumprod).double()
    ab_t = alpha_bar[timesteps]
    ab_p = torch.cat([ab_t[1:], final.reshape(1)])
    s = eta * torch.sqrt((1 - ab_p) / (1 - ab_t) * (1 - ab_t / ab_p))
    k = torch.sqrt(1 - ab_t) / torch.sqrt(ab_t / ab_p) - torch.sqrt((1 - ab_p - s**2).clamp(min=0))
    return Steps(timesteps.float(), torch.sqrt(ab_p / ab_t), k, s)


class Policy:
    """The tuned U-Net with its cached prompt embeddings."""

    def __init__(self, pipe: StableDiffusionPipeline, device: torch.device) -> None:
        self.pipe, self.device = pipe, device
        self.embeddings: dict[str, Tensor] = {}
        side = pipe.unet.config.sample_size
        self.latent_shape = (pipe.unet.config.in_channels, side, side)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Embeddings [N, tokens, width]; every text is encoded once, by itself."""
        for text in texts:
            if text not in self.embeddings:
                self.embeddings[text] = self.pipe.encode_prompt(text, self.device, 1, False)[0].float()
        return torch.cat([self.embeddings[text] for text in texts])

    def predict(self, x: Tensor, timestep: Tensor, texts: list[str], guidance_scale: float) -> Tensor:
        """Classifier-free guidance (2207.12598): eps = eps_empty + scale (eps_prompt - eps_empty), in one call."""
        embeddings = self.encode([""] * len(texts) + texts)
        x, timestep = torch.cat([x, x]), torch.cat([timestep, timestep]).to(self.device)
        empty, prompt = self.pipe.unet(x, timestep, encoder_hidden_states=embeddings, return_dict=False)[0].chunk(2)
        return empty + guidance_scale * (prompt - empty)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] uint8 from final latents."""
        vae = self.pipe.vae
        images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


@dataclass
class Rollout:
    """What the update needs. x, z, eps_old [T, B, C, H, W]; the final latents [B, C, H, W]."""

    x: Tensor
    z: Tensor
    eps_old: Tensor
    latents: Tensor


@torch.no_grad()
def rollout(
    policy: Policy, steps: Steps, texts: list[str], pictures: list[int], seed: int, guidance_scale: float
) -> Rollout:
    """Sample one picture per text, keeping at every step the latents, the noise and the prediction."""

    def draw(step: int) -> Tensor:
        return noise(seed, texts, pictures, step, policy.latent_shape).to(policy.device)

    a, k, s = (coefficient.float().to(policy.device) for coefficient in (steps.a, steps.k, steps.s))
    x, seen = draw(INITIAL), []
    for i in range(len(a)):
        z = draw(i) if s[i] > 0 else torch.zeros_like(x)
        eps = policy.predict(x, steps.timesteps[i].expand(len(x)), texts, guidance_scale)
        seen.append((x, z, eps))
        x = a[i] * x - k[i] * eps + s[i] * z
    x_t, z_t, eps_t = (torch.stack(column) for column in zip(*seen, strict=True))
    return Rollout(x_t, z_t, eps_t, x)


# ---------------------------------------------------------------------------------------------------------------------
# Reward and advantage
# ---------------------------------------------------------------------------------------------------------------------


def colorfulness(images: Tensor) -> Tensor:
    """Hasler and Suesstrunk (2003): M = sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2), [B]."""
    red, green, blue = images.double().flatten(2).unbind(1)
    rg, yb = red - green, (red + green) / 2 - blue
    mean_rg, mean_yb = rg.mean(1), yb.mean(1)
    var_rg, var_yb = rg.square().mean(1) - mean_rg.square(), yb.square().mean(1) - mean_yb.square()
    spread = (var_rg.clamp(min=0) + var_yb.clamp(min=0)).sqrt()
    return (spread + 0.3 * (mean_rg.square() + mean_yb.square()).sqrt()).float()


def group_advantage(rewards: Tensor) -> Tensor:
    """GRPO (2402.03300): A = (R - mean_group) / (std_group + 1e-4), clipped to +-5; rewards, A [P, G].

    A group whose rewards are all equal teaches nothing: exactly 0.
    """
    r = rewards.double()
    mean = r.mean(1, keepdim=True)
    std = (r - mean).square().mean(1, keepdim=True).sqrt()
    equal = r.amin(1, keepdim=True) == r.amax(1, keepdim=True)
    return ((r - mean) / (std + 1e-4)).clamp(-5, 5).masked_fill(equal, 0).float()


# ---------------------------------------------------------------------------------------------------------------------
# Credit and loss: what PCPO changes.
#
# With d = eps_theta - eps_old and w = k / s, the exact log importance ratio of a step is
#
#     log rho = -(w d.z + 1/2 w^2 |d|^2),    so at theta = old    grad log rho = -w z.grad eps:
#
# w is the step's credit, and DDIM spreads it 9 : 1 over the steps for no good reason. PCPO gives every step the mean
# weight w_bar = 1/S sum w, by putting it in the place of w (the matching form, m = -log rho with w_bar):
#
#     m = mean over the latent's numbers of (w_bar d z + 1/2 (w_bar d)^2)
#     loss = max(0, xi |A| + A m)
#
# The log-hinge has gradient A dm or 0, however far the policy has moved, where PPO's has the factor rho.
# ---------------------------------------------------------------------------------------------------------------------


def matching_loss(eps: Tensor, eps_old: Tensor, z: Tensor, w_bar: Tensor, advantage: Tensor, xi: float) -> Tensor:
    """Loss [N] of N (picture, step) pairs; advantage [N]."""
    wd = w_bar * (eps - eps_old)
    m = (wd * z + 0.5 * wd**2).flatten(1).mean(1)
    sign = advantage.sign()
    # sign (xi sign + m) = xi + sign m: above 0 where the policy may still move that way
    active = sign * (xi * sign + m) > 0
    return advantage * torch.where(active, xi * sign + m, 0)


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def prompt_order(num_prompts: int, seed: int) -> Iterator[int]:
    """Endless shuffled epochs."""
    for epoch in itertools.count():
        yield from np.random.default_rng([seed, epoch]).permutation(num_prompts).tolist()


def find(name: str) -> Path:
    """A path that exists as it is, or one among the assets of the installed package, which is not imported."""
    package = importlib.util.find_spec("pcpo")
    embedded = Path(package.origin).parent / "assets" if package and package.origin else Path()
    for path in (Path(name), embedded / name):
        if path.exists():
            return path
    raise SystemExit(f"{name}: no such file or folder, neither here nor in {embedded}")


def read_prompts(file: Path) -> list[str]:
    lines = (line.strip() for line in file.read_text("utf-8").split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def evaluate(policy: Policy, scheduler: DDIMScheduler, prompts: list[str], settings: Settings, file: Path) -> float:
    """Mean reward of fixed prompts and noises, sampled without noise in the steps; the pictures go into `file`."""
    texts = [text for text in prompts[: settings.evaluation_prompts] for _ in range(settings.evaluation_pictures)]
    steps = ddim_steps(scheduler, settings.steps, eta=0.0)
    done = rollout(policy, steps, texts, list(range(len(texts))), EVALUATION_SEED, settings.guidance_scale)
    images = policy.decode(done.latents)
    rows = images.unflatten(0, (-1, settings.evaluation_pictures)).permute(0, 3, 1, 4, 2)  # a prompt per row
    Image.fromarray(rows.flatten(2, 3).flatten(0, 1).numpy()).save(file)
    return float(colorfulness(images).mean())


def train(settings: Settings) -> None:
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    output, seed, size = Path(settings.output), settings.seed, settings.prompts_per_iteration * settings.group_size
    output.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(find(settings.prompts))

    # the pipeline is frozen; a float32 LoRA (2106.09685) on the U-Net's attention learns, from B = 0
    pipe = StableDiffusionPipeline.from_pretrained(find(settings.model), safety_checker=None, use_safetensors=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval().to(device)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        init_lora_weights="gaussian",
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
    )
    pipe.unet.add_adapter(lora)
    parameters = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)

    policy = Policy(pipe, device)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    if scheduler.config.prediction_type != "epsilon":
        raise SystemExit("this file is for models that predict eps; the library takes v-prediction too")
    steps = ddim_steps(scheduler, settings.steps, eta=1.0)
    trained = (steps.s > 0).nonzero().flatten()  # [S]; a step without noise has no ratio
    w = (steps.k / steps.s)[trained]
    w_bar = w.mean().float().to(device)
    print(f"native credit {w.min():.3f} to {w.max():.3f}, PCPO {w_bar:.3f} on {len(trained)} steps")
    print(f"before: reward {evaluate(policy, scheduler, prompts, settings, output / 'before.png'):.3f}")

    order = prompt_order(len(prompts), seed)
    for iteration in range(settings.iterations):
        chosen = itertools.islice(order, settings.prompts_per_iteration)
        texts = [prompts[i] for i in chosen for _ in range(settings.group_size)]
        pictures = list(range(iteration * size, (iteration + 1) * size))
        done = rollout(policy, steps, texts, pictures, seed, settings.guidance_scale)
        rewards = colorfulness(policy.decode(done.latents))
        advantage = group_advantage(rewards.view(-1, settings.group_size)).flatten().to(device)

        shuffle = torch.Generator().manual_seed((seed << 32) + (iteration << 8))
        shuffled = torch.randperm(size, generator=shuffle) if settings.updates > 1 else torch.arange(size)
        for part in shuffled.tensor_split(settings.updates):
            # all (picture b, step i) pairs of the part, step by step, as many per call as in the rollout
            pairs = torch.cartesian_prod(trained, part).split(size)
            for i, b in (rows.unbind(1) for rows in pairs):
                eps = policy.predict(
                    done.x[i, b], steps.timesteps[i], [texts[row] for row in b.tolist()], settings.guidance_scale
                )
                loss = matching_loss(eps, done.eps_old[i, b], done.z[i, b], w_bar, advantage[b], settings.clip_range)
                (loss.sum() / (len(part) * len(trained))).backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        print(f"{iteration + 1:4d}  reward {rewards.mean():.3f} +- {rewards.std():.3f}  gradient norm {norm:.2e}")

    print(f"after: reward {evaluate(policy, scheduler, prompts, settings, output / 'after.png'):.3f}")
    # pipe.load_lora_weights(output) puts it back on the model
    pipe.save_lora_weights(
        output,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=lora.to_dict(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Settings):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help="%(default)s")
    train(Settings(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
