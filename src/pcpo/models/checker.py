"""Try a model family's adapter and say what is wrong with it, before a training run finds out."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pcpo.errors import PCPOError, one_line
from pcpo.models.base import Adapter, Conditioning
from pcpo.models.lora import add_lora, save_lora, trainable
from pcpo.samplers import make_sampler
from pcpo.samplers.rollout import sample

PROMPTS = ("red", "a blue boat")  # of different lengths
EXACT, HALF = 1e-4, 5e-2  # relative to the values' size: in float32, and under autocast
SCALES = (1.0, 4.0)


def check_adapter(adapter: Adapter, *, prompts: Sequence[str] = PROMPTS, steps: int = 4) -> list[str]:
    """Findings, one line each, that start with a fixed word; an empty list means that nothing was found.

    raises      it fails: nothing further is tried
    shape       conditioning, predictions or pictures of another shape or dtype than they are to have
    blind       different prompts are encoded alike
    cache       a remembered prompt differs from the same prompt encoded anew
    random      the same input gave two answers
    batch       the prediction of a row depends on the others in its batch
    latents     its latent shape is not the pipeline's
    pipeline    sampled without noise, it ends elsewhere than `pipe(...)` from the same noise
    pictures    its pictures of the same latents differ from the pipeline's
    lora        its LoRA targets match nothing, or the LoRA changes nothing
    gradient    no gradient reaches the LoRA, or frozen parameters take one
    base        with a fresh LoRA, or the LoRA off, it is not the base model bit for bit
    saved       a LoRA that was saved and loaded by diffusers is not the same model

    Makes about 20 backbone calls of two pictures and `steps` steps. The adapter is left as it was found; it must have
    no LoRA. Two prompts are needed.
    """
    probe = _Probe(adapter, list(prompts[:2]), steps)
    findings: list[str] = []
    for judge in (_judge_encoding, _judge_prediction, _judge_sampling, _judge_lora):
        found = _tried(judge, probe)
        findings += found
        if any(finding.startswith("raises") for finding in found):
            break
    return findings


def _tried(judge: Callable[[_Probe], list[str]], probe: _Probe) -> list[str]:
    try:
        return judge(probe)
    except Exception as error:  # the point of the call is to see what it does
        reason = one_line(error) if isinstance(error, PCPOError) else f"{type(error).__name__}: {one_line(error)}"
        return [f"raises: while {judge.__name__.removeprefix('_judge_')} was tried: {reason}"]


class _Probe:
    """Fixed inputs: two rows with prompts, noises and timesteps of their own."""

    def __init__(self, adapter: Adapter, prompts: list[str], steps: int) -> None:
        self.adapter, self.prompts, self.steps = adapter, prompts, steps
        self.tolerance = EXACT if adapter.autocast is None else HALF

    def noise(self) -> Tensor:
        """[2, ...] on the device."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, *self.adapter.latent_shape, generator=generator).to(self.adapter.device)

    def encode_anew(self) -> Conditioning:
        """The prompts' conditioning without what is remembered."""
        kept, self.adapter.embeddings = self.adapter.embeddings, {}
        try:
            return self.adapter.encode(self.prompts)
        finally:
            self.adapter.embeddings = kept

    def predict(self, rows: Sequence[int] = (0, 1), scale: float = SCALES[-1]) -> Tensor:
        """[n, ...] of some of the rows; each row alone is encoded alone too."""
        adapter, index = self.adapter, list(rows)
        timesteps = adapter.grid(self.steps).timesteps[[0, self.steps // 2]].float().to(adapter.device)
        cond = adapter.encode([self.prompts[row] for row in index])
        order = torch.arange(len(index), device=adapter.device)
        return adapter.predict(self.noise()[index], timesteps[index], cond, order, scale)

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors agree within the tolerance of the precision."""
        return bool((a.double() - b.double()).abs().max() <= self.tolerance * max(1.0, float(b.abs().max())))


def _judge_encoding(probe: _Probe) -> list[str]:
    first, again = probe.encode_anew(), probe.encode_anew()
    kept = [probe.adapter.encode(probe.prompts) for _ in range(2)][1]
    names = set(first.empty)
    if set(first.prompt) != names or any(len(first.prompt[n]) != 2 or len(first.empty[n]) != 1 for n in names):
        return ["shape: conditioning is to be the same named tensors, [prompts, ...] and [1, ...]"]
    findings = []
    if not _same(first, again):
        findings.append("random: the same prompt was encoded in two ways")
    elif not _same(first, kept):
        findings.append("cache: a remembered prompt differs from the same prompt encoded anew")
    if all(torch.equal(value[0], value[1]) for value in first.prompt.values()):
        findings.append(f"blind: {probe.prompts[0]!r} and {probe.prompts[1]!r} are encoded alike")
    return findings


def _same(a: Conditioning, b: Conditioning) -> bool:
    halves = ((a.prompt, b.prompt), (a.empty, b.empty))
    return all(torch.equal(one[name], other[name]) for one, other in halves for name in one)


@torch.no_grad()
def _judge_prediction(probe: _Probe) -> list[str]:
    findings = []
    for scale in SCALES:
        together = probe.predict(scale=scale)
        expected = (2, *probe.adapter.latent_shape)
        if together.shape != expected or together.dtype != torch.float32:
            return [f"shape: a prediction is {_described(together)}, and is to be float32 {expected}"]
        if not torch.equal(together, probe.predict(scale=scale)):
            return ["random: the same prediction was made in two ways"]
        findings += [
            f"batch: row {row} is predicted otherwise alone than in a batch, at guidance {scale:g}"
            for row in (0, 1)
            if not probe.close(probe.predict([row], scale)[0], together[row])
        ]
    return findings


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


@torch.no_grad()
def _judge_sampling(probe: _Probe) -> list[str]:
    """Our deterministic rollout against `pipe(...)` from the same noise, then the pictures of its latents."""
    adapter, findings = probe.adapter, []
    pipe = copy.copy(adapter.pipe)
    pipe.scheduler = adapter.deterministic_scheduler()
    pipe.set_progress_bar_config(disable=True)
    for scale in SCALES:
        settings = {
            "num_inference_steps": probe.steps,
            "height": adapter.resolution,
            "width": adapter.resolution,
            **adapter.pipeline_arguments(scale),
        }
        free = pipe(probe.prompts, output_type="latent", **settings).images
        if free.shape[1:] != adapter.latent_shape:
            return [f"latents: of shape {adapter.latent_shape}, and the pipeline's are {tuple(free.shape[1:])}"]
        own = pipe(probe.prompts, latents=probe.noise(), output_type="latent", **settings).images
        latents = _sampled(probe, scale)
        if not probe.close(latents, own):
            far = float((latents - own).abs().max())
            findings.append(f"pipeline: latents differ by up to {far:.2g} from the pipeline's, at guidance {scale:g}")
    shown = pipe(probe.prompts, latents=probe.noise(), output_type="pt", **settings).images
    pictures = adapter.decode(own)
    if pictures.dtype != torch.uint8 or pictures.shape != shown.shape:
        findings.append(f"shape: pictures are {_described(pictures)}, and are to be uint8 {tuple(shown.shape)}")
    elif (pictures.float() - shown.float().cpu() * 255).abs().max() > (1 if adapter.autocast is None else 8):
        findings.append("pictures: they differ from the pipeline's of the same latents")
    return findings


def _sampled(probe: _Probe, scale: float) -> Tensor:
    adapter, ode = probe.adapter, make_sampler("ode")
    grid, cond = adapter.grid(probe.steps), adapter.encode(probe.prompts)
    order = torch.arange(2, device=adapter.device)

    def predict(x: Tensor, i: Tensor) -> Tensor:
        return adapter.predict(x, grid.timesteps[i.cpu()].to(x), cond, order, scale)

    return sample(predict, ode, ode.stats(grid), probe.noise())


def _judge_lora(probe: _Probe) -> list[str]:
    adapter = probe.adapter
    with torch.no_grad():
        base = probe.predict()
    try:
        add_lora(adapter, 2, targets=list(adapter.lora_targets) or ["(none)"])
    except PCPOError as error:
        return [f"lora: {error}"]
    try:
        return _judge_tuning(probe, base)
    finally:
        for parameter in adapter.unwrapped.parameters():
            parameter.grad = None
        adapter.pipe.unload_lora_weights()


def _judge_tuning(probe: _Probe, base: Tensor) -> list[str]:
    adapter, findings = probe.adapter, []
    with torch.no_grad():
        if not torch.equal(probe.predict(), base):
            findings.append("base: with a fresh LoRA, whose second matrix is zero, predictions are others")
        generator = torch.Generator().manual_seed(1)
        for _, p in trainable(adapter.unwrapped):
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    tuned = probe.predict()
    if torch.equal(tuned, base):
        return [*findings, "lora: it changes nothing"]
    findings += _judge_gradient(probe, tuned)
    with torch.no_grad(), adapter.reference():
        if not torch.equal(probe.predict(), base):
            findings.append("base: inside reference(), predictions are not those of the model before tuning")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_lora(adapter, Path(folder))
        adapter.pipe.unload_lora_weights()
        adapter.pipe.load_lora_weights(folder)
        if not torch.equal(probe.predict(), tuned):
            findings.append("saved: a LoRA that was saved and loaded by diffusers gives other predictions")
    return findings


def _judge_gradient(probe: _Probe, prediction: Tensor) -> list[str]:
    if not prediction.requires_grad:
        return ["gradient: a prediction carries no graph"]
    prediction.square().mean().backward()
    tuned, found = {id(p) for name, p in trainable(probe.adapter.unwrapped) if "lora_" in name}, []
    if not any(p.grad is not None and bool(p.grad.any()) for _, p in trainable(probe.adapter.unwrapped)):
        found.append("gradient: none reaches the LoRA")
    for part_name, part in probe.adapter.parts().items():
        taking = [name for name, p in part.named_parameters() if p.requires_grad and id(p) not in tuned]
        if taking:
            found.append(f"gradient: {part_name} has {len(taking)} parameters that are to be frozen, as {taking[0]}")
    return found


__all__ = ["check_adapter"]
