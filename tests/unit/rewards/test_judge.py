"""The vision-language judge, against an endpoint that answers as vLLM does."""

import base64
import json
import math

import pytest
import torch

import servers
from pcpo.data.images import load_image
from pcpo.errors import RewardError
from pcpo.rewards import load_reward
from pcpo.rewards.remote import pool
from pcpo.rewards.remote.judge import VLMJudge, number_in, yes_probability
from training import pictures

IMAGES = pictures(4)
PROMPTS = ["a {low} cat", 'say "hi"', "\u00e9", "d"]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(pool, "BACKOFF", 0.02)


def completion(content="Yes", *, tokens=None, **choice):
    message = {"role": "assistant", "content": content}
    if tokens is not None:
        listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in tokens.items()]
        choice["logprobs"] = {"content": [{"token": content, "logprob": -0.1, "top_logprobs": listed}]}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
            "usage": {"total_tokens": 9},
        }
    ).encode()


class Endpoint(servers.Faulty):
    """Answers each picture by `say(number of the picture)`; keeps the requests."""

    def __init__(self, say, **more):
        super().__init__(self.complete, **more)
        self.say, self.asked = say, {}

    def complete(self, path, body):
        if path == "/v1/models":
            return json.dumps({"object": "list", "data": [{"id": "judge", "object": "model"}]}).encode()
        assert path == "/v1/chat/completions"
        request = json.loads(body)
        picture, _ = request["messages"][0]["content"]
        kind, data = picture["image_url"]["url"].split(",", 1)
        assert kind == "data:image/png;base64"
        image = load_image(base64.b64decode(data))
        number = next(n for n, known in enumerate(IMAGES) if torch.equal(known, image))
        self.asked[number] = request
        return self.say(number)


def judge(endpoint, **options):
    with servers.faulty(endpoint) as (url,):
        reward = VLMJudge(f"{url}/v1", "judge", **{"timeout": 5, **options})
        reward.ready()
        try:
            return reward(IMAGES, PROMPTS, [{}] * 4)
        finally:
            reward.close()


def test_the_probability_of_yes():
    said = [
        {"Yes": 0.7, "No": 0.2, " yes": 0.05, "YES": 0.01},
        {"No": 0.9999},  # yes is somewhere in the last ten-thousandth
        {"No": 0.9, "Maybe": 0.05},  # yes may be up to .05: unknown
        {"Sorry": 0.9, "I": 0.09},
    ]
    endpoint = Endpoint(lambda n: completion(tokens=said[n], finish_reason="length"))
    result = judge(endpoint)
    assert result.valid.tolist() == [True, True, False, False]
    assert result.values.tolist() == pytest.approx([0.76, 0, 0, 0])
    request = endpoint.asked[0]
    assert (request["temperature"], request["logprobs"], request["max_tokens"]) == (0, True, 1)
    assert request["messages"][0]["content"][1]["text"].startswith('Does this picture show "a {low} cat"?')


def test_numbers():
    said = ["7", '{"score": 2.5}', "I cannot judge this picture.", '{"score": 11}']
    endpoint = Endpoint(lambda n: completion(said[n]))
    result = judge(endpoint, reply="number", question="{prompt} {low} {high} {other} %s", low=1)
    assert result.valid.tolist() == [True, True, False, False] and result.values.tolist() == [7, 2.5, 0, 0]
    schema = endpoint.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"] == {"type": "number", "minimum": 1, "maximum": 10.0}
    texts = [endpoint.asked[n]["messages"][0]["content"][1]["text"] for n in range(4)]
    assert texts == [f"{prompt} 1 10 {{other}} %s" for prompt in PROMPTS]
    assert set(endpoint.seen.values()) == {1}  # at temperature 0 a refusal would be repeated


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "length"},
        {"finish_reason": "content_filter"},
        {"finish_reason": None},
        {"message": {"content": "7", "refusal": "no"}},
        {"message": {"content": None}},
    ],
)
def test_answers_that_are_not_to_be_trusted(choice):
    result = judge(Endpoint(lambda n: completion("7", **(choice if n else {}))), reply="number")
    assert result.valid.tolist() == [True, False, False, False]


