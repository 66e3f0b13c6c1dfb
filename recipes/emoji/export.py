"""Write the shipped folders from the training checkpoints.

Run: ``python -m recipes.emoji.export [sd|sd3|clip]``.

Weights are stored as float16 (the average's rounding is invisible) and load as float32, because every
config names float32 as its dtype.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from recipes.emoji import train_vae
from recipes.emoji.data import load
from recipes.emoji.tokenizer import MAX_LENGTH, tokenizer_for
from recipes.emoji.train_clip import MEAN, STD, new_clip
from recipes.emoji.train_sd import TextToLatent, new_scheduler
from recipes.emoji.train_sd3 import JOINT, TextToLatentFlow

ASSETS = Path(__file__).parents[2] / "src/pcpo/assets"


def averaged(model: nn.Module, checkpoint: Path) -> nn.Module:
    """Load the moving average of a checkpoint into ``model``."""
    tensors = load_file(checkpoint)
    model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema/")})
    return model.eval()


def name_float32(folder: Path) -> None:
    """Make every transformers config ask for float32 parameters, and every weight file readable."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if "architectures" in config:
            for part in (config, config.get("text_config"), config.get("vision_config")):
                if part is not None:
                    part.pop("torch_dtype", None)
                    part["dtype"] = "float32"
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def replace(folder: Path, pipe: StableDiffusionPipeline | StableDiffusion3Pipeline) -> None:
    """Save a pipeline as float16 safetensors, keeping cards and pictures that lie in the folder."""
    for child in folder.iterdir() if folder.exists() else ():
        if child.is_dir():
            shutil.rmtree(child)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.half()
    pipe.save_pretrained(folder, safe_serialization=True)
    index = folder / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8"))
    named |= {name: [None, None] for name, part in pipe.components.items() if part is None}
    index.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    name_float32(folder)


def silent_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 without layers whose output is exactly zero, as the pipeline itself puts there without a T5.

    ``DiffusionPipeline.from_pretrained(folder)`` insists on a third encoder unless ``text_encoder_3=None``
    is passed; with these few kilobytes the folder loads as it is.
    """
    config = T5Config(
        vocab_size=8, d_model=JOINT, d_kv=8, d_ff=8, num_layers=0, num_heads=1, pad_token_id=0, eos_token_id=1
    )
    encoder = T5EncoderModel(config)
    with torch.no_grad():
        encoder.shared.weight.zero_()
        encoder.encoder.final_layer_norm.weight.zero_()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    return encoder.eval(), T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_LENGTH)


def export_sd(work: Path, tokenizer: CLIPTokenizer, target: Path) -> None:
    """Write the Stable Diffusion pipeline."""
    model = averaged(TextToLatent(tokenizer), work / "sd.safetensors")
    pipe = StableDiffusionPipeline(
        vae=train_vae.build(work),
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    replace(target / "emoji-sd", pipe)


def export_sd3(work: Path, tokenizer: CLIPTokenizer, target: Path) -> None:
    """Write the Stable Diffusion 3 pipeline."""
    model = averaged(TextToLatentFlow(tokenizer), work / "sd3.safetensors")
    encoder_3, tokenizer_3 = silent_t5()
    pipe = StableDiffusion3Pipeline(
        vae=train_vae.build(work),
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    replace(target / "emoji-sd3", pipe)


def export_clip(work: Path, tokenizer: CLIPTokenizer, target: Path) -> None:
    """Write the scorer as a plain ``CLIPModel`` folder."""
    folder = target / "emoji-clip"
    folder.mkdir(parents=True, exist_ok=True)
    averaged(new_clip(tokenizer), work / "clip.safetensors").half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(folder)
    name_float32(folder)


def main() -> None:
    """Export what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=("sd", "sd3", "clip"), default=("sd", "sd3", "clip"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    parser.add_argument("--target", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    tokenizer = tokenizer_for(load(arguments.work))
    exports = {"sd": export_sd, "sd3": export_sd3, "clip": export_clip}
    for name in arguments.models:
        exports[name](arguments.work, tokenizer, arguments.target)
        folder = arguments.target / f"emoji-{name}"
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
