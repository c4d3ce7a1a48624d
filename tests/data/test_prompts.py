"""The label mask, on a Llama-style tokenizer trained here."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from clmoe.data.prompts import IGNORE, TEMPLATES, Prompter, find_template
from clmoe.errors import ClmoeError, DataError

SUFFIX = "Answer the question using a single word or phrase."
QUESTIONS = ["What is the man doing?", "Is it red?", "How many dogs are there in the picture?"]


@pytest.fixture(scope="module")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE with SentencePiece's word marker and byte fallback, as Llama's is built."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>", "<image>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    texts = [TEMPLATES["vicuna_v1"].start, SUFFIX, "ASSISTANT: skiing two red dogs"]
    corpus = [*QUESTIONS, *texts] * 3
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=420, special_tokens=specials + bytes_)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def prompter(tokenizer: PreTrainedTokenizerFast, template: str = "vicuna_v1") -> Prompter:
    return Prompter(
        tokenizer=tokenizer,
        template=TEMPLATES[template],
        image_token="<image>",
        image_tokens=5,
        suffix=SUFFIX,
    )


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("answer", ["yes", "red", "two dogs", "crème brûlée", "42"])
def test_supervised_part_is_the_answer_and_its_end(
    llama_tokenizer: PreTrainedTokenizerFast, template: str, answer: str
) -> None:
    ours = prompter(llama_tokenizer, template)
    question = f"{QUESTIONS[0]}\n{SUFFIX}"
    encoded = ours.encode([(question, answer)], name="q")
    supervised = [label for label in encoded.labels if label != IGNORE]
    assert llama_tokenizer.decode(supervised) == f"{answer}</s>"
    assert supervised[-1] == llama_tokenizer.eos_token_id
    prompt = ours.prompt(question)
    assert encoded.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert all(label == IGNORE for label in encoded.labels[: len(prompt.input_ids)])
    assert encoded.input_ids.count(llama_tokenizer.convert_tokens_to_ids("<image>")) == 5
    assert encoded.input_ids[0] == llama_tokenizer.bos_token_id
    assert encoded.input_ids.count(llama_tokenizer.eos_token_id) == 1


def test_vicuna_prompt_is_llavas_byte_for_byte(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    ours = prompter(llama_tokenizer)
    text = llama_tokenizer.decode(ours.prompt("Is it red?").input_ids, skip_special_tokens=False)
    expected = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "Is it red? ASSISTANT:"
    )
    assert text.replace("<s>", "").replace("<image>" * 5, "<image>").strip() == expected


def test_question_mask_is_the_question_without_suffix(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ours = prompter(llama_tokenizer)
    encoded = ours.prompt(f"Is it red?\n{SUFFIX}")
    words = [i for i, own in zip(encoded.input_ids, encoded.question, strict=True) if own]
    assert llama_tokenizer.decode(words).strip() == "Is it red?"
    assert ours.text_only(f"Is it red?\n{SUFFIX}") == llama_tokenizer("Is it red?").input_ids


def test_turns_are_all_supervised(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [(QUESTIONS[0], "skiing"), (QUESTIONS[1], "yes"), (QUESTIONS[2], "two")]
    encoded = prompter(llama_tokenizer).encode(turns, name="q")
    supervised = [label for label in encoded.labels if label != IGNORE]
    assert llama_tokenizer.decode(supervised).replace(" ", "") == "skiing</s>yes</s>two</s>"
    first = prompter(llama_tokenizer).encode(turns[:1], name="q")
    assert encoded.input_ids[: len(first.input_ids)] == first.input_ids


def test_nothing_to_learn_is_an_error(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    ours = prompter(llama_tokenizer)
    with pytest.raises(DataError, match="question 7: an answer is empty"):
        ours.encode([("Is it red?", "  ")], name="question 7")
    with pytest.raises(DataError, match="special token"):
        ours.encode([("Is <image> red?", "no")], name="question 7")


def test_answer_glued_to_the_prompt_is_an_error(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    from dataclasses import replace

    glued = replace(TEMPLATES["short"], after=" ASSIST", gap="")
    ours = replace(prompter(llama_tokenizer), template=glued)
    with pytest.raises(DataError, match="covers both prompt and answer"):
        ours.encode([("Is it red?", "ANT")], name="q")


def test_unknown_template(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ClmoeError, match="unknown prompt template"):
        find_template("vicuna", tokenizer=llama_tokenizer, image_token="<image>")
    with pytest.raises(ClmoeError, match="no chat template"):
        find_template("chat", tokenizer=llama_tokenizer, image_token="<image>")


def test_chat_template_is_cut_around_picture_and_question(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    llama_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} [bot]{% endif %}"
    )
    template = find_template("chat", tokenizer=llama_tokenizer, image_token="<image>")
    assert (template.start, template.between, template.after) == ("[user] ", "\n", " [bot]")
    llama_tokenizer.chat_template = None
