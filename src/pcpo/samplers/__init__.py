"""Samplers: what one step does to the latents. Every rule is affine, see `base`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pcpo.errors import ConfigError, unknown_name
from pcpo.samplers.base import Sampler
from pcpo.samplers.coefficients import Coefficients
from pcpo.samplers.cps import cps
from pcpo.samplers.dance_sde import dance_sde
from pcpo.samplers.ddim import ddim, ddim_pcpo
from pcpo.samplers.flow_sde import flow_sde
from pcpo.samplers.ode import ode
from pcpo.samplers.precise import precise


@dataclass(frozen=True)
class SamplerSpec:
    """A registered sampler: its rule and its one parameter, with default and range (0 to maximum).

    family: the grids that it works on, "diffusion", "flow" or "both".
    """

    rule: Callable[..., Coefficients]
    family: str
    parameter: str | None
    default: float
    maximum: float
    summary: str
    source: str
    borrows_at_one: bool = False


SAMPLERS: dict[str, SamplerSpec] = {
    "ddim": SamplerSpec(ddim, "diffusion", "eta", 1.0, 1.0, "DDIM; eta 1 has DDPM's variance", "2010.02502 eq. 12, 16"),
    "flow_sde": SamplerSpec(
        flow_sde,
        "flow",
        "noise_level",
        0.7,
        math.inf,
        "SDE with noise growing towards t = 1",
        "2505.05470",
        borrows_at_one=True,
    ),
    "dance_sde": SamplerSpec(dance_sde, "flow", "eta", 0.3, math.inf, "SDE with a constant noise rate", "2505.07818"),
    "cps": SamplerSpec(
        cps, "flow", "noise_level", 0.7, 1.0, "Re-noises a fixed share of the noise level", "2509.05952"
    ),
    "precise": SamplerSpec(precise, "flow", "eta", 0.7, math.inf, "Re-noises as much as the step decays", "2605.23522"),
    "ode": SamplerSpec(ode, "both", None, 0.0, 0.0, "Deterministic: Euler, or DDIM with eta 0", "2010.02502"),
}


def make_sampler(name: str, **params: float | str) -> Sampler:
    """The sampler `name` with its parameter (`SAMPLERS[name].parameter`; the default if left out).

    ddim also takes variance="pcpo" and target (4.5): the variance schedule of PCPO's authors instead of eta.
    Raises ConfigError for an unknown name, an unknown parameter, or a value out of range.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    spec = SAMPLERS[name]
    if name == "ddim" and params.get("variance", "eta") != "eta":
        return _ddim_pcpo(params)
    values = {k: v for k, v in params.items() if not (name == "ddim" and k == "variance")}
    for key in values:
        if key != spec.parameter:
            takes = f"'{spec.parameter}'" if spec.parameter else "no parameter"
            raise ConfigError(f"unknown parameter '{key}'", where=f"sampler {name}", fix=f"it takes {takes}")
    if spec.parameter is None:
        return Sampler(name, spec.rule)
    value = _in_range(name, spec.parameter, values.get(spec.parameter, spec.default), spec.maximum)
    return Sampler(name, partial(spec.rule, **{spec.parameter: value}), spec.borrows_at_one)


def _ddim_pcpo(params: dict[str, float | str]) -> Sampler:
    if params["variance"] != "pcpo":
        raise unknown_name("sampler.variance", str(params["variance"]), ("eta", "pcpo"))
    extra = sorted(set(params) - {"variance", "target"})
    if extra:
        raise ConfigError(f"'{extra[0]}' has no effect with variance pcpo", where="sampler ddim", fix="remove it")
    return Sampler("ddim", partial(ddim_pcpo, target=_in_range("ddim", "target", params.get("target", 4.5), math.inf)))


def _in_range(name: str, key: str, value: float | str, maximum: float) -> float:
    if isinstance(value, str | bool) or not (math.isfinite(value) and 0 <= value <= maximum):
        limit = f"0 to {maximum:g}" if math.isfinite(maximum) else "0 or more"
        raise ConfigError(f"{key} = {value!r} is out of range", where=f"sampler {name}", fix=f"use {limit}")
    return float(value)


__all__ = ["SAMPLERS", "Sampler", "SamplerSpec", "make_sampler"]
