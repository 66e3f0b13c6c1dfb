"""Measuring sets: what is compared with what, and what is left out."""

from __future__ import annotations

import pytest
import torch

from pcpo.data.images import save_png
from pcpo.data.prompts import Prompt
from pcpo.errors import EvaluationError, ImageError
from pcpo.evaluation.compare import held_out, is_picture_folder
from pcpo.evaluation.features import OwnFeatures, load_features
from pcpo.evaluation.folder import read_folder
from pcpo.evaluation.measure import BATCH, PictureSet, measure, reference_set
from pcpo.types import RewardResult


def pictures(count, side=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)


def prompted(images, *texts):
    return PictureSet("set", images, tuple(Prompt(text) for text in texts))


def means(images):
    return images.float().mean((2, 3))


MEANS = OwnFeatures("means", means)


@pytest.fixture(scope="module")
def emoji():
    return load_features("emoji_clip")


def test_identical_sets_and_duplicates(emoji):
    one = pictures(1).repeat(6, 1, 1, 1)
    same = prompted(one, *["a"] * 3, *["b"] * 3)
    result = measure(same, [emoji], references=[reference_set(same, [emoji])])
    (features,) = result.features
    (distance,) = features.distances
    assert distance.frechet == pytest.approx(0, abs=1e-9) and distance.kernel == 0
    assert distance.biased and distance.reference_pictures == 6
    assert features.pairwise == pytest.approx(0, abs=1e-9) and features.perceptual == pytest.approx(0, abs=1e-9)
    assert features.vendi == pytest.approx(1, abs=1e-4) and features.inception_score == pytest.approx(1, abs=1e-6)
    assert (features.pairwise_pairs, features.perceptual_pairs, features.captions) == (6, 6, 2)
    assert result.monitors["near_duplicates"] == 1
    assert (result.pictures, result.prompts, result.height, result.width) == (6, 2, 16, 16)


def test_order_of_the_pictures_does_not_matter(emoji):
    images, texts = pictures(2 * BATCH), [f"prompt {n % 7}" for n in range(2 * BATCH)]
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).tolist()
    other = reference_set(prompted(pictures(9, seed=3), *"abcdefghi"), [emoji])
    a = measure(prompted(images, *texts), [emoji], references=[other]).features[0]
    b = measure(prompted(images[shuffled], *[texts[n] for n in shuffled]), [emoji], references=[other]).features[0]
    for name in ("pairwise", "vendi", "alignment", "retrieval", "inception_score"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-5), name
    assert a.distances[0].frechet == pytest.approx(b.distances[0].frechet, rel=1e-5)


def test_vectors_stay_with_their_pictures():
    images = pictures(6)
    mixed = prompted(images, "a", "b", "a", "c", "b", "a")
    seen = measure(mixed, [MEANS], references=[reference_set(PictureSet("same", images), [MEANS])]).features[0]
    assert seen.distances[0].kernel == 0  # paired row by row: only if the order was kept
    assert seen.pairwise_pairs == 3 + 1 and seen.perceptual is None and seen.alignment is None


def test_without_prompts_or_pairs(emoji):
    alone = measure(PictureSet("folder", pictures(4)), [emoji], rewards={"any": lambda *_: [0.0]})
    features = alone.features[0]
    assert alone.rewards == () and alone.prompts == 0
    assert features.pairwise is features.perceptual is features.alignment is features.inception_score is None
    single = measure(prompted(pictures(3), "a", "b", "c"), [emoji]).features[0]
    assert single.pairwise is None and single.perceptual is None and single.pairwise_pairs == 0
    assert single.alignment is not None and 1 <= single.inception_score <= 3
    with pytest.raises(EvaluationError, match=r"folder: 1 picture"):
        measure(PictureSet("folder", pictures(1)), [emoji])


def test_rewards_see_prompts_and_metadata_and_may_abstain():
    def count(images, prompts, metadata):
        values = torch.tensor(
            [float(len(p) + entry.get("extra", 0)) for p, entry in zip(prompts, metadata, strict=True)]
        )
        return RewardResult(values, torch.tensor([p != "none" for p in prompts]))

    prompts = (Prompt("ab"), Prompt("abcd", {"extra": 2}), Prompt("none"))
    (reward,) = measure(PictureSet("set", pictures(3), prompts), [MEANS], rewards={"count": count}).rewards
    assert (reward.reward, reward.mean, reward.std, reward.pictures) == ("count", 4.0, 2.0, 2)
    none = prompted(pictures(2), "none", "none")
    assert measure(none, [MEANS], rewards={"count": count}).rewards[0].mean is None


def test_only_the_first_pictures_of_a_prompt_are_compared_by_stages(emoji):
    many = measure(prompted(pictures(20), *["a"] * 20), [emoji]).features[0]
    assert many.perceptual_pairs == 16 * 15 // 2 and many.pairwise_pairs == 20 * 19 // 2


def write(folder, images, lines=None):
    folder.mkdir()
    for number, image in enumerate(images):
        save_png(image, folder / f"{number:04d}.png")
    if lines is not None:
        (folder / "metadata.jsonl").write_text(lines)
    return folder


def test_a_folder_of_pictures(tmp_path):
    folder = write(tmp_path / "plain", pictures(3))
    save_png(pictures(1)[0], folder / "sheet.png")
    (folder / "notes.txt").write_text("not a picture")
    found = read_folder(folder)
    assert torch.equal(found.images, pictures(3)) and found.prompts is None and is_picture_folder(str(folder))
    lines = '{"file_name": "0002.png", "prompt": "c", "n": 1}\n{"file_name": "0000.png", "prompt": "a"}\n'
    listed = read_folder(write(tmp_path / "listed", pictures(3), lines))
    assert torch.equal(listed.images, pictures(3)[[2, 0]])
    assert [p.text for p in listed.prompts] == ["c", "a"] and listed.prompts[0].metadata == {"n": 1}


def test_pictures_of_other_sizes_are_cropped_and_resized(tmp_path):
    wide = torch.zeros(3, 8, 24, dtype=torch.uint8)
    wide[0, :, 8:16] = 200
    folder = write(tmp_path / "wide", [wide])
    found = read_folder(folder, (16, 16)).images
    assert found.shape == (1, 3, 16, 16) and (found[0, 0] == 200).all() and (found[0, 1:] == 0).all()
    mixed = write(tmp_path / "mixed", [pictures(1)[0], wide])
    assert read_folder(mixed).images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    "lines",
    ["{", "[]", '{"prompt": "a"}', '{"file_name": "0000.png"}', '{"file_name": 1, "prompt": "a"}',
     '{"file_name": "absent.png", "prompt": "a"}', '{"file_name": "../out.png", "prompt": "a"}'],
)  # fmt: skip
def test_broken_metadata(tmp_path, lines):
    save_png(pictures(1)[0], tmp_path / "out.png")
    folder = write(tmp_path / "folder", pictures(1), lines)
    with pytest.raises(EvaluationError, match=r"metadata.jsonl, line 1: cannot be used"):
        read_folder(folder)


def test_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="holds no PNG"):
        read_folder(tmp_path / "empty")
    folder = write(tmp_path / "broken", pictures(1))
    (folder / "0000.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        read_folder(folder)


def test_held_out_prompts():
    training = [Prompt("a"), Prompt("b")]
    assert [p.text for p in held_out([Prompt("b"), Prompt("c")], training)] == ["c"]
    with pytest.raises(EvaluationError, match="training prompts"):
        held_out([Prompt("b")], training)
