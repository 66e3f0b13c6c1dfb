"""Exports, read back: by diffusers' own loader, by its converters, or by what the tool does with the names."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from pcpo.errors import ConfigError, ModelError, RunFolderError
from pcpo.evaluation.sampling import load_base
from pcpo.export.card import write_card
from pcpo.export.layouts import to_layout
from pcpo.export.run import export_run
from pcpo.models.folders import read_header
from pcpo.models.lora import add_lora, save_tuned
from pcpo.observe.markdown import escape
from pcpo.samplers import make_sampler
from pcpo.samplers.rollout import sample
from pcpo.trainer import runfolder
from pcpo.trainer.configfile import load_config, validate
from training import run as train
from training import scramble

PROMPTS = ["red", "a blue boat"]
RANK, ALPHA = 3, 10.0  # alpha / rank is far from 1 and from 2: a lost or halved scale shows
LENGTH = {"sd3": 1, "flux": 12, "sana": 24, "qwen": None}  # of the flow families, in text tokens
SIDE = {"sana": 32}  # 16 for the others


def stable_diffusion_35():
    """Tiny SD3 with what 3.5 adds: a second attention in some blocks, and normalised q and k."""
    pipe = tiny.stable_diffusion_3()
    torch.manual_seed(1)
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    pipe.transformer = SD3Transformer2DModel(**{**config, "dual_attention_layers": (0,), "qk_norm": "rms_norm"})
    return pipe


MAKERS = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": stable_diffusion_35,
    "flux": tiny.flux,
    "sana": tiny.sana,
    "qwen": tiny.qwen_image,
}
ATTENTION = [None, ["to_q", "to_out.0"]]  # all projections, or q without k and v
EVERYWHERE = {
    "sd3": ["to_k", "attn2.to_v", "ff.net.2", "ff_context.net.0.proj"],
    "flux": ["to_k", "proj_mlp", "ff.net.0.proj"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    parent = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make().save_pretrained(parent / name)
    return {name: parent / name for name in MAKERS}


@pytest.fixture
def tuned(models, tmp_path):
    """tuned(family, targets) -> run folder, and the adapter that was saved in it."""

    def make(family, targets=None, tune="lora"):
        config = validate(
            {
                "name": f"my-{family}",
                "model": {
                    "path": str(models[family]), "resolution": SIDE.get(family, 16),
                    "max_sequence_length": LENGTH.get(family),
                    "tune": tune, "lora": {"rank": RANK, "alpha": ALPHA, "targets": targets},
                },
                "prompts": PROMPTS,
                "sampler": {"name": "flow_sde" if family in LENGTH else "ddim", "steps": 3, "guidance_scale": 3.0},
                "train": {"select": "first", "fraction": 0.7} if family in LENGTH else {},
            }
        )  # fmt: skip
        folder = tmp_path / "run"
        runfolder.create(folder, config)
        adapter = load_base(config)
        if tune == "lora":
            add_lora(adapter, RANK, ALPHA, targets)
        else:
            adapter.unwrapped.requires_grad_(True)
        scramble(adapter, 0.1 if tune == "lora" else 0.01)
        save_tuned(adapter, folder, tune)
        return folder, config, adapter

    return make


def latents(adapter):
    """Final latents [2, ...] of three deterministic steps with guidance."""
    x = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(3))
    grid, ode, cond = adapter.grid(3), make_sampler("ode"), adapter.encode(PROMPTS)
    with torch.no_grad():
        return sample(
            lambda x, i: adapter.predict(x, grid.timesteps.float()[i], cond, torch.arange(2), 3.0),
            ode, ode.stats(grid), x,
        )  # fmt: skip


def lora_file(folder):
    (file,) = folder.glob("*.safetensors")
    return file


def deltas(file):
    """alpha / rank * up @ down by name, as sd-scripts and ComfyUI apply a LoRA."""
    tensors = load_file(file)
    assert {name.partition(".lora_")[0].removesuffix(".alpha") for name in tensors} == {
        name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")
    }
    out = {}
    for name, alpha in tensors.items():
        if name.endswith(".alpha"):
            base = name.removesuffix(".alpha")
            down, up = tensors[f"{base}.lora_down.weight"], tensors[f"{base}.lora_up.weight"]
            out[base] = float(alpha) / len(down) * up.flatten(1) @ down.flatten(1)
    return out


def add(module, name, delta):
    weight = module.get_submodule(name).weight
    with torch.no_grad():
        weight.add_(delta.view_as(weight))


@pytest.mark.parametrize("family", MAKERS)
def test_diffusers_reads_it_bit_for_bit(tuned, family):
    folder, config, adapter = tuned(family)
    exported = export_run(folder)
    assert exported == folder / "export" / "diffusers"
    assert sorted(path.name for path in exported.iterdir()) == ["README.md", "pytorch_lora_weights.safetensors"]
    with safe_open(lora_file(exported), "pt") as file:
        assert all(name.startswith(f"{adapter.backbone_name}.") for name in file.keys())  # noqa: SIM118
    fresh = load_base(config)
    base = latents(fresh)
    fresh.pipe.load_lora_weights(exported)
    assert torch.equal(latents(fresh), latents(adapter))
    assert not torch.allclose(latents(adapter), base, atol=1e-2)


@pytest.mark.parametrize("targets", ATTENTION)
@pytest.mark.parametrize("layout", ["kohya", "comfy"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_reads_the_unet_layouts(tuned, family, layout, targets):
    folder, config, adapter = tuned(family, targets)
    state = load_file(lora_file(export_run(folder, layout)))
    latent_diffusion = layout == "comfy" or family == "sdxl"
    prefix = "lora_unet_" if layout == "kohya" else "diffusion_model."
    middle = "middle_block" if latent_diffusion else "mid_block"
    assert all(name.startswith(prefix) for name in state) and any(middle in name for name in state)
    if layout == "comfy":  # the same names, spelt as diffusers knows them
        split = {name: re.fullmatch(r"diffusion_model\.(.+?)(\.(?:lora_.*|alpha))", name).groups() for name in state}
        state = {f"lora_unet_{split[k][0].replace('.', '_')}{split[k][1]}": value for k, value in state.items()}
    fresh = load_base(config)
    names, alphas, _ = fresh.pipe.lora_state_dict(state, unet_config=fresh.pipe.unet.config, return_lora_metadata=True)
    fresh.pipe.load_lora_into_unet(names, network_alphas=alphas, unet=fresh.pipe.unet)
    torch.testing.assert_close(latents(fresh), latents(adapter), rtol=0, atol=1e-3)


class Zeros(dict):
    """A checkpoint that has a zero vector for every tensor that was not put into it."""

    def pop(self, name, *default):
        return super().pop(name, torch.zeros(6))


@pytest.mark.parametrize("targets", [*ATTENTION, EVERYWHERE["sd3"]])
@pytest.mark.parametrize("layout", ["kohya", "comfy"])
def test_stability_names_are_those_of_the_single_file(tuned, layout, targets):
    """diffusers' converter of Stability's single files takes the update to the modules that had the LoRA."""
    folder, config, adapter = tuned("sd3", targets)
    fresh = load_base(config)
    native = ["x_block.attn.qkv", "context_block.attn.qkv", "x_block.attn.proj", "context_block.attn.proj"]
    native += ["x_block.attn2.qkv", "x_block.attn2.proj", "x_block.mlp.fc1", "x_block.mlp.fc2", "context_block.mlp.fc1"]
    spelt = {}
    for block in range(2):
        for name in (f"joint_blocks.{block}.{part}" for part in native):
            spelt[f"lora_unet_{name.replace('.', '_')}" if layout == "kohya" else f"diffusion_model.{name}"] = name
    update = {f"{spelt[name]}.weight": delta for name, delta in deltas(lora_file(export_run(folder, layout))).items()}
    # the converter counts blocks, finds the second attention and reads a width from the names
    present = {
        "joint_blocks.0.x_block.attn2.ln_q.weight",
        "joint_blocks.1.x_block.attn.ln_q.weight",
        "context_embedder.weight",
    }
    checkpoint = Zeros(dict.fromkeys(present, torch.zeros(32, 64)) | update)
    applied = set()
    for name, delta in convert_sd3_transformer_checkpoint_to_diffusers(checkpoint).items():
        if delta.any():
            add(fresh.unwrapped, name.removesuffix(".weight"), delta)
            applied.add(name)
    assert applied == {f"{n}.weight" for n, m in adapter.unwrapped.named_modules() if hasattr(m, "lora_A")}
    torch.testing.assert_close(latents(fresh), latents(adapter), rtol=0, atol=1e-3)


def flux_rows(width, mlp):
    """Black Forest Labs' matrices -> the diffusers modules that are their rows, with their numbers of rows."""
    double, single = "double_blocks.0", "single_blocks.0"
    block, alone = "transformer_blocks.0", "single_transformer_blocks.0"
    rows = {f"{double}.img_attn.qkv": [(f"{block}.attn.to_{c}", width) for c in "qkv"]}
    rows[f"{double}.txt_attn.qkv"] = [(f"{block}.attn.add_{c}_proj", width) for c in "qkv"]
    rows[f"{single}.linear1"] = [*((f"{alone}.attn.to_{c}", width) for c in "qkv"), (f"{alone}.proj_mlp", mlp)]
    rows[f"{double}.img_attn.proj"] = [(f"{block}.attn.to_out.0", width)]
    rows[f"{double}.txt_attn.proj"] = [(f"{block}.attn.to_add_out", width)]
    rows[f"{double}.img_mlp.0"] = [(f"{block}.ff.net.0.proj", mlp)]
    return rows


