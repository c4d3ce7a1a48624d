"""Prompt templates, and which tokens of an encoded conversation are supervised.

A conversation is rendered once as text and encoded once; every token is then classified by the
character it starts at. So the label mask cannot drift from what the tokenizer really does, and a
token that straddles the border between prompt and answer is an error instead of a wrong mask.

Templates: ``vicuna_v1`` is the prompt of LLaVA-1.5 (Liu et al. 2023), ``short`` the one that the
built-in base was pretrained with, ``chat`` the chat template shipped with the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmoe.errors import ClmoeError, DataError

IGNORE = -100  # label of a token without supervision (torch's cross entropy skips it)
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@dataclass(frozen=True, slots=True)
class Template:
    """Text around a question: ``start + image marker + before + question + after + answer``.

    Attributes:
        name: The template's name.
        start: Text before the image marker of the first turn.
        between: Text between the image marker and the question of the first turn.
        again: Text before the question of every later turn.
        after: Text between a question and its answer (the generation prompt ends with it).
        gap: What separates ``after`` from the answer when training.
    """

    name: str
    start: str
    between: str
    again: str
    after: str
    gap: str = " "


TEMPLATES = {
    "short": Template("short", "USER: ", "\n", "USER: ", " ASSISTANT:"),
    "vicuna_v1": Template("vicuna_v1", _VICUNA_SYSTEM + "USER: ", "\n", "USER: ", " ASSISTANT:"),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded conversation.

    Attributes:
        input_ids: Token ids, special tokens and image tokens included.
        labels: The ids to predict (aligned with ``input_ids``, not shifted), else ``IGNORE``.
        question: Whether each token belongs to a question's own words (suffix excluded).
    """

    input_ids: list[int]
    labels: list[int]
    question: list[bool]


@dataclass(frozen=True)
class Prompter:
    """Renders and encodes conversations for one base model.

    Attributes:
        tokenizer: A fast tokenizer (character offsets are needed).
        template: The text around questions.
        image_token: The marker that stands for one image feature.
        image_tokens: How many features one picture gives (the marker is repeated so often).
        suffix: Instruction suffix of the source; part of the prompt, not of the question.
    """

    tokenizer: Any
    template: Template
    image_token: str
    image_tokens: int
    suffix: str = ""

    def encode(self, turns: Sequence[tuple[str, str]], *, name: str) -> Encoded:
        """Encode question-answer turns about one picture for training.

        Args:
            turns: Questions with their answers, in order; loss is on every answer and its EOS.
            name: What to call this sample in an error.

        Raises:
            DataError: A sample without a supervised token, or a token that straddles an answer.
        """
        if not turns or any(not answer.strip() for _, answer in turns):
            raise DataError(f"{name}: an answer is empty, so nothing would be learned from it")
        pieces = self._pieces(turns, name=name)
        encoded = self._tokens(pieces, name=name)
        if all(label == IGNORE for label in encoded.labels):
            raise DataError(f"{name}: no token of the answer is supervised: {turns[-1][1]!r}")
        return encoded

    def prompt(self, question: str, *, name: str = "prompt") -> Encoded:
        """Encode the prompt that an answer is generated from (a prefix of `encode`'s tokens)."""
        return self._tokens(self._pieces([(question, None)], name=name), name=name)

    def text_only(self, question: str) -> list[int]:
        """Ids of BOS (where the tokenizer has one) and a question's own words, for F(x) of Eq 7."""
        return list(self.tokenizer(self.bare(question)).input_ids)

    def bare(self, question: str) -> str:
        """Return the question without the source's instruction suffix."""
        return question.removesuffix(self.suffix).rstrip() if self.suffix else question

    def _pieces(
        self, turns: Sequence[tuple[str, str | None]], *, name: str
    ) -> list[tuple[str, str]]:
        """Text with its kind (frame, question or answer); a turn without answer ends the text."""
        template, eos = self.template, str(self.tokenizer.eos_token)
        pieces = []
        for number, (question, answer) in enumerate(turns):
            if any(marker in question + (answer or "") for marker in (self.image_token, eos)):
                raise DataError(f"{name}: the text contains a special token of the base model")
            bare = self.bare(question)
            picture = template.start + self.image_token * self.image_tokens + template.between
            pieces.append((picture if number == 0 else template.again, "frame"))
            pieces.append((bare, "question"))
            pieces.append((question[len(bare) :] + template.after, "frame"))
            if answer is not None:
                pieces.append((template.gap + answer + eos, "answer"))
        return pieces

    def _tokens(self, pieces: Sequence[tuple[str, str]], *, name: str) -> Encoded:
        kinds: list[str] = []
        for text, kind in pieces:
            kinds += [kind] * len(text)
        batch = self.tokenizer(
            "".join(text for text, _ in pieces), return_offsets_mapping=True, truncation=False
        )
        ids: list[int] = []
        labels: list[int] = []
        question: list[bool] = []
        for token, (start, end) in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            if end > len(kinds) or (start == end and ids and start == 0):
                continue  # an EOS that the tokenizer appends by itself: the answer has its own
            inside = set(kinds[start:end])
            if "answer" in inside and len(inside) > 1:
                raise DataError(
                    f"{name}: a token covers both prompt and answer",
                    hint="choose another base.prompt: this tokenizer joins the template's last "
                    "characters with the answer",
                )
            kind = kinds[start] if start < end else "frame"
            ids.append(token)
            labels.append(token if kind == "answer" else IGNORE)
            question.append(kind == "question")
        return Encoded(ids, labels, question)


def find_template(name: str, *, tokenizer: Any, image_token: str) -> Template:
    """Return a named template, or the base's own chat template cut around image and question.

    Raises:
        ClmoeError: The name is unknown, or the base has no chat template.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name != "chat":
        known = ", ".join([*TEMPLATES, "chat"])
        raise ClmoeError(f"unknown prompt template {name!r}", hint=f"base.prompt is one of {known}")
    if not getattr(tokenizer, "chat_template", None):
        raise ClmoeError(
            "this base model has no chat template",
            hint="set base.prompt=vicuna_v1 for LLaVA-1.5-like models",
        )
    marker = "QUESTION-GOES-HERE"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{image_token}\n{marker}"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    if text.count(marker) != 1 or text.count(image_token) != 1:
        raise ClmoeError(
            "this base model's chat template does not show image and question once each",
            hint="set base.prompt=vicuna_v1 or short",
        )
    text = text.removeprefix(tokenizer.bos_token or "")  # the tokenizer adds it
    start, rest = text.split(image_token)
    between, after = rest.split(marker)
    return Template("chat", start, between, start, after, gap="")
