"""The command line in this process: what it prints, where it writes, and how it ends."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pcpo import __version__
from pcpo.cli import main as cli
from pcpo.observe.events import read_events
from pcpo.trainer.configfile import load_config, preset_names

FILE = """
preset: pcpo_sd
name: tiny
model: {{path: {model}, lora: {{rank: 4}}}}
prompts: [red, "a blue boat"]
sampler: {{steps: 3}}
batch: {{prompts: 2, group_size: 2}}
train: {{iterations: 2, updates: 2}}
evaluation: {{num_prompts: 2, per_prompt: 1}}
run: {{device: cpu}}
"""
REMEDY = "continue it with --resume, or choose another --output"


@pytest.fixture
def pcpo(monkeypatch, capsys, tmp_path):
    """pcpo(*arguments) -> exit code, stdout, stderr, as the installed command ends; it runs in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["pcpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def settings(folders, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE.format(model=folders["sd"]), "utf-8")
    return path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_train_resume_sample_and_report(pcpo, settings, tmp_path):
    code, out, err = pcpo("train", settings, "--output", "run", "--seed", 3, "-s", "optim.learning_rate=1e-2")
    assert (code, err) == (0, "")
    for words in ("evaluation at 0: reward", "iter 2/2", "ratio err", "evaluation at 2", "report  run/report.html"):
        assert words in out
    run = tmp_path / "run"
    config = load_config(run / "config.yaml")
    assert (config.run.seed, config.optim.learning_rate, config.sampler.steps) == (3, 0.01, 3)
    made = {path.relative_to(run).parts[0] for path in files(run)}
    assert made == {"checkpoints", "config.yaml", "events.jsonl", "images", "lora", "report.html"}

    again = ["train", settings, "-o", "run", "--seed", 3, "-s", "optim.learning_rate=1e-2"]
    before = files(tmp_path)
    code, out, err = pcpo(*again)
    assert (
        code == 6 and err == "pcpo: run: already holds a run -> continue it with --resume, or choose another --output\n"
    )
    code, out, err = pcpo(*again, "-s", "sampler.eta=0.5", "--resume")
    assert code == 6 and "sampler.eta 1.0 -> 0.5" in err
    assert files(tmp_path) == before

    code, out, err = pcpo(*again, "--resume", "-s", "train.iterations=3", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert [event.iteration for event in read_events(run / "events.jsonl").iterations] == [1, 2, 3]

    code, out, err = pcpo("sample", "run", "-p", "red", "-p", "green", "-n", 2, "--steps", 3, "-o", "pictures")
    assert (code, out.strip(), err) == (0, "pictures/sheet.png", "")
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        *(f"000{n}.png" for n in range(4)),
        "metadata.jsonl",
        "sheet.png",
    ]
    lines = [json.loads(line) for line in (tmp_path / "pictures/metadata.jsonl").read_text().splitlines()]
    assert lines == [{"file_name": f"000{n}.png", "prompt": "red" if n < 2 else "green"} for n in range(4)]
    before = files(tmp_path)
    code, out, err = pcpo("sample", "run", "-p", "red", "-o", "pictures")
    assert code == 6 and err == "pcpo: pictures: is not an empty folder -> choose another --output\n"
    assert files(tmp_path) == before

    (run / "report.html").unlink()
    code, out, err = pcpo("report", "run")
    assert (code, out, err) == (0, "run/report.html\n", "") and (run / "report.html").stat().st_size > 10_000
    assert pcpo("report", "run", "-o", "elsewhere.html")[:2] == (0, "elsewhere.html\n")
    assert (tmp_path / "elsewhere.html").read_bytes() == (run / "report.html").read_bytes()


def test_report_of_several_runs(pcpo, settings, tmp_path):
    for seed in (0, 1):
        pcpo("train", settings, "--quiet", "-o", f"run-{seed}", "--seed", seed, "-s", "train.iterations=1")
    assert pcpo("report", "run-*") == (0, "runs.html\n", "")
    page = (tmp_path / "runs.html").read_text("utf-8")
    assert "2 runs." in page and "2 seeds" in page
    code, out, err = pcpo("report", "run-0", "run-1", "--output", "runs.txt")
    assert (code, out) == (6, "") and "let --output end in .html" in err and one_line(err)


def test_sample_with_adapters(pcpo, settings, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        pcpo("train", settings, "--quiet", "-o", name, "--seed", seed, "-s", "train.iterations=1")
    plain = ["-p", "red", "-n", 1, "--steps", 2]
    for output, arguments in (
        ("one", ["a"]),
        ("same", ["a", "--adapter", "a=1"]),
        ("both", ["a", "-a", "a=9", "-a", "b=-9"]),
    ):
        assert pcpo("sample", *arguments, *plain, "-o", output) == (0, f"{output}/sheet.png\n", "")
    one, same, both = ((tmp_path / name / "0000.png").read_bytes() for name in ("one", "same", "both"))
    assert one == same != both
    code, _, err = pcpo("sample", "a", *plain, "-a", "b", "-o", "c")
    assert code == 2 and "--adapter b: is not RUN=WEIGHT" in err and one_line(err)


def test_compare(pcpo, settings, folders, tmp_path):
    pcpo("train", settings, "--quiet", "-o", "run", "-s", "train.iterations=1")
    (tmp_path / "prompts.txt").write_text("red\ngreen\nblue\n")
    arguments = ["compare", folders["sd"], "run", "--prompts", "prompts.txt", "--limit", 2, "--steps", 2, "-q"]
    ended = pcpo(*arguments, "-r", "colorfulness", "-o", "out")
    assert ended == (0, "out/compare.html\n", "")
    assert "colorfulness" in (tmp_path / "out/compare.html").read_text("utf-8")
    assert pcpo(*arguments, "-o", "out")[0] == 6
    assert pcpo("compare", "run", "-o", "other")[0] == 2


def test_export(pcpo, settings, tmp_path):
    pcpo("train", settings, "--quiet", "-o", "run", "-s", "train.iterations=1")
    assert pcpo("export", "run", "--format", "kohya") == (0, "run/export/kohya\n", "")
    assert {path.name for path in (tmp_path / "run/export/kohya").iterdir()} == {
        "README.md",
        "samples.png",
        "tiny.safetensors",
    }
    code, _, err = pcpo("export", "run", "--format", "kohya")
    assert code == 6 and err == "pcpo: run/export/kohya: exists already -> choose another --output\n"
    assert pcpo("export", "run", "--format", "onnx")[0] == 2


def test_the_usual_output_folder(pcpo, settings, tmp_path):
    assert pcpo("train", settings, "--quiet", "--seed", 5, "-s", "train.iterations=1") == (0, "", "")
    assert (tmp_path / "runs/tiny-5/report.html").is_file()


def test_an_awkward_output_folder(pcpo, settings, tmp_path):
    name = "it's: {a}\n# b"
    assert pcpo("train", settings, "--quiet", "-o", name, "-s", "train.iterations=1") == (0, "", "")
    assert (tmp_path / name / "report.html").is_file()
    assert one_line(pcpo("train", settings, "--quiet", "-o", name)[2])


def test_sampling_a_model_with_a_prompts_file(pcpo, folders, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\ngreen\n")
    for number in (1, 2):
        output = f"s{number}"
        ended = pcpo("sample", folders["sd3"], "--prompts", "prompts.txt", "-n", 1, "--steps", 2, "-g", 1, "-o", output)
        assert ended == (0, f"{output}/sheet.png\n", "")
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("s1", "s2"))
    assert len(one) == 4 and [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_an_own_reward_from_a_file(pcpo, settings, tmp_path):
    (tmp_path / "own.py").write_text("def size(images, prompts, metadata):\n    return [len(p) for p in prompts]\n")
    code, out, _ = pcpo("train", settings, "-o", "run", "-s", "reward=own.py:size", "-s", "train.iterations=1")
    assert code == 0 and "zero-std 2" in out
    assert read_events(tmp_path / "run/events.jsonl").iterations[0].rewards == {"size": 7.0}


def test_presets(pcpo):
    code, out, err = pcpo("presets")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == preset_names()
    code, out, err = pcpo("presets", "flow_grpo")
    assert code == 0 and "beta: 0.01" in out and "# " in out
    code, out, err = pcpo("presets", "flowgrpo")
    assert code == 2 and "did you mean flow_grpo?" in err and out == ""


def test_models_and_rewards(pcpo):
    code, out, _ = pcpo("models")
    assert code == 0 and all(name in out for name in ("emoji-sd ", "emoji-sd3", "StableDiffusion3Pipeline"))
    code, out, _ = pcpo("rewards")
    assert code == 0 and all(name in out for name in ("colorfulness", "jpeg_compressibility", "emoji_clip"))


def test_rewards_check(pcpo, tmp_path):
    assert pcpo("rewards", "check", "colorfulness")[:2] == (0, "nothing found\n")
    (tmp_path / "own.py").write_text("def short(images, prompts, metadata):\n    return [0.0]\n")
    code, out, err = pcpo("rewards", "check", "own.py:short")
    assert code == 5 and "instead of" in out and one_line(err)


def test_validate(pcpo, settings, tmp_path):
    code, out, err = pcpo("validate", settings)
    assert (code, err) == (0, "") and [line.split()[1][:2] for line in out.splitlines()] == ["ok"] * 5
    code, out, err = pcpo("validate", settings, "--set", "sampler.name=cps")
    assert code == 2 and one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def one_line(err):
    return err.startswith("pcpo: ") and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["train", "demoo"], 2, "did you mean demo?"),
        (["train", "absent.yaml"], 2, "absent.yaml: no such file"),
        (["train", "{}", "--set", "optim.lr"], 2, "--set optim.lr: expected KEY=VALUE"),
        (["train", "{}", "--set", "optim.learnin_rate=1"], 2, "did you mean learning_rate?"),
        (["train", "{}", "--set", "batch.group_size=1"], 2, "group of one"),
        (["train", "{}", "--set", "train.updates=3"], 2, "does not divide the 4 pictures"),
        (["train", "{}", "--set", "sampler.name=flow_sde"], 2, "flow_sde samples flow models"),
        (["train", "{}", "--set", "prompts=absent.txt"], 3, "absent.txt: no such file"),
        (["train", "{}", "--set", "prompts=latin.txt"], 3, "latin.txt:1: is not UTF-8"),
        (["train", "{}", "--set", "model.path=./absent"], 4, "no such folder"),
        (["train", "{}", "--set", "model.path=''"], 4, "model"),
        (["train", "{}", "--set", "reward=colourfulness"], 5, "did you mean 'colorfulness'?"),
        (["train", "{}", "--set", "reward=bad.py:nan"], 5, "reward 'nan': returned nan at picture 0"),
        (["train", "{}", "--set", "reward=bad.py:raising"], 5, "reward 'raising': raised KeyError: 'two lines'"),
        (["train", "{}", "--resume"], 6, "runs/tiny-0: holds no run to resume"),
        (["train", "{}", "--output", "latin.txt"], 6, "latin.txt: is a file"),
        (["train", "{}", "--output", "."], 6, ".: is not empty and not a run"),
        (["train", "{}", "--output", "x" * 300], 6, "cannot be used"),
        (["sample", "./absent", "-p", "x"], 4, "no such folder"),
        (["sample", "emoji-sdd", "-p", "x"], 4, "did you mean emoji-sd?"),
        (["sample", "{}"], 3, "no prompts -> give --prompt TEXT or --prompts FILE"),
        (["sample", "{}", "--prompts", "empty.txt"], 3, "empty.txt: holds no prompt"),
        (["eval", "./absent"], 4, "no such folder"),
        (["eval", "emoji-sd", "--prompts", "empty.txt"], 3, "empty.txt: holds no prompt"),
        (["eval", "emoji-sd", "--features", "./absent"], 4, "features ./absent: no such folder"),
        (["eval", "emoji-sd", "--rewards", "colourfulness"], 5, "did you mean 'colorfulness'?"),
        (["eval", "emoji-sd", "--rewards", "{nam: x}"], 2, "--rewards"),
        (["eval", "emoji-sd", "--reference", "./absent"], 4, "no such folder"),
        (["eval", "emoji-sd", "--held-out", "heldout50"], 2, "goes with --matched"),
        (["eval", "emoji-sd", "--matched", "1"], 6, "emoji-sd: is no run folder"),
        (["eval", "emoji-sd", "--output", "latin.txt"], 6, "latin.txt: exists already"),
        (["report", "absent"], 6, "absent/events.jsonl: cannot be read"),
        (["report", "."], 6, "events.jsonl: cannot be read"),
        (["report", "absent-*"], 6, "absent-*: no run folder matches"),
    ],
)
def test_mistakes_are_one_line_and_a_code(pcpo, settings, tmp_path, arguments, code, words):
    (tmp_path / "latin.txt").write_bytes(b"na\xefve\n")
    (tmp_path / "empty.txt").write_bytes(b"\n")
    (tmp_path / "bad.py").write_text(
        "def nan(images, prompts, metadata):\n    return [float('nan')] * len(prompts)\n"
        "def raising(images, prompts, metadata):\n    raise KeyError('two lines')\n"
    )
    before = files(tmp_path)
    got, _, err = pcpo(*(str(settings) if a == "{}" else a for a in arguments))
    assert got == code and words in err and one_line(err)
    made = files(tmp_path).keys() - before.keys()
    assert {path.name for path in made} == ({"config.yaml", "events.jsonl"} if "bad.py" in str(arguments) else set())
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train", "--set"], ["sample"], ["train", "demo", "--seed", "x"]])
def test_wrong_usage_is_code_2(pcpo, arguments):
    code, out, err = pcpo(*arguments)
    assert code == 2 and "Traceback" not in out + err


def test_version_and_help():
    runner = CliRunner()
    assert runner.invoke(cli.app, ["--version"]).stdout == f"{__version__}\n"
    text = runner.invoke(cli.app, ["--help"]).stdout
    assert all(
        verb in text for verb in ("train", "validate", "sample", "eval", "report", "presets", "models", "rewards")
    )
    for verb, default in (("train", "demo"), ("sample", "5.0")):
        result = runner.invoke(cli.app, [verb, "--help"])
        assert result.exit_code == 0 and "default" in result.stdout and default in result.stdout