@pytest.mark.parametrize("targets", [*ATTENTION, EVERYWHERE["flux"]])
@pytest.mark.parametrize("layout", ["kohya", "comfy"])
def test_flux_matrices_are_rows_of_modules(tuned, layout, targets):
    folder, config, adapter = tuned("flux", targets)
    fresh = load_base(config)
    rows = flux_rows(fresh.unwrapped.inner_dim, 4 * fresh.unwrapped.inner_dim)
    if layout == "kohya":
        rows = {f"lora_unet_{name.replace('.', '_')}": parts for name, parts in rows.items()}
    else:
        rows = {f"diffusion_model.{name}": parts for name, parts in rows.items()}
    for name, delta in deltas(lora_file(export_run(folder, layout))).items():
        for (module, _), part in zip(rows[name], delta.split([size for _, size in rows[name]]), strict=True):
            add(fresh.unwrapped, module, part)
    torch.testing.assert_close(latents(fresh), latents(adapter), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rank", [4, 5])
def test_diffusers_converts_the_real_flux_back(rank):
    """At FLUX.1's own width, which diffusers' converter takes for granted: the same updates come back."""
    width, mlp = 3072, 12288
    sizes = dict(part for parts in flux_rows(width, mlp).values() for part in parts if "proj_mlp" not in part[0])
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for module, size in sizes.items():
        weights[f"{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        weights[f"{module}.lora_B.weight"] = torch.randn(size, rank, generator=generator)
    with torch.device("meta"):
        backbone = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    back = _convert_kohya_flux_lora_to_diffusers(to_layout("kohya", "FluxPipeline", weights, 2.5, backbone))
    for module in sizes:
        a, b = (back.pop(f"transformer.{module}.lora_{c}.weight")[:, :32] for c in "AB")
        expected = 2.5 * weights[f"{module}.lora_B.weight"][:64] @ weights[f"{module}.lora_A.weight"][:, :32]
        torch.testing.assert_close(b[:64] @ a, expected, rtol=1e-4, atol=1e-3)
    left = [value for name, value in back.items() if name.endswith("lora_B.weight")]
    assert all("proj_mlp" in name for name in back) and not any(value.any() for value in left)


@pytest.mark.parametrize(
    "family, version", [("sd", "sd_v1"), ("sdxl", "sdxl_base_v1-0"), ("sd3", "sd3"), ("flux", "flux1")]
)
def test_web_interfaces_are_told_the_family(tuned, family, version):
    folder, _, _ = tuned(family)
    file = lora_file(export_run(folder, "kohya"))
    assert file.name == f"my-{family}.safetensors"
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    assert (facts["ss_base_model_version"], facts["ss_network_dim"], facts["ss_network_alpha"]) == (
        version,
        "3",
        "10.0",
    )


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("family", MAKERS)
def test_a_merged_pipeline_is_an_ordinary_one(tuned, family, tune):
    folder, config, adapter = tuned(family, tune=tune)
    exported = export_run(folder, merged=tune == "lora")
    assert exported.name == "merged"
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    pipe = DiffusionPipeline.from_pretrained(exported, **without_t5)
    assert not getattr(getattr(pipe, adapter.backbone_name), "peft_config", None)
    fresh = type(adapter)(pipe, resolution=SIDE.get(family, 16), max_sequence_length=LENGTH.get(family))
    torch.testing.assert_close(latents(fresh), latents(adapter), rtol=0, atol=1e-5)
    assert not torch.allclose(latents(adapter), latents(load_base(config)), atol=1e-3)


@pytest.mark.parametrize("layout", ["kohya", "comfy"])
@pytest.mark.parametrize("family", ["sana", "qwen"])
def test_families_without_names_elsewhere_are_told_what_they_have(tuned, family, layout):
    folder, _, _ = tuned(family)
    with pytest.raises(ModelError, match=r"are not known .* -> .*--format diffusers.*--merged"):
        export_run(folder, layout)
    assert not list((folder / "export").iterdir())


def test_refusals_leave_nothing_behind(tuned, tmp_path):
    folder, _, _ = tuned("sd", ["conv1", "to_q"])
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "there").mkdir()
    for error, words, arguments in [
        (ModelError, "conv1 has no name of its own", {"layout": "comfy"}),
        (ConfigError, "diffusers' layout only", {"layout": "kohya", "merged": True}),
        (RunFolderError, "exists already", {"output": tmp_path / "there"}),
    ]:
        with pytest.raises(error, match=words):
            export_run(folder, **arguments)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        export_run(tmp_path / "absent")
    (folder / "lora/pytorch_lora_weights.safetensors").write_bytes(b"{}")
    with pytest.raises(RunFolderError, match="cannot be read"):
        export_run(folder)
    (folder / "lora/pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(RunFolderError, match="no tuned weights yet"):
        export_run(folder)
    (tmp_path / "there").rmdir()
    left = [path for path in sorted(tmp_path.rglob("*")) if path.name != "export"]
    assert left == [path for path in before if path.name != "pytorch_lora_weights.safetensors"]


HOSTILE = "<b>![x](http://e.ex) | `a` [b](java:c)\n# d www.e.ex @f"


def test_the_card(trainer, tmp_path):
    it = trainer(
        prompts=["red", HOSTILE.replace("\n", " ")],  # a prompt is one line
        name="a_b",
        train={"iterations": 2},
        optim={"learning_rate": 1e-2},
    )
    train(it)
    card = ModelCard.load(export_run(it.folder, "comfy", tmp_path / "out") / "README.md")
    assert (card.data.library_name, card.data.license, card.data.license_name) == (
        "diffusers",
        "other",
        "see-base-model",
    )
    assert {"pcpo", "lora", "text-to-image"} <= set(card.data.tags) and card.data.base_model is None
    text, own = card.text, ("![before and after](samples.png)", "[pcpo](https://arxiv.org/abs/2509.25774)")
    for words in (
        "before | after 2 iterations",
        "samples.png",
        "ComfyUI/models/loras",
        "a_b.safetensors",
        "see base model",
    ):
        assert words in text, words
    assert "| optim.learning_rate | 0.01 |" in text
    for words in own:
        assert words in text
        text = text.replace(words, "")
    for part in ("<", "](http", "](java", "\n# d", " www.", "`a`", " @f", str(tmp_path)):
        assert part not in text, part


def test_a_folder_that_reads_like_a_hub_id_is_no_base_on_the_hub(tuned, models, tmp_path, monkeypatch):
    folder, _, _ = tuned("sd")
    config = load_config(folder / "config.yaml")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine").symlink_to(models["sd"])
    monkeypatch.chdir(tmp_path)
    named = config.model_copy(update={"model": config.model.model_copy(update={"path": "models/mine"})})
    write_card(tmp_path, folder, named, read_header("models/mine"), "diffusers", False, "...")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None and "models/mine" not in card.text and "of mine" in card.text


def test_the_card_names_the_bases_licence(tuned, models):
    folder, _, _ = tuned("sd")
    (models["sd"] / "README.md").write_text("---\nlicense: openrail++\n---\n# x\n")
    try:
        card = ModelCard.load(export_run(folder) / "README.md")
    finally:
        (models["sd"] / "README.md").unlink()
    assert card.data.license == "openrail++" and "openrail++" in card.text


@pytest.mark.parametrize("text", [HOSTILE, "a\x00b\x1b[31m\u202e", "*" * 9, "~~~", "--- # x"])
def test_escaped_text_stays_on_its_line(text):
    assert "\n" not in escape(text) and escape(text).isprintable()
