"""The reward `vlm_judge`: a vision-language model behind an OpenAI-compatible endpoint looks at every picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError
from torch import Tensor

from pcpo.errors import RewardError, unknown_name
from pcpo.rewards.remote.client import check_counts, check_seconds, check_urls
from pcpo.rewards.remote.exchange import Refused, read_token
from pcpo.rewards.remote.pool import Failed, Job, Pool, require_answers
from pcpo.rewards.remote.wire import WireError, encode_png
from pcpo.types import RewardResult

WHERE = "reward vlm_judge"
QUESTIONS = {
    "yes": 'Does this picture show "{prompt}"? Answer with Yes or No only.',
    "number": 'How well does this picture show "{prompt}"? Answer with one number from {low} (not at all) to {high} '
    '(perfectly), as {"score": number}.',
}
LISTED = 20  # most likely tokens that are asked for: the most that servers give
UNLISTED = 1e-3  # probability that all other tokens may have, for an answer whose "Yes" is not listed
# how endpoints name a refusal of what is in the request, rather than of how it is asked
FILTERS = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
NUMBER = re.compile(r"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?")


class VLMJudge:
    """Asks a question about every picture and turns the answer into a number, at temperature 0.

    url          base address, as vLLM and SGLang print it: http://127.0.0.1:8000/v1; or a list of them
    model        the name under which they serve it
    reply        "yes": the probability of the answer Yes, from the log-probabilities of the first token (VQAScore,
                 2404.01291), 0 to 1. "number": the number that the model writes, from `low` to `high`
    question     what is asked; {prompt} stands for the picture's prompt, {low} and {high} for the range
    token_env    environment variable that holds the API key; null: none
    concurrency, tries, timeout, deadline   as for the reward http; one picture per request

    A picture whose answer is a refusal, cut off, or anything else than what was asked for is left out (valid False),
    and so is one that no try got an answer for, and one that the endpoint's content filter refuses. Raises RewardError
    when no picture was answered, and when the endpoint refuses for another reason.
    Pictures and prompts leave this process, to the url that you name.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        model: str,
        *,
        reply: Literal["yes", "number"] = "yes",
        question: str | None = None,
        low: float = 0.0,
        high: float = 10.0,
        token_env: str | None = None,
        concurrency: int = 8,
        tries: int = 3,
        timeout: float = 15.0,
        deadline: float = 50.0,
    ) -> None:
        if reply not in QUESTIONS:
            raise unknown_name("reply", str(reply), QUESTIONS)
        if not low < high:
            raise RewardError(f"low {low} is not below high {high}", where=WHERE, fix="give a range")
        check_counts(WHERE, concurrency=concurrency, tries=tries)
        check_seconds(WHERE, timeout=timeout, deadline=deadline)
        self.model, self.reply, self.low, self.high, self.deadline = model, reply, low, high, deadline
        self.question = QUESTIONS[reply] if question is None else question
        self._pool = Pool(
            check_urls(url, WHERE),
            path="/chat/completions",
            token=read_token(token_env, WHERE),
            tries=tries,
            timeout=timeout,
            deadline=deadline,
            concurrency=concurrency,
        )

    def ready(self) -> None:
        """Ask every endpoint, for a few seconds, whether it serves the model; RewardError names what it serves."""
        for body in self._pool.get("/models"):
            try:
                served = [str(entry["id"]) for entry in json.loads(body)["data"]]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise RewardError("is no OpenAI-compatible endpoint", where=WHERE, fix="url ends in /v1") from None
            if self.model not in served:
                names = ", ".join(served[:5]) or "none"
                raise RewardError(f"serves no model {self.model!r}", where=WHERE, fix=f"it serves: {names[:200]}")

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> RewardResult:
        """Values of B pictures; see the class for what is left out and what is raised."""
        jobs = [
            Job(partial(self._body, image, prompt), self._value, left_out)
            for image, prompt in zip(images, prompts, strict=True)
        ]
        results = self._pool.run(jobs)
        require_answers(results, "picture", WHERE)
        values = [None if isinstance(result, Failed) else result for result in results]
        return RewardResult(
            torch.tensor([0.0 if value is None else value for value in values], dtype=torch.float32),
            torch.tensor([value is not None for value in values]),
        )

    def _body(self, image: Tensor, prompt: str) -> bytes:
        fields = {"low": f"{self.low:g}", "high": f"{self.high:g}", "prompt": prompt}
        # one pass: a prompt that holds {low} stays as it is
        text = re.sub(r"\{(low|high|prompt)\}", lambda match: fields[match[1]], self.question)
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encode_png(image)}"}}
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [picture, {"type": "text", "text": text}]}],
            "temperature": 0,
        }
        if self.reply == "yes":
            request |= {"max_tokens": 1, "logprobs": True, "top_logprobs": LISTED}
        else:
            request |= {"max_tokens": 32, "response_format": _number_schema(self.low, self.high)}
        return json.dumps(request).encode("ascii")

    def _value(self, body: bytes) -> float | None:
        """The value in a reply, None where the model did not answer the question; WireError for a broken reply."""
        try:
            choice = _Completion.model_validate_json(body).choices[0]
        except ValidationError as error:
            raise WireError(f"not a chat completion: {error.errors(include_input=False)[0]['msg']}") from None
        if choice.message.refusal:
            return None
        if self.reply == "yes":
            if choice.logprobs is None or not choice.logprobs.content:
                raise WireError("the endpoint gives no log-probabilities; use reply=number")
            return yes_probability(choice.logprobs.content[0].top_logprobs)
        # a number that was cut off is another number
        if choice.finish_reason != "stop":
            return None
        return number_in(choice.message.content or "", self.low, self.high)


