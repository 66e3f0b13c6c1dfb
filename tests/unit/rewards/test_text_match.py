import shutil
import string

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pcpo.errors import RewardError
from pcpo.rewards import check_reward, load_reward
from pcpo.rewards.base import evaluate
from pcpo.rewards.checker import PROMPTS, probe_pictures
from pcpo.rewards.text_match import TextMatch, bert_score


def bert_tokenizer():
    from transformers import BertTokenizer

    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from transformers import BertConfig, BertModel

    folder, tokenizer = tmp_path_factory.mktemp("tiny-bert"), bert_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder, tokenizer = tmp_path_factory.mktemp("tiny-blip"), bert_tokenizer()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**size, **ids, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "initializer_range": 0.8}
    vision = {**size, "image_size": 32, "patch_size": 16, "initializer_range": 0.8}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(captioner, encoder):
    return TextMatch(captioner, encoder, batch_size=4, max_new_tokens=8)


def naive(encoder, caption, sentence):
    """Recall, precision and F1 by a double loop over the tokens of two texts."""
    from transformers import AutoModel

    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), bert_tokenizer()
    with torch.no_grad():
        a, b = (
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1] for text in (caption, sentence)
        )
    recall = sum(max(float(F.cosine_similarity(x, y, dim=0)) for x in a) for y in b) / len(b)
    precision = sum(max(float(F.cosine_similarity(x, y, dim=0)) for y in b) for x in a) / len(a)
    return recall, precision, 2 * recall * precision / (recall + precision)


def test_equals_the_definition(reward, encoder):
    images = probe_pictures()
    result = evaluate(reward, images, PROMPTS, [{}] * 6)
    captions = [*reward.captions(images[:4]), *reward.captions(images[4:])]
    assert len(set(captions)) > 1 and all(captions)
    for n, caption in enumerate(captions):
        expected = naive(encoder, caption, f"The image contains {PROMPTS[n]}")
        found = [result.info[name][n].item() for name in ("recall", "precision", "f1")]
        assert found == pytest.approx(expected, abs=1e-5)
    assert torch.equal(result.values, result.info["recall"])


def test_captions_are_those_of_the_model(reward, captioner):
    from transformers import BlipForConditionalGeneration

    pixels = reward.processor(images=[Image.new("RGB", (64, 64), "red")], return_tensors="pt")
    model = BlipForConditionalGeneration.from_pretrained(captioner).eval()
    expected = bert_tokenizer().decode(model.generate(**pixels, max_new_tokens=8)[0], skip_special_tokens=True)
    red = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    red[:, 0] = 255
    assert reward.captions(red) == [expected.strip()]


def test_passes_the_checker(reward):
    assert [f for f in check_reward(reward) if not f.startswith("constant")] == []


def test_the_other_scores_and_sentences(captioner, encoder, reward):
    options = {"captioner": str(captioner), "encoder": str(encoder), "max_new_tokens": 8}
    other = load_reward("text_match", **options, score="f1")
    given = probe_pictures(), PROMPTS, [{}] * 6
    assert torch.equal(evaluate(other, *given).values, evaluate(reward, *given).info["f1"])
    with pytest.raises(RewardError, match=r"score 'bleu' -> use one of: recall, precision, f1"):
        load_reward("text_match", **options, score="bleu")
    with pytest.raises(RewardError, match=r"write \{prompt\} where the prompt goes"):
        load_reward("text_match", **options, reference="a picture")


def test_laws_of_the_score():
    x = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert bert_score(x, x) == pytest.approx((1, 1, 1))
    assert bert_score(x, x[:2])[0] == pytest.approx(1) and bert_score(x, x[:2])[1] < 1
    recall, precision, f1 = bert_score(x[:2], x[2:])
    assert bert_score(x[2:], x[:2]) == pytest.approx((precision, recall, f1))
    assert bert_score(x, x[:0]) == bert_score(x[:0], x) == (0, 0, 0)


def test_wrong_models_are_named(captioner, encoder, tmp_path):
    with pytest.raises(RewardError, match=r"captioner .*cannot be loaded"):
        TextMatch(encoder, encoder)
    with pytest.raises(RewardError, match=r"text encoder 'owner/none'.*the hub did not give the model"):
        TextMatch(captioner, "owner/none")
    bare = shutil.copytree(encoder, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(RewardError, match=r"text encoder .*the tokenizer has no vocabulary"):
        TextMatch(captioner, bare)
