"""Training by several processes on one machine: forked from a server that has imported everything once."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import training

PRELOADED = ["accelerate", "pcpo.trainer.loop", "pcpo.models.stable_diffusion3", "ranks", "training"]


def context() -> Any:
    """Processes that start without importing torch again."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def launch(world: int, target: Any, *arguments: Any) -> list[Any]:
    """Start `target(*arguments)` in every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context().Process(target=_rank, args=(rank, world, port, target, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[Any], seconds: float = 120.0) -> list[int | None]:
    """Exit codes in rank order; None for a process that was still running."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def said(settings: dict[str, Any]) -> list[str]:
    """The errors that the ranks of a run ended with."""
    output = Path(settings["run"]["output"])
    return [path.read_text() for path in sorted(output.parent.glob(f"{output.name}.rank*"))]


def _rank(rank: int, world: int, port: int, target: Any, arguments: tuple[Any, ...]) -> None:
    import torch

    from pcpo.errors import Interrupted, PCPOError

    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world)}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        target(*arguments)
    except (PCPOError, Interrupted) as error:
        output = Path(arguments[0]["run"]["output"])
        output.with_name(f"{output.name}.rank{rank}").write_text(f"{type(error).__name__}: {error}")
        sys.stderr.flush()
        os._exit(error.exit_code)


def train(settings: dict[str, Any], resume: bool = False, reward: Any = training.reddish) -> None:
    """One run, as `pcpo train` does it."""
    from pcpo.trainer.loop import PCPOTrainer

    trainer = PCPOTrainer(config=settings, reward=reward, resume=resume, quiet=True)
    trainer.train()
    trainer.runtime.close()


def settings(folders: Any, output: Any, iterations: int = 6, **changes: Any) -> dict[str, Any]:
    """Six short iterations, each with a checkpoint that is kept."""
    base = {
        "train": {"iterations": iterations},
        "evaluation": {"every": 100, "num_prompts": 1},
        "run": {"checkpoint_every": 1, "keep_checkpoints": 9},
    }
    return training.settings("sd", folders["sd"], output, **training.merge(base, changes))


def run(world: int, settings: dict[str, Any], resume: bool = False, reward: Any = training.reddish) -> list[int | None]:
    """Train in so many processes; their exit codes."""
    return finish(launch(world, train, settings, resume, reward))


def losses(settings: dict[str, Any]) -> list[float | None]:
    """Of every iteration, as the log has them."""
    from pcpo.observe.events import read_events

    return [event.loss for event in read_events(Path(settings["run"]["output"]) / "events.jsonl").iterations]


def tuned(settings: dict[str, Any], iteration: int) -> dict[str, Any]:
    """The trained weights of a checkpoint."""
    from safetensors.torch import load_file

    return load_file(Path(settings["run"]["output"]) / f"checkpoints/{iteration:06d}/weight.safetensors")


def train_split(settings: dict[str, Any]) -> None:
    """A run whose frozen weights are split, as accelerate's launcher asks for it."""
    from pcpo.trainer.loop import PCPOTrainer

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    trainer = PCPOTrainer(config=settings, reward=training.reddish, quiet=True)
    frozen = [p for p in trainer.adapter.unwrapped.parameters() if not p.requires_grad]
    held = sum(p.to_local().numel() for p in frozen)
    assert held <= 0.55 * sum(p.numel() for p in frozen)
    trainer.train()
    trainer.runtime.close()


def train_zero(settings: dict[str, Any], resume: bool = False, reward: Any = training.reddish, spoil: int = 0) -> None:
    """A run whose optimiser is split by DeepSpeed; `spoil`: a gradient of the last process is NaN in that update."""
    from pcpo.trainer.loop import PCPOTrainer

    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    trainer = PCPOTrainer(config=settings, reward=reward, resume=resume, quiet=True)
    state, zero = trainer.state, trainer.state.zero
    held = sum(value.numel() for value in zero.part().values())
    assert held <= 2 * sum(p.numel() for p in state.parameters) / trainer.runtime.world + 20
    calls, step = [], zero.step

    def spoiled() -> float:
        calls.append(None)
        if len(calls) != spoil:
            return step()
        if trainer.runtime.rank == trainer.runtime.world - 1:
            zero.zero.all_grad_tensors[0][-1].view(-1)[-1] = math.nan
        before = [value.clone() for value in state.tensors().values()]
        norm = step()
        assert math.isinf(norm)
        assert all(a.equal(b) for a, b in zip(before, state.tensors().values(), strict=True))
        return norm

    zero.step = spoiled
    trainer.train()
    trainer.runtime.close()


def _write_cost(trainer: Any, counted: dict[str, Any]) -> None:
    """What was counted, and the shape that `iteration_cost` asks for, to OUTPUT.costR.json."""
    shape = {
        "trained_steps": len(trainer.algorithm.trained(0)),
        "latent": math.prod(trainer.adapter.latent_shape),
        "parameters": sum(p.numel() for p in trainer.state.parameters),
        "tensors": len(trainer.state.parameters),
    }
    record = json.dumps({**counted, "shape": shape})
    trainer.folder.with_name(f"{trainer.folder.name}.cost{trainer.runtime.rank}.json").write_text(record)