FILTERED = [
    {"code": "content_filter", "message": "The response was filtered", "innererror": {"code": "X"}},  # Azure's
    {"code": "content_policy_violation", "message": "no"},
    {"code": None, "type": "content_filter", "message": "no"},
    {"code": 400, "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
]


@pytest.mark.parametrize("error", FILTERED)
def test_a_content_filter_leaves_its_picture_out(error):
    refusal = servers.Reply(400, json.dumps({"error": error}).encode(), {})
    endpoint = Endpoint(lambda n: refusal if n == 1 else completion("7"))
    result = judge(endpoint, reply="number")
    assert result.valid.tolist() == [True, False, True, True] and result.values.tolist() == [7, 0, 7, 7]
    assert set(endpoint.seen.values()) == {1}  # asked again it would say the same
    assert not judge(Endpoint(lambda n: refusal), reply="number").valid.any()  # the run counts it, max_invalid stops it


@pytest.mark.parametrize(
    "status, error",
    [(400, {"code": "model_not_found", "message": "content_filter"}), (401, {"code": "content_filter"}), (400, "x")],
)
def test_other_refusals_still_stop_the_run(status, error):
    refusal = servers.Reply(status, json.dumps({"error": error}).encode(), {})
    with pytest.raises(RewardError, match=f"refused with HTTP {status}"):
        judge(Endpoint(lambda n: refusal if n == 1 else completion("7")), reply="number")


@pytest.mark.parametrize(
    "text, value",
    [
        ("7", 7), (" 7.25\n", 7.25), ("-1", None), ("10", 10), ("10.01", None), ('{"score": 3}', 3),
        ('{"score":3e0}', 3),
        ("", None), ("seven", None), ("7/10", None), ("7 out of 10", None), ("8, maybe 9", None), ("1e1", None),
        ("nan", None), ("inf", None), ('{"score": NaN}', None), ('{"score": "3"}', None), ('{"score": true}', None),
        ('{"score": null}', None), ('{"score": [3]}', None), ('{"score": 3, "note": 1}', None), ('{"rating": 3}', None),
        ("{" * 10_000, None), ("9" * 5000, None), ("[3]", None), ("\u0663", None),
    ],
)  # fmt: skip
def test_what_is_a_number(text, value):
    assert number_in(text, 0, 10) == value


def test_spellings_of_yes():
    class Token:
        def __init__(self, token, p):
            self.token, self.logprob = token, math.log(p)

    for spelling in ("Yes", "yes", " YES", "\u0120Yes", "\u2581yes", "Yes.", '"Yes'):
        assert yes_probability([Token(spelling, 0.5), Token("No", 0.2)]) == pytest.approx(0.5)
    for other in ("Yesterday", "y", "eyes", ""):
        assert yes_probability([Token(other, 0.5)]) is None
    assert yes_probability([]) is None


@pytest.mark.parametrize(
    "reply",
    [
        b"{}", b"[]", b"null", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"x",
        completion("Yes"), completion(tokens={}), completion("Yes", logprobs={"content": None}),
        b'{"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": '
        b'[{"token": "Yes", "logprob": NaN}]}]}}]}',
        b'{"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": '
        b'[{"token": "Yes", "logprob": 5.0}]}]}}]}',
    ],
)  # fmt: skip
def test_broken_replies_are_tried_again_and_never_used(reply):
    if reply == completion(tokens={}):
        assert not judge(Endpoint(lambda n: reply)).valid.any()
        return
    endpoint = Endpoint(lambda n: reply)
    with pytest.raises(RewardError, match="no picture was answered: 4 x"):
        judge(endpoint)
    assert set(endpoint.seen.values()) == {3}


def test_faults():
    faults = ("500", "429", "reset", "slow", "large", "redirect")
    endpoint = Endpoint(lambda n: completion("7"), fault=servers.at_random(0.5, faults=faults))
    result = judge(endpoint, reply="number", timeout=0.3)
    assert set(result.values[result.valid].tolist()) <= {7.0} and max(endpoint.seen.values()) <= 3


def test_ready_names_what_is_served():
    for answer, said in [
        (Endpoint(lambda n: b"").complete, "serves no model 'juge' -> it serves: judge"),
        (lambda path, body: b'{"data": [7]}', "no OpenAI-compatible endpoint"),
    ]:
        with servers.faulty(servers.Faulty(answer)) as (url,):
            reward = VLMJudge(f"{url}/v1", "juge")
            with pytest.raises(RewardError, match=said):
                reward.ready()
            reward.close()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"reply": "word"}, "unknown reply 'word'"),
        ({"low": 5, "high": 5}, "low 5 is not below high 5"),
        ({"token_env": "NOT_SET"}, "NOT_SET is not set"),
        ({"model": None, "url": "nowhere"}, "not an address"),
    ],
)
def test_options(options, said):
    from pcpo.errors import PCPOError

    with pytest.raises(PCPOError, match=said):
        load_reward("vlm_judge", **{"url": "http://127.0.0.1:8000/v1", "model": "judge", **options})
