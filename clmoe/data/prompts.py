"""Prompt templates, and which tokens of an encoded conversation are supervised.

A conversation is rendered once as text and encoded once; every token is then classified by the
character it starts at. So the label mask cannot drift from what the tokenizer really does, and a
token that straddles the border between prompt and answer is an error instead of a wrong mask.

Templates: ``vicuna_v1`` is the prompt of LLaVA-1.5 (Liu et al. 2023), ``short`` the one that the
built-in base was pretrained with, ``paligemma`` that of PaliGemma (Beyer et al. 2024), ``chat`` the
chat template shipped with the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clmoe.data.chat import cut_chat_template
from clmoe.data.template import Template
from clmoe.errors import ClmoeError, DataError

IGNORE = -100  # label of a token without supervision (torch's cross entropy skips it)
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


TEMPLATES = {
    "short": Template("short", "USER: ", "\n", "USER: ", " ASSISTANT:"),
    "vicuna_v1": Template("vicuna_v1", _VICUNA_SYSTEM + "USER: ", "\n", "USER: ", " ASSISTANT:"),
    "paligemma": Template("paligemma", "", "", None, "\n", gap=""),
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
        image_tokens: How many features one picture gives (the marker is repeated so often); None
            where that depends on the picture, so that every call has to say what stands for it.
        suffix: Instruction suffix of the source; part of the prompt, not of the question.
        suffixes: Suffixes of single tasks, where tasks are known.
    """

    tokenizer: Any
    template: Template
    image_token: str
    image_tokens: int | None
    suffix: str = ""
    suffixes: tuple[str, ...] = ()

    @cached_property
    def end(self) -> str:
        """What ends an answer: the template's own token, else the tokenizer's end of text.

        Raises:
            ClmoeError: There is neither.
        """
        token = self.template.end or self.tokenizer.eos_token
        if token is None:
            raise ClmoeError("this base model's tokenizer has no token that could end an answer")
        return str(token)

    @cached_property
    def stops(self) -> list[int]:
        """Ids of the tokens that end an answer: `end`, and the end of text."""
        tokens = {self.end, self.tokenizer.eos_token or self.end}
        return sorted(self.tokenizer.convert_tokens_to_ids(list(tokens)))

    def encode(
        self, turns: Sequence[tuple[str, str]], *, name: str, picture: str | None = None
    ) -> Encoded:
        """Encode question-answer turns about one picture for training.

        Args:
            turns: Questions with their answers, in order; loss is on every answer and its end.
            name: What to call this sample in an error.
            picture: What stands for the picture (`Pictures.text`); None: the same for all.

        Raises:
            DataError: A sample without a supervised token, or a token that straddles an answer.
        """
        if not turns or any(not answer.strip() for _, answer in turns):
            raise DataError(f"{name}: an answer is empty, so nothing would be learned from it")
        pieces = self._pieces(turns, name=name, picture=picture)
        encoded = self._tokens(pieces, name=name)
        if all(label == IGNORE for label in encoded.labels):
            raise DataError(f"{name}: no token of the answer is supervised: {turns[-1][1]!r}")
        return encoded

    def prompt(self, question: str, *, name: str = "prompt", picture: str | None = None) -> Encoded:
        """Encode the prompt that an answer is generated from (a prefix of `encode`'s tokens)."""
        pieces = self._pieces([(question, None)], name=name, picture=picture)
        return self._tokens(pieces, name=name)

    def text_only(self, question: str) -> list[int]:
        """Ids of BOS (where the tokenizer has one) and a question's own words, for F(x) of Eq 7."""
        return list(self.tokenizer(self.bare(question)).input_ids)

    def bare(self, question: str) -> str:
        """Return the question without the source's, or its task's, instruction suffix."""
        for suffix in sorted((self.suffix, *self.suffixes), key=len, reverse=True):
            if suffix and question.endswith(suffix):
                return question.removesuffix(suffix).rstrip()
        return question

    @cached_property
    def _special(self) -> dict[int, str]:
        """Special tokens by id, none of which a question or an answer may contain as text."""
        tokenizer = self.tokenizer
        added = {
            n: token.content for n, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        return added | dict(
            zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        )

    def _pieces(
        self, turns: Sequence[tuple[str, str | None]], *, name: str, picture: str | None
    ) -> list[tuple[str, str]]:
        """Text with its kind: frame, question, answer or end; without answer, no end."""
        template = self.template
        if picture is None:
            assert self.image_tokens is not None, "this base has no text for pictures of all sizes"
            picture = self.image_token * self.image_tokens
        if len(turns) > 1 and template.again is None:
            raise ClmoeError(
                f"the prompt template {template.name} has one question a picture",
                hint="set data.turns=question",
            )
        pieces = []
        for number, (question, answer) in enumerate(turns):
            bare = self.bare(question)
            first = template.start + picture + template.between
            pieces.append((first if number == 0 else template.again or "", "frame"))
            pieces.append((bare, "question"))
            pieces.append((question[len(bare) :] + template.after, "frame"))
            if answer is not None:
                pieces.append((template.gap + answer, "answer"))
                pieces.append((self.end, "end"))
        return pieces

    def _tokens(self, pieces: Sequence[tuple[str, str]], *, name: str) -> Encoded:
        kinds: list[str] = []
        for text, kind in pieces:
            kinds += [kind] * len(text)
        whole = "".join(text for text, _ in pieces)
        batch = self.tokenizer(whole, return_offsets_mapping=True, truncation=False)
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
            # A special token may also stand for other text, as the unknown token does.
            if kind in ("question", "answer") and whole[start:end] == self._special.get(token):
                raise DataError(f"{name}: the text contains a special token of the base model")
            ids.append(token)
            labels.append(token if kind in ("answer", "end") else IGNORE)
            question.append(kind == "question")
        return Encoded(ids, labels, question)


def find_template(
    name: str, *, tokenizer: Any, image_token: str, chat_template: str | None = None
) -> Template:
    """Return a named template, or the base's own chat template cut around picture and question.

    Args:
        name: Of `TEMPLATES`, or "chat".
        tokenizer: The base's tokenizer.
        image_token: What the chat template shows where a picture is.
        chat_template: The chat template shipped with the base; None: the tokenizer's.

    Raises:
        ClmoeError: The name is unknown, or the base has no chat template, or one that does not
            show picture, question and answer.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name != "chat":
        known = ", ".join([*TEMPLATES, "chat"])
        raise ClmoeError(f"unknown prompt template {name!r}", hint=f"base.prompt is one of {known}")
    return cut_chat_template(
        chat_template or getattr(tokenizer, "chat_template", None),
        tokenizer=tokenizer,
        image_token=image_token,
    )
