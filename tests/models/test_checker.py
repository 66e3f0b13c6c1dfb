"""check_adapter finds nothing in our families, leaves them as they were, and names what is wrong with broken ones."""

from __future__ import annotations

import contextlib

import pytest
import torch

import tiny
from pcpo.errors import ModelError
from pcpo.models.checker import check_adapter
from pcpo.models.flux import FluxAdapter
from pcpo.models.loading import wrap_pipeline
from pcpo.models.stable_diffusion import StableDiffusionAdapter
from pcpo.models.stable_diffusion3 import StableDiffusion3Adapter

FAMILIES = {
    "sd": (tiny.stable_diffusion, {}),
    "sd-v": (lambda: tiny.stable_diffusion("v_prediction"), {}),
    "sdxl": (tiny.stable_diffusion_xl, {}),  # its own scheduler is not DDIM
    "sd3": (tiny.stable_diffusion_3, {"max_sequence_length": 1}),
    "flux": (tiny.flux, {"resolution": 16, "max_sequence_length": 12}),
    "sana": (tiny.sana, {"resolution": 32, "max_sequence_length": 24}),
    "qwen": (tiny.qwen_image, {"resolution": 16}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_found_in_a_family_of_ours(family):
    make, options = FAMILIES[family]
    adapter = wrap_pipeline(make(), **options)
    before = {name: value.clone() for name, value in adapter.unwrapped.state_dict().items()}
    scheduler = adapter.pipe.scheduler
    assert check_adapter(adapter) == []
    after = adapter.unwrapped.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert adapter.pipe.scheduler is scheduler and not any(p.requires_grad for p in adapter.unwrapped.parameters())
    assert check_adapter(adapter) == []


class Sd(StableDiffusionAdapter):
    pass


class WrongSign(Sd):
    def prediction(self, out, x, timestep):
        return -out


class GuidanceSwapped(Sd):
    def guide(self, prompt, empty, scale):
        return prompt + scale * (empty - prompt)


class WrongGrid(StableDiffusion3Adapter):
    def grid(self, num_steps, *, kind="scheduler", shift=None):
        return super().grid(num_steps, kind="ideal")


class WrongLatents(FluxAdapter):
    @property
    def latent_shape(self):
        return (4, 8, 8)

    def predict(self, x, timestep, cond, index, guidance_scale):
        return torch.zeros_like(x)


class UnscaledPictures(Sd):
    def to_pictures(self, latents):
        return self.pipe.vae.decode(latents, return_dict=False)[0]


class FloatPictures(Sd):
    def decode(self, latents):
        return self.to_pictures(latents)


class HalfPrecision(Sd):
    def call(self, x, timestep, cond):
        return super().call(x, timestep, cond).bfloat16()


class Dropout(Sd):
    def prediction(self, out, x, timestep):
        return torch.nn.functional.dropout(out, 0.1)


class WholeBatch(Sd):
    def prediction(self, out, x, timestep):
        return out - out.mean(0)


class Padded(Sd):
    """Pads without a mask: a prompt beside a longer one is another."""

    def encode_one(self, prompt):
        rows = super().encode_one(prompt)
        return {name: value[:, : 6 + len(prompt) // 8] for name, value in rows.items()}


class Deaf(Sd):
    def encode_one(self, prompt):
        return super().encode_one("")


class RandomText(Sd):
    def encode_one(self, prompt):
        return {name: value + 0.01 * torch.randn_like(value) for name, value in super().encode_one(prompt).items()}


class Forgetful(Sd):
    """What it remembers is not what it encodes."""

    def encode_ahead(self, prompts):
        known = all(self.embeddings.get(prompt) is not None for prompt in prompts)
        found = super().encode_ahead(prompts)
        return {key: {n: v + known * 0.1 for n, v in value.items()} for key, value in found.items()}


class OtherNames(Sd):
    def encode_empty(self):
        return {"empty_embeds": self.encode_one("")["prompt_embeds"]}


class NoTargets(Sd):
    lora_targets = ("query", "key")


class WithoutGradient(Sd):
    def forward(self, x, timestep, cond):
        with torch.no_grad():
            return super().forward(x, timestep, cond)


class Thawed(Sd):
    def set_up(self):
        super().set_up()
        self.pipe.text_encoder.requires_grad_(True)


class NoReference(Sd):
    @contextlib.contextmanager
    def reference(self):
        yield


class SavesHalfAsStrong(Sd):
    def set_up(self):
        super().set_up()
        original = self.pipe.save_lora_weights

        def save(folder, unet_lora_layers, **metadata):
            weaker = {name: value / 2 for name, value in unet_lora_layers.items()}
            return original(folder, unet_lora_layers=weaker, **metadata)

        self.pipe.save_lora_weights = save


class Raising(Sd):
    def forward(self, x, timestep, cond):
        raise RuntimeError("no such\nkernel")


BROKEN = {
    WrongSign: ["pipeline", "pipeline"],
    GuidanceSwapped: ["pipeline"],
    WrongGrid: ["pipeline", "pipeline"],
    WrongLatents: ["latents"],
    UnscaledPictures: ["pictures"],
    FloatPictures: ["shape"],
    HalfPrecision: ["shape"],
    Dropout: ["random"],
    WholeBatch: ["batch"],
    Padded: ["batch"],
    Deaf: ["blind"],
    RandomText: ["random"],
    Forgetful: ["cache"],
    OtherNames: ["raises"],
    NoTargets: ["lora"],
    WithoutGradient: ["gradient"],
    Thawed: ["gradient"],
    NoReference: ["base"],
    SavesHalfAsStrong: ["saved"],
    Raising: ["raises"],
}


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_wrong_is_named(cls):
    if issubclass(cls, FluxAdapter):
        adapter = cls(tiny.flux(), resolution=16, max_sequence_length=12)
    elif issubclass(cls, StableDiffusion3Adapter):
        adapter = cls(tiny.stable_diffusion_3(), max_sequence_length=1)
    else:
        adapter = cls(tiny.stable_diffusion())
    findings = check_adapter(adapter)
    words = [finding.split(":")[0] for finding in findings]
    assert words[: len(BROKEN[cls])] == BROKEN[cls], findings
    assert all("\n" not in finding and len(finding) < 300 for finding in findings)


def test_the_command_names_what_is_wrong(folders, capsys, monkeypatch):
    from pcpo.cli.main import app

    app(["models", "check", str(folders["sd"])], standalone_mode=False)
    assert capsys.readouterr().out == "nothing found\n"
    monkeypatch.setattr(StableDiffusionAdapter, "prediction", WrongSign.prediction)
    with pytest.raises(ModelError, match="2 findings"):
        app(["models", "check", str(folders["sd"])], standalone_mode=False)
    assert capsys.readouterr().out.startswith("pipeline: latents differ by up to ")
