"""Chat templates of several kinds, cut around picture, question and answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clmoe.data.prompts import Prompter, find_template
from clmoe.data.template import Template
from clmoe.errors import ClmoeError

from ..model import families

LLAMA = families.llama_tokenizer()
QWEN = families.byte_level(families.QWEN_SPECIALS, eos_token="<|im_end|>")
PARTS = (
    "{% for m in messages %}[{{ m.role }}] {% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
)


def cut(text: str, tokenizer: object = LLAMA, image: str = "<image>") -> Template:
    return find_template("chat", tokenizer=tokenizer, image_token=image, chat_template=text)


def test_content_as_a_string() -> None:
    text = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} [bot]{% endif %}"
    )
    assert cut(text) == Template("chat", "[user] ", "\n", "[user] ", " [bot]", gap="")


def test_content_as_parts() -> None:
    text = families.QWEN_TEMPLATE
    assert cut(text, QWEN, "<|image_pad|>") == Template(
        "chat",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|>",
        "<|vision_end|>",
        "\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        gap="",
        end="<|im_end|>",
    )


def test_the_tokenizers_own_template_is_the_second_choice() -> None:
    tokenizer = families.byte_level(families.QWEN_SPECIALS, eos_token="<|im_end|>")
    tokenizer.chat_template = families.QWEN_TEMPLATE
    own = find_template("chat", tokenizer=tokenizer, image_token="<|image_pad|>")
    assert own == cut(families.QWEN_TEMPLATE, QWEN, "<|image_pad|>")


def test_a_space_before_the_answer_is_left_to_the_answer() -> None:
    """Both where only training shows it and where the prompt ends with it."""
    end = "{% if add_generation_prompt %}[assistant]{% endif %}"
    after = "{{ '</s>' if m.role == 'assistant' else '' }}{% endfor %}"
    shown = cut(PARTS + after + end)
    assert (shown.after, shown.gap, shown.end) == ("[assistant]", " ", "</s>")
    spaced = cut(PARTS + after + end.replace("[assistant]", "[assistant] "))
    assert spaced == shown


def test_text_that_only_training_shows_belongs_to_the_prompt() -> None:
    """As the empty thought that some templates put before an answer."""
    text = (
        "{% for m in messages %}[{{ m.role }}]{{ '<think></think>' if m.role == 'assistant' }}"
        "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert cut(text).after == "[assistant]<think></think>"


def test_a_template_is_asked_not_to_think() -> None:
    text = (
        PARTS + "{% endfor %}{% if add_generation_prompt %}[assistant]"
        "{{ '<think>' if enable_thinking is not defined or enable_thinking }}{% endif %}"
    )
    assert cut(text).after == "[assistant]"


def test_bos_stays_only_where_the_tokenizer_does_not_add_it() -> None:
    text = "{{ bos_token }}" + PARTS + "{% endfor %}"
    assert cut(text).start == "[user] "
    silent = families.byte_level(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    assert cut(text, silent).start == "<s>[user] "


def test_a_template_for_one_question_only() -> None:
    text = "{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}" + PARTS
    template = cut(text + "{% endfor %}")
    assert template.again is None
    ours = Prompter(tokenizer=LLAMA, template=template, image_token="<image>", image_tokens=1)
    with pytest.raises(ClmoeError, match="the prompt template chat has one question a picture"):
        ours.encode([("Is it red?", "no"), ("Is it red?", "no")], name="q")


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.role }}{% endfor %}",  # no text at all
        "{{ raise_exception('no') }}",
        PARTS + "{% endfor %}<image>",  # two pictures
        "{% for m in messages %}{{ m.content[-1].text }}{% if m.content | length > 1 %}<image>"
        "{% endif %}{% endfor %}",  # the picture behind the question
    ],
)
def test_a_template_that_does_not_show_everything(text: str) -> None:
    with pytest.raises(ClmoeError, match="does not show picture, question and answer") as caught:
        cut(text)
    assert caught.value.hint == "set base.prompt=vicuna_v1 or short"


def test_answers_end_with_the_token_that_ends_a_turn() -> None:
    """Not with the tokenizer's end of text, which Gemma's chats never show."""
    template = cut(families.QWEN_TEMPLATE, QWEN, "<|image_pad|>")
    tokenizer = families.byte_level(families.QWEN_SPECIALS, eos_token="<|endoftext|>")
    ours = Prompter(
        tokenizer=tokenizer, template=template, image_token="<|image_pad|>", image_tokens=1
    )
    assert (ours.end, ours.stops) == ("<|im_end|>", [0, 2])
    assert ours.encode([("Is it red?", "no")], name="q").labels[-1] == 2
    without = replace(ours, template=replace(template, end=None))
    assert (without.end, without.stops) == ("<|endoftext|>", [0])
