"""Counts against a run that is counted, the phases of a plan, advice that keeps its word, and memory presets."""

from __future__ import annotations

import sys

import pytest
import torch
from typer.testing import CliRunner

from pages import ROOT
from pcpo.cli.main import app
from pcpo.errors import ConfigError, ModelError
from pcpo.plan.advice import MARGIN, advise, fits
from pcpo.plan.command import make_plan
from pcpo.plan.counts import count
from pcpo.plan.memory import GIB, estimate, model_of
from pcpo.plan.skeleton import conditioning, skeleton
from pcpo.trainer.configfile import apply_overrides, load_config, memory_presets, validate
from training import run, settings

sys.path.insert(0, str(ROOT / "benchmarks"))
from architectures import NAMES, write_folder

PRESETS = {"sd15": "pcpo_sd15", "sdxl": "pcpo_sdxl", "sd35": "pcpo_sd35", "flux": "pcpo_flux"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch": {"prompts": 2, "group_size": 3, "rollout": 2, "micro": 4}, "train": {"updates": 2, "epochs": 2}},
        {"kl": {"form": "exact", "beta": 0.1}, "train": {"select": "first", "fraction": 0.5}},
        {"credit": {"schedule": "uniform", "apply": "lambda"}, "objective": {"name": "ppo_clip"}},
        {"evaluation": {"credit_probe": 4}, "batch": {"micro": 2}},
        {"train": {"replay": True, "updates": 2}},
    ],
)
def test_calls_are_those_of_a_run(trainer, changes):
    it = trainer("sd", **{**changes, "evaluation": {"per_prompt": 2, **changes.get("evaluation", {})}})
    calls = []
    it.adapter.backbone.register_forward_pre_hook(lambda module, args: calls.append(len(args[0]) // 2))
    it.train()
    counts = count(it.config, len(it.algorithm.trained(0)), len(it.evaluator.request.prompts))
    references = counts.reference_calls
    assert len(calls) == counts.run_calls
    assert counts.run_pictures == 6 + 2 * len(it.evaluator.request.sample_ids)
    assert max(calls) == max(counts.rollout_size, counts.update_size)
    assert (references > 0) == any(name in str(changes) for name in ("kl", "lambda", "replay"))


def test_the_skeleton_is_the_model(trainer, folders):
    for family in ("sd", "sd3"):
        it = trainer(family, output=family)
        model = skeleton(it.config)
        for name, part in it.adapter.parts().items():
            mine = {key: (value.shape, value.dtype) for key, value in model.parts()[name].state_dict().items()}
            assert mine == {key: (value.shape, value.dtype) for key, value in part.state_dict().items()}
        assert {p.device.type for part in model.parts().values() for p in part.parameters()} == {"meta"}
        encoded, shapes = it.adapter.encode(["red", "a boat"]), conditioning(model, 2)
        for real, meta in ((encoded.prompt, shapes.prompt), (encoded.empty, shapes.empty)):
            assert {key: value.shape for key, value in real.items()} == {k: v.shape for k, v in meta.items()}


def make(folders, tmp_path, family="sd", **changes):
    return validate(settings(family, folders[family], tmp_path / "run", **changes))


def test_what_settings_do_to_a_plan(folders, tmp_path):
    def plan(**changes):
        return estimate(model_of(make(folders, tmp_path, **changes)), 3)

    cuda = {"device": "cuda"}
    plain, dropped = plan(run=cuda), plan(run={**cuda, "offload": "drop"})
    moved = plan(run={**cuda, "offload": "cpu"})
    assert {"text_encoder, float32", "vae, float32"} <= plain.resident.keys() and "vae, float32" not in plain.host
    assert not {"text_encoder, float32", "vae, float32"} & moved.resident.keys()
    assert moved.host.keys() - dropped.host.keys() == {"text_encoder, float32"}
    assert moved.phases["decoding"]["vae, float32"] == plain.resident["vae, float32"]
    half = plan(run={**cuda, "precision": "bf16"})
    assert half.resident["unet, bfloat16"] * 2 == plain.resident["unet, float32"]
    assert half.resident["LoRA and its moments"] == plain.resident["LoRA and its moments"]
    full = plan(run=cuda, model={"tune": "full"}, optim={"ema_decay": 0.9}, kl={"form": "exact", "beta": 1.0})
    weights = full.resident["unet, float32"]
    assert full.resident["moments"] == 2 * weights == 2 * full.resident["moving average"]
    assert full.resident["reference model"] == weights == full.phases["update"]["gradients"]
    split = plan(run=cuda, batch={"rollout": 2})
    joining, whole = split.phases["joining the rollout's calls"], split.phases["update"]["trajectory"]
    field = joining["one of its fields, joined"]
    assert joining["trajectory"] == whole and 3 * field < whole < 4 * field  # final latents come on top of three fields
    replayed = plan(run=cuda, train={"replay": True}).phases["update"]["trajectory"]
    assert whole - replayed == field


def test_a_reward_is_counted_where_it_runs(folders, tmp_path):
    def plan(**options):
        part = {"name": "emoji_clip", "options": options}
        return estimate(model_of(make(folders, tmp_path, reward=[part], run={"device": "cuda"})), 3)

    assert "reward emoji_clip" not in plan().resident
    assert (
        plan(device="cuda").resident["reward emoji_clip"]
        == 2 * plan(device="cuda", dtype="float16").resident["reward emoji_clip"]
    )
    absent = {"name": "clip_score", "options": {"model": "nobody/nothing", "device": "cuda"}}
    assert estimate(model_of(make(folders, tmp_path, reward=[absent], run={"device": "cuda"})), 3).unknown == [
        "clip_score (nobody/nothing)"
    ]


def test_advice_keeps_its_word(folders, tmp_path):
    config = make(folders, tmp_path, batch={"prompts": 3, "group_size": 64}, run={"device": "cuda"})
    plan = estimate(model_of(config), 3)
    memory = int(plan.peak * 0.98)
    advice = advise(config, 3, memory)
    changed = validate(apply_overrides(config.model_dump(mode="json"), [each.setting for each in advice]))
    after = estimate(model_of(changed), 3)
    assert advice and fits(after, memory) and after.peak == advice[-1].peak <= (1 - MARGIN) * memory
    assert plan.peak - after.peak == sum(each.saves for each in advice)
    assert advise(config, 3, 2 * plan.peak) == []


def test_a_plan_without_a_probe_reads_no_weight(folders, tmp_path, monkeypatch):
    from pcpo.models import loading

    monkeypatch.setattr(loading, "load_pipeline", lambda *args, **kwargs: pytest.fail("a weight was read"))
    plan = make_plan(make(folders, tmp_path), memory=64, run_probe=False)
    assert plan.fits and plan.measured is None and plan.advice == []


def test_the_command(folders, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"preset: pcpo_sd\nmodel: {{path: {folders['sd']}}}\nbatch: {{prompts: 2, group_size: 2}}\n")
    runner = CliRunner()
    done = runner.invoke(app, ["plan", str(path), "--set", "sampler.steps=3"])
    assert done.exit_code == 0, done.output
    for words in ("on cpu", "measured", "time without the reward", "Python and libraries", "fits in"):
        assert words in done.output
    done = runner.invoke(app, ["plan", str(path), "--no-probe", "--memory", "0.5", "-s", "run.device=cuda"])
    assert done.exit_code == 1 and "does not fit in 512.0 MiB" in done.output


def test_memory_presets_are_laid_between_preset_and_settings(tmp_path):
    twelve = load_config("pcpo_sd35", [], "12gb")
    assert (twelve.batch.rollout, twelve.run.offload, twelve.run.precision) == (4, "drop", "bf16")
    assert load_config("pcpo_sd35", ["batch.rollout=2"], "12gb").batch.rollout == 2
    path = tmp_path / "mine.yaml"
    path.write_text("preset: pcpo_sd35\nmemory_preset: 12gb\nrun: {offload: cpu}\n")
    assert load_config(path) == load_config("pcpo_sd35", ["run.offload=cpu"], "12gb")


@pytest.mark.parametrize(
    "source, name, words",
    [
        ("pcpo_flux", "16gb", "22.2 GiB in bf16 -> there is 40gb, 80gb"),
        ("pcpo_sd15", "13gb", "use one of: 12gb, 16gb, 24gb, 40gb, 80gb"),
        ("pcpo_sd", "12gb", "goes with a preset of a large model"),
    ],
)
def test_memory_presets_that_are_not_there(source, name, words):
    with pytest.raises(ConfigError, match=words):
        load_config(source, [], name)


def test_memory_preset_needs_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nmemory_preset: 12gb\n")
    with pytest.raises(ConfigError, match="add preset: NAME"):
        load_config(path)


def test_processes_that_are_launched_get_the_memory_preset(tmp_path, monkeypatch):
    """Arguments that `--launch` hands on make the configuration that was checked here."""
    from pcpo.cli import launch

    handed = []
    monkeypatch.setattr(launch, "launch", lambda file, arguments: handed.extend(arguments) or 0)
    given = ["train", "pcpo_sd15", "--memory-preset", "16gb", "--set", "sampler.steps=7"]
    assert CliRunner().invoke(app, [*given, "--launch", "x.yaml"]).exit_code == 0
    assert handed == [*given[1:2], *given[4:], *given[2:4]]


def sized(name, tmp_path, memory_preset):
    folder = write_folder(name, tmp_path / name)
    given = [f"model.path={folder}", "run.device=cuda"]
    return estimate(model_of(load_config(PRESETS[name], given, memory_preset)), 50)


def test_every_architecture_has_presets_and_every_preset_validates():
    assert set(NAMES) == set(PRESETS)
    for name in NAMES:
        assert list(memory_presets(name)) == ["12gb", "16gb", "24gb", "40gb", "80gb"]
        for size, value in memory_presets(name).items():
            if isinstance(value, dict):
                load_config(PRESETS[name], [], size)


def test_a_memory_preset_fits(tmp_path):
    assert fits(sized("sd15", tmp_path, "12gb"), 12 * GIB)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_memory_presets_fit(name, tmp_path):
    for size, value in memory_presets(name).items():
        if isinstance(value, dict):
            plan = sized(name, tmp_path / size, size)
            assert fits(plan, int(size.removesuffix("gb")) * GIB), (size, plan.peak / GIB, plan.peak_phase)


@pytest.mark.slow
def test_published_sizes(tmp_path):
    millions = {"sd15": 859.5, "sdxl": 2567.5, "sd35": 2243.2, "flux": 11901.4}
    for name, wanted in millions.items():
        adapter = skeleton(load_config(PRESETS[name], [f"model.path={write_folder(name, tmp_path / name)}"]))
        frozen = sum(p.numel() for key, p in adapter.unwrapped.named_parameters() if "lora" not in key)
        assert frozen / 1e6 == pytest.approx(wanted, rel=0.001), name


def test_a_component_that_cannot_be_made(folders, tmp_path):
    import shutil

    folder = shutil.copytree(folders["sd"], tmp_path / "model")
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "block_out_channels": 3}')
    with pytest.raises(ModelError, match="configuration of unet"):
        model_of(validate(settings("sd", folder, tmp_path / "run")))


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"model": {"gradient_checkpointing": True}}, {"run": {"precision": "bf16"}}])
def test_the_estimate_on_an_accelerator(trainer, changes):
    it = trainer("sd", **changes, batch={"prompts": 2, "group_size": 32})
    torch.cuda.reset_peak_memory_stats()
    it.train()
    plan = estimate(model_of(it.config), 3, process=1)
    assert torch.cuda.max_memory_allocated() == pytest.approx(plan.peak, rel=0.15)


def test_the_credit_probe_does_not_depend_on_the_size_of_its_calls(trainer):
    whole = trainer("sd", output="whole", evaluation={"credit_probe": 6}, batch={"rollout": 6})
    split = trainer("sd", output="split", evaluation={"credit_probe": 6}, batch={"rollout": 6, "micro": 2})
    (one,), (two,) = (run(it).gradient_share for it in (whole, split))
    assert two.norm == pytest.approx(one.norm, rel=1e-4) and two.variance == pytest.approx(one.variance, rel=1e-3)