class _Token(BaseModel):
    token: str
    logprob: float = Field(le=1e-3, allow_inf_nan=False)  # rounding may lift a certainty a little above 0


class _Position(BaseModel):
    top_logprobs: list[_Token]


class _LogProbs(BaseModel):
    content: list[_Position] | None = None


class _Text(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Text
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=1)


def left_out(refusal: Refused) -> None:
    """No value where a content filter refused (HTTP 400); raises any other refusal again."""
    inner = refusal.error.get("innererror")
    named = [
        refusal.error.get("code"),
        refusal.error.get("type"),
        inner.get("code") if isinstance(inner, dict) else None,
    ]
    if refusal.status != 400 or not any(isinstance(name, str) and name in FILTERS for name in named):
        raise refusal


def yes_probability(listed: Sequence[Any]) -> float | None:
    """P(Yes): the sum over the spellings of yes among the most likely first tokens (2404.01291).

    listed: entries with `token` and `logprob`. None when neither yes nor no is among them (it said something else), or
    when yes is not and the tokens that are not listed could still hold more than 0.001 of it.
    """
    chances = {"yes": 0.0, "no": 0.0}
    total = 0.0
    for entry in listed:
        chance = math.exp(entry.logprob)
        total += chance
        word = entry.token.strip(" \t\n\"'.,!\u0120\u2581").lower()
        if word in chances:
            chances[word] += chance
    if chances["yes"]:
        return min(chances["yes"], 1.0)
    return 0.0 if chances["no"] and 1.0 - total <= UNLISTED else None


def number_in(text: str, low: float, high: float) -> float | None:
    """The number that a reply is, bare or as {"score": number}; None for any other text and outside the range."""
    text = text.strip()
    value: Any = None
    if NUMBER.fullmatch(text):
        value = float(text)
    elif text.startswith("{"):
        try:
            said = TypeAdapter(dict[str, JsonValue]).validate_json(text)
        except ValidationError:
            return None
        value = said["score"] if said.keys() == {"score"} else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        return None
    return float(value)


def _number_schema(low: float, high: float) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"score": {"type": "number", "minimum": low, "maximum": high}},
        "required": ["score"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "score", "strict": True, "schema": schema}}


__all__ = ["VLMJudge", "number_in", "yes_probability"]
