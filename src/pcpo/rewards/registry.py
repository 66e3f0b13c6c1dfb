"""Rewards by name. Importing this module loads neither torch nor a model, so that listing them is instant."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pcpo.errors import PCPOError, RewardError, one_line

if TYPE_CHECKING:
    from pcpo.data.prompts import Prompt
    from pcpo.rewards.mixing import WeightedSum
    from pcpo.types import Reward


@dataclass(frozen=True)
class RewardSpec:
    """One line for lists, where the code is (``module:attribute``), where the idea is from, and the extra it needs."""

    summary: str
    target: str
    source: str
    extra: str = ""


# extra -> the modules it brings
EXTRAS = {"ocr": ("rapidocr", "onnxruntime"), "remote": ("httpx",), "serve": ("httpx", "starlette", "uvicorn")}

REWARDS: dict[str, RewardSpec] = {
    "aesthetic": RewardSpec(
        "LAION aesthetic predictor v2, about 1 to 10; options: model (a CLIP), head, and those of clip_score",
        "pcpo.rewards.aesthetic:Aesthetic",
        "LAION 2022",
    ),
    "clip_score": RewardSpec(
        "text alignment: cosine by a CLIP-like model; options: model (folder or hub id), device, batch_size, dtype, "
        "processor",
        "pcpo.rewards.clip:CLIPScore",
        "2104.08718",
    ),
    "colorfulness": RewardSpec(
        "Hasler-Suesstrunk colourfulness, 0 (grey) to about 110",
        "pcpo.rewards.builtin:colorfulness",
        "Hasler and Suesstrunk 2003",
    ),
    "emoji_clip": RewardSpec(
        "text alignment: cosine by the small CLIP that ships with the package; options: device, batch_size, dtype",
        "pcpo.rewards.clip:EmojiCLIP",
        "2104.08718",
    ),
    "hpsv2": RewardSpec(
        "human preference by HPSv2.1, about .2 to .35; options: those of clip_score",
        "pcpo.rewards.hpsv2:HPSv2",
        "2306.09341",
    ),
    "http": RewardSpec(
        "a reward behind reward servers; options: url (one or several), token_env, batch_size, concurrency, tries, "
        "timeout, deadline",
        "pcpo.rewards.remote.client:RemoteReward",
        "docs/how-to/remote-rewards.md",
        extra="remote",
    ),
    "image_reward": RewardSpec(
        "human preference by ImageReward, about -2 to 2; options: model (converted once), device, batch_size, dtype",
        "pcpo.rewards.image_reward:ImageReward",
        "2304.05977",
    ),
    "jpeg_compressibility": RewardSpec(
        "minus the JPEG size in kB at quality 95", "pcpo.rewards.builtin:jpeg_compressibility", "2305.13301"
    ),
    "jpeg_incompressibility": RewardSpec(
        "JPEG size in kB at quality 95", "pcpo.rewards.builtin:jpeg_incompressibility", "2305.13301"
    ),
    "ocr": RewardSpec(
        "text in the picture: 1 - edit distance to the prompt's quoted text, 0 to 1; options: threads",
        "pcpo.rewards.ocr:OCR",
        "2505.05470",
        extra="ocr",
    ),
    "pickscore": RewardSpec(
        "human preference by PickScore, about 17 to 24; options: those of clip_score",
        "pcpo.rewards.pickscore:PickScore",
        "2305.01569",
    ),
    "siglip_score": RewardSpec(
        "text alignment by SigLIP: logit or probability; options: output, and those of clip_score",
        "pcpo.rewards.siglip:SigLIPScore",
        "2303.15343",
    ),
    "text_match": RewardSpec(
        "caption against prompt by BERTScore; options: captioner, encoder, score, question, reference, max_new_tokens, "
        "device, batch_size, dtype",
        "pcpo.rewards.text_match:TextMatch",
        "2305.13301",
    ),
    "vlm_judge": RewardSpec(
        "a vision-language model behind an OpenAI-compatible url; options: url, model, reply, question, token_env",
        "pcpo.rewards.remote.judge:VLMJudge",
        "2404.01291",
        extra="remote",
    ),
}


def load_reward(name: str, /, **options: Any) -> Reward:
    """Return a reward: a built-in name, ``module:attribute`` or ``path/to/file.py:attribute``.

    A function (or another callable object) is the reward itself and takes no options; a class is called
    with the options and its instance is the reward.

    The last two forms import and run the code they name, with all rights of this process: name only code
    that you trust.

    Raises RewardError for an unknown name (naming the nearest), a file, module or attribute that is
    missing, code that fails while it is imported, and options that do not fit.
    """
    where = f"reward {name!r}"
    found = _find(name, where)
    if inspect.isclass(found):
        return _instance(found, options, where)
    if not callable(found):
        raise RewardError(f"is {type(found).__name__}, not callable", where=where, fix="name a function or a class")
    if options:
        raise RewardError(
            f"a function takes no options, got {', '.join(options)}",
            where=where,
            fix="write a class whose __init__ takes them and whose __call__ is the reward",
        )
    return found


def build_rewards(parts: Sequence[tuple[str, float, Mapping[str, Any]]]) -> WeightedSum:
    """Load parts (name, weight, options) as one WeightedSum; each is reported under its name.

    A part from a file or module goes by the attribute alone; a name that comes again gets ``_2``, ``_3``, ...
    Raises RewardError as `load_reward` does.
    """
    from pcpo.rewards.mixing import WeightedSum

    loaded: list[tuple[str, Reward, float]] = []
    for name, weight, options in parts:
        label = name.rpartition(":")[2]
        earlier = sum(other.rpartition(":")[2] == label for other, _, _ in parts[: len(loaded)])
        loaded.append((f"{label}_{earlier + 1}" if earlier else label, load_reward(name, **options), weight))
    return WeightedSum(loaded)


def check_built_ins(parts: Iterable[tuple[str, Mapping[str, Any]]], prompts: Sequence[Prompt]) -> None:
    """Refuse what can be seen of built-in rewards (name, options) without making them, so without loading a model.

    Raises RewardError for a missing extra or options that do not fit, PromptError for a prompt that one of them
    cannot judge. Other names are passed over: only their own code knows.
    """
    for name, options in parts:
        if name not in REWARDS:
            continue
        where = f"reward {name!r}"
        check_extra(REWARDS[name].extra, where)
        found = _find(name, where)
        if inspect.isclass(found):
            _bind(found, options, where)
        check_prompts(found, prompts, name)


def check_extra(extra: str, where: str) -> None:
    """Raise RewardError when a module that an extra brings is not installed."""
    for module in EXTRAS.get(extra, ()):
        if importlib.util.find_spec(module) is None:
            raise RewardError(f"needs {module}", where=where, fix=f'pip install "pcpo[{extra}]"')


def check_prompts(reward: Any, prompts: Sequence[Prompt], name: str) -> None:
    """Let a reward that defines check_prompts(prompts) refuse prompts that it could not judge.

    It raises PromptError or RewardError naming the prompt; any other exception becomes a RewardError.
    """
    check = getattr(reward, "check_prompts", None)
    if check is None:
        return
    try:
        check(prompts)
    except PCPOError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise RewardError(
            f"check_prompts raised {type(error).__name__}: {one_line(error)}",
            where=f"reward {name!r}",
            fix="mend it, or raise PromptError for a prompt that cannot be judged",
        ) from error


def _find(name: str, where: str) -> Any:
    """The function, class or object that a name stands for."""
    target = REWARDS[name].target if name in REWARDS else name
    place, colon, attribute = target.rpartition(":")
    if not colon:
        raise _unknown(name)
    if not place or not attribute:
        raise RewardError("not of the form module:function", where=where, fix="write file.py:function")
    module = _module_of_file(Path(place), where) if place.endswith(".py") else _module(place, where)
    if not hasattr(module, attribute):
        raise RewardError(f"{place} has no {attribute!r}", where=where, fix=_nearest(attribute, _callables(module)))
    return getattr(module, attribute)


def _unknown(name: str) -> RewardError:
    if name.endswith(".py"):
        return RewardError("names a file only", where=f"reward {name!r}", fix=f"write {name}:function")
    fix = f"{_nearest(name, list(REWARDS))}; or give module:function or path/to/file.py:function"
    return RewardError("unknown name", where=f"reward {name!r}", fix=fix)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def _callables(module: ModuleType) -> list[str]:
    return [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]


def _module(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise RewardError(
                f"no module {name!r}", where=where, fix="install it, or name a file: path/to/file.py:function"
            ) from error
        raise _failed_import(error, where) from error
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise _failed_import(error, where) from error


def _module_of_file(path: Path, where: str) -> ModuleType:
    """Run a file as a module of its own; it is run again each time it is loaded, so edits count."""
    if not path.is_file():
        raise RewardError("no such file", where=where, fix="check the path")
    name = f"pcpo_user_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # running the file is running the user's code
        del sys.modules[name]
        raise _failed_import(error, where) from error
    return module


def _failed_import(error: BaseException, where: str) -> RewardError:
    what = f"import raised {type(error).__name__}: {one_line(error)}"
    return RewardError(what, where=where, fix="mend the module")


def _bind(cls: type, options: Mapping[str, Any], where: str) -> None:
    try:
        inspect.signature(cls).bind(**options)
    except (TypeError, ValueError) as error:  # ValueError: a class of C code without a signature
        raise RewardError(
            f"options do not fit ({error})", where=where, fix="see the arguments of its __init__"
        ) from error


def _instance(cls: type, options: Mapping[str, Any], where: str) -> Reward:
    _bind(cls, options, where)
    try:
        reward = cls(**options)
    except PCPOError:
        raise
    except Exception as error:  # __init__ is the user's code
        raise RewardError(
            f"could not be made: {type(error).__name__}: {one_line(error)}",
            where=where,
            fix="mend __init__ or the options",
        ) from error
    if not callable(reward):
        raise RewardError("its instances are not callable", where=where, fix="give the class a __call__")
    return reward


__all__ = [
    "EXTRAS",
    "REWARDS",
    "RewardSpec",
    "build_rewards",
    "check_built_ins",
    "check_extra",
    "check_prompts",
    "load_reward",
]
