"""Text match: a captioner says what it sees, BERTScore compares that with the prompt (DDPO, 2305.13301)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcpo.data.images import to_pil
from pcpo.errors import RewardError
from pcpo.rewards.loading import is_local, load_model, load_tokenizer, loading

SCORES = ("recall", "precision", "f1")
QUESTION = "Answer concisely: what is going on in this image?"
REFERENCE = "The image contains {prompt}"


class TextMatch:
    """BERTScore (1904.09675) of a caption of the picture against a sentence made of the prompt, at most 1.

    captioner       image-to-text model: folder or hub id of any class of transformers' AutoModelForImageTextToText
                    with its processor (BLIP, LLaVA, Qwen-VL, ...)
    encoder         text encoder with its tokenizer: folder or hub id (MiniLM, DeBERTa, ...)
    score           recall (DDPO's choice), precision or f1; the other two are reported beside it
    question        what the captioner is asked, if it takes chats; others caption unasked
    reference       the sentence; {prompt} stands for the prompt
    max_new_tokens  longest caption; decoding is greedy, so the score is deterministic
    device, batch_size (pictures captioned at a time), dtype  as of clip_score

    Weights are read from safetensors only. Raises RewardError for a model that is missing, out of reach or of another
    kind, and for options out of range.
    """

    def __init__(
        self,
        captioner: str | os.PathLike[str],
        encoder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        batch_size: int = 16,
        dtype: str = "float32",
        score: str = "recall",
        question: str = QUESTION,
        reference: str = REFERENCE,
        max_new_tokens: int = 40,
    ) -> None:
        from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

        if score not in SCORES:
            raise RewardError(f"score {score!r}", where="text_match", fix=f"use one of: {', '.join(SCORES)}")
        if "{prompt}" not in reference:
            raise RewardError(
                f"reference {reference!r}", where="text_match", fix="write {prompt} where the prompt goes"
            )
        self.device, self.batch_size, self.score = torch.device(device), batch_size, score
        self.question, self.reference, self.max_new_tokens = question, reference, max_new_tokens
        name, where = str(encoder), f"text encoder {str(encoder)!r}"
        needs = "config.json, model.safetensors and tokenizer"
        self.tokenizer = load_tokenizer(name, where, needs)
        self.encoder = load_model(AutoModel, name, dtype, where, needs).to(self.device)
        name, where = str(captioner), f"captioner {str(captioner)!r}"
        needs = "config.json, model.safetensors and processor of an image-to-text model"
        local = is_local(name, where)
        with loading(where, needs, local):
            self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, local_files_only=local)
        self.captioner = load_model(AutoModelForImageTextToText, name, dtype, where, needs).to(self.device)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images uint8 [B, 3, H, W]; returns [B] float32 and the three scores by name."""
        captions = [caption for part in images.split(self.batch_size) for caption in self.captions(part)]
        rows = [
            bert_score(self.embed(caption), self.embed(self.reference.replace("{prompt}", prompt)))
            for caption, prompt in zip(captions, prompts, strict=True)
        ]
        columns = torch.tensor(rows).view(-1, len(SCORES)).unbind(1)
        info = dict(zip(SCORES, columns, strict=True))
        return info[self.score], info

    @torch.no_grad()
    def captions(self, images: Tensor) -> list[str]:
        """One caption per picture of uint8 [B, 3, H, W]."""
        pictures = [to_pil(image) for image in images]
        chat = getattr(self.processor, "chat_template", None) is not None
        given: dict[str, Any] = {"images": pictures}
        if chat:
            content = [{"type": "image"}, {"type": "text", "text": self.question}]
            message = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            given["text"] = [text] * len(pictures)
        inputs = self.processor(**given, return_tensors="pt").to(self.device, self.captioner.dtype)
        tokens = self.captioner.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        start = inputs["input_ids"].shape[1] if chat else 0  # a chat model repeats the question
        return [text.strip() for text in self.processor.batch_decode(tokens[:, start:], skip_special_tokens=True)]

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """Unit vectors [tokens, d] float32 of a text's own tokens: without begin, end and padding."""
        tokens = self.tokenizer(text, truncation=True, return_special_tokens_mask=True, return_tensors="pt")
        special = tokens.pop("special_tokens_mask")[0].bool()
        hidden = self.encoder(**tokens.to(self.device)).last_hidden_state[0].float().cpu()
        return F.normalize(hidden[~special], dim=-1)


def bert_score(candidate: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """(recall, precision, F1) of unit token vectors [c, d] and [r, d]: every token meets its most similar one.

    recall = mean_r max_c cos, precision = mean_c max_r cos; all 0 when one side has no token.
    """
    if len(candidate) == 0 or len(reference) == 0:
        return 0.0, 0.0, 0.0
    cosine = reference @ candidate.T
    recall, precision = float(cosine.amax(1).mean()), float(cosine.amax(0).mean())
    total = recall + precision
    return recall, precision, 2 * recall * precision / total if total else 0.0


__all__ = ["TextMatch", "bert_score"]
