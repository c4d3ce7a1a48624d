"""A base model's own chat template, cut around picture, question and answer.

The template is rendered with markers in their places. What stands between them is the text of every
prompt, so later nothing is rendered again, and training and generation cannot differ. A system
prompt that the template puts in by itself stays.
"""

from __future__ import annotations

from typing import Any

from clmoe.data.template import Template
from clmoe.errors import ClmoeError

_QUESTION, _ANSWER, _AGAIN = "QUESTION-GOES-HERE", "ANSWER-GOES-HERE", "LATER-ONE-GOES-HERE"


def cut_chat_template(template: str | None, *, tokenizer: Any, image_token: str) -> Template:
    """Return the text that a chat template puts around a question and its answer.

    The answer ends with the token that the template ends a turn with, else with the tokenizer's end
    of text. What the template puts before an answer only when training belongs to the prompt,
    unless it is a space, which tokenizers join with the answer's first word.

    Args:
        template: The chat template (Jinja).
        tokenizer: The base's tokenizer, which renders it.
        image_token: What the template shows where a picture is.

    Raises:
        ClmoeError: There is none, or it does not show picture, question and answer in this order.
    """
    if not template:
        raise ClmoeError(
            "this base model has no chat template",
            hint="set base.prompt=vicuna_v1 for LLaVA-1.5-like models",
        )
    as_text = f"{image_token}\n{{}}".format  # for templates that know of no pictures
    for first, answer, question in (
        (_shown, _parts, _parts),
        (_shown, str, _parts),
        (as_text, str, str),
    ):
        asked = [{"role": "user", "content": first(_QUESTION)}]
        answered = [*asked, {"role": "assistant", "content": answer(_ANSWER)}]
        later = [*answered, {"role": "user", "content": question(_AGAIN)}]
        prompt = _cut(_render(template, tokenizer, asked, prompt=True), image_token, _QUESTION)
        whole = _cut(_render(template, tokenizer, answered), image_token, _QUESTION, _ANSWER)
        if prompt is not None and whole is not None:
            more = _render(template, tokenizer, later, prompt=True)
            again = _cut(more, image_token, _QUESTION, _ANSWER, _AGAIN)
            return _template(prompt, whole, None if again is None else again[3], tokenizer)
    raise ClmoeError(
        "this base model's chat template does not show picture, question and answer once each, in "
        "this order",
        hint="set base.prompt=vicuna_v1 or short",
    )


def _parts(text: str) -> object:
    return [{"type": "text", "text": text}]


def _shown(text: str) -> object:
    return [{"type": "image"}, {"type": "text", "text": text}]


def _render(
    template: str, tokenizer: Any, messages: list[dict[str, object]], *, prompt: bool = False
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
                enable_thinking=False,
            )
        )
    except Exception:  # a template raises whatever it likes at messages that it does not know
        return ""


def _cut(text: str, *markers: str) -> list[str] | None:
    """Return the text around the markers, or None where they are not there once each, in order."""
    if any(text.count(marker) != 1 for marker in markers):
        return None
    pieces = []
    for marker in markers:
        before, found, text = text.partition(marker)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def _template(prompt: list[str], whole: list[str], again: str | None, tokenizer: Any) -> Template:
    start, between, after = prompt
    if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        start = start.removeprefix(tokenizer.bos_token)  # the tokenizer adds it
    gap = whole[2].removeprefix(after) if whole[2].startswith(after) else ""
    if gap.strip():
        after, gap = after + gap, ""
    if not gap:
        gap = after[len(after.rstrip(" ")) :]
        after = after.rstrip(" ")
    end = _end(whole[3], tokenizer)
    if again is not None and end is not None:
        again = again.lstrip().removeprefix(end)
    return Template("chat", start, between, again, after, gap=gap, end=end)


def _end(rest: str, tokenizer: Any) -> str | None:
    """Return the token that follows an answer, or None where the template has none there."""
    tokens = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    return max((t for t in tokens if rest.lstrip().startswith(t)), key=len, default=None)