def train_zero_counted(settings: dict[str, Any]) -> None:
    """A run of one iteration that writes the bytes of its large collectives to OUTPUT.costR.json."""
    import torch.distributed as dist

    from pcpo.trainer.loop import PCPOTrainer

    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    counted = {"reduced": 0, "gathered": 0}

    def counting(name: str, kind: str) -> None:
        collective = getattr(dist, name)

        def counted_collective(*arguments: Any, **named: Any) -> Any:
            counted[kind] += next(iter((*arguments, *named.values()))).nbytes  # the sum, or what is gathered
            return collective(*arguments, **named)

        setattr(dist, name, counted_collective)

    counting("all_reduce", "reduced")
    counting("all_gather_into_tensor", "gathered")
    trainer = PCPOTrainer(config=settings, reward=training.reddish, quiet=True)
    iterate, found = trainer.learner.run, {}

    def iteration(events: Any) -> None:
        before = dict(counted)
        iterate(events)
        found.update({name: counted[name] - before[name] for name in counted})

    trainer.learner.run = iteration
    trainer.train()
    _write_cost(trainer, found)
    trainer.runtime.close()


def train_with_a_spare(settings: dict[str, Any], split: bool) -> None:
    """A full fine-tuning of a network with a parameter that no call uses: neither decay nor moments may move it."""
    import torch

    from pcpo.models.loading import load_adapter
    from pcpo.trainer.loop import PCPOTrainer

    if split:
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    adapter = load_adapter(settings["model"]["path"], "cpu", full=True)
    spare = torch.nn.Parameter(torch.full((1000,), 2.0))
    adapter.unwrapped.register_parameter("spare", spare)
    trainer = PCPOTrainer(model=adapter, config=settings, reward=coarse, quiet=True)
    trainer.train()
    assert torch.equal(spare.detach(), torch.full((1000,), 2.0))
    trainer.runtime.close()


def train_zero_and_die(settings: dict[str, Any]) -> None:
    """The second process ends without a word in the backward pass of the second update."""
    from pcpo.trainer.loop import PCPOTrainer

    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    trainer = PCPOTrainer(config=settings, reward=coarse, quiet=True)
    zero, calls = trainer.state.zero, []
    backward = zero.backward

    def dying(loss: Any) -> None:
        calls.append(None)
        if trainer.runtime.rank == 1 and len(calls) == 20:
            os._exit(9)
        backward(loss)

    zero.backward = dying
    trainer.train()


def wait_for(events: Path, lines: int, seconds: float = 100.0) -> None:
    """Return once the log has so many lines."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError):
            if events.read_bytes().count(b"\n") >= lines:
                return
        time.sleep(0.002)
    raise TimeoutError(f"{events} has no {lines} lines after {seconds:g} s")


def train_in_double(settings: dict[str, Any], reward: Any = training.reddish) -> None:
    """The same run with every float32 of model, latents, log-probs and gradients a float64."""
    import torch

    from pcpo.trainer.collect import Call
    from pcpo.trainer.loop import PCPOTrainer

    noise = Call.noise
    Call.noise = lambda call, step: noise(call, step).double()
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    trainer = PCPOTrainer(config=settings, reward=reward, quiet=True)
    for part in trainer.adapter.parts().values():
        part.double()
    trainer.train()
    assert all(p.dtype == torch.float64 for p in trainer.state.parameters)
    trainer.runtime.close()


def coarse(images: Any, prompts: Any, metadata: Any) -> Any:
    """Share of the colour values in the upper half: a last bit in a picture seldom matters."""
    return (images > 127).double().mean((1, 2, 3))


def fails_in_the_second(images: Any, prompts: Any, metadata: Any) -> Any:
    """A reward that is broken on one machine."""
    if os.environ["RANK"] == "1":
        raise ValueError("no disk left")
    return training.reddish(images, prompts, metadata)


def no_number_in_the_second(images: Any, prompts: Any, metadata: Any) -> Any:
    """A reward that returns NaN on one machine."""
    values = training.reddish(images, prompts, metadata)
    return values * float("nan") if os.environ["RANK"] == "1" else values


def train_counted(settings: dict[str, Any]) -> None:
    """A run that writes what its iterations cost, to OUTPUT.costR.json: backbone rows, bytes reduced and kept."""
    import torch

    from pcpo.trainer.loop import PCPOTrainer

    trainer = PCPOTrainer(config=settings, reward=training.reddish, quiet=True)
    counted = {"sampled": 0, "trained": 0, "reduced": 0, "trajectory": 0, "seconds": 0.0}
    iterate, update = trainer.learner.run, trainer.learner.updater.run

    def count(module: Any, args: Any, kwargs: Any) -> None:
        counted["trained" if torch.is_grad_enabled() else "sampled"] += len(args[0] if args else kwargs["sample"])

    def iteration(events: Any) -> None:
        before, began = getattr(trainer.runtime, "bytes_reduced", 0), time.perf_counter()
        hook = trainer.adapter.unwrapped.register_forward_pre_hook(count, with_kwargs=True)
        iterate(events)
        hook.remove()
        counted["reduced"] += getattr(trainer.runtime, "bytes_reduced", 0) - before
        counted["seconds"] += time.perf_counter() - began

    def updating(given: Any, *arguments: Any, **named: Any) -> Any:
        run = given.trajectory
        counted["trajectory"] = sum(t.nbytes for t in (run.x_t, run.noise, run.prediction_old, run.latents))
        return update(given, *arguments, **named)

    trainer.learner.run, trainer.learner.updater.run = iteration, updating
    trainer.train()
    _write_cost(trainer, counted)
    trainer.runtime.close()
