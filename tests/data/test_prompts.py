"""The label mask, on a Llama-style tokenizer trained here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from clmoe.data.prompts import IGNORE, TEMPLATES, Prompter, find_template
from clmoe.errors import ClmoeError, DataError

from ..model import families

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


def test_a_tasks_own_suffix_is_no_part_of_its_questions(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ours = replace(prompter(llama_tokenizer), suffixes=("A number.", f"Briefly. {SUFFIX}"))
    for suffix in (SUFFIX, "A number.", f"Briefly. {SUFFIX}"):
        assert ours.bare(f"How many?\n{suffix}") == "How many?"
    assert ours.bare("How many?\nA word.") == "How many?\nA word."


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


def unigram() -> PreTrainedTokenizerFast:
    """A Unigram with Metaspace, as T5's and newer Llama conversions are built."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator([*families.CORPUS, "USER: \n ASSISTANT: no,"] * 3, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return families.wrapped(core, unk_token="<unk>", **families.LLAMA_FIELDS)


LLAMAS = {
    "legacy": lambda: families.llama_tokenizer("legacy"),
    "first": lambda: families.llama_tokenizer("first"),
    "unigram": unigram,
}


@pytest.mark.parametrize("kind", sorted(LLAMAS))
@pytest.mark.parametrize("suffix", ["", SUFFIX])
def test_llama_tokenizers_with_vicuna(kind: str, suffix: str) -> None:
    """Every way in which Llama tokenizers put a space before words."""
    tokenizer = LLAMAS[kind]()
    ours = Prompter(
        tokenizer=tokenizer,
        template=TEMPLATES["vicuna_v1"],
        image_token="<image>",
        image_tokens=5,
        suffix=suffix,
    )
    for bare, answer in (*families.QUESTIONS, ("Is it red?", "red, not blue")):
        question = f"{bare}\n{suffix}" if suffix else bare
        encoded = ours.encode([(question, answer)], name="q")
        supervised = [label for label in encoded.labels if label != IGNORE]
        assert tokenizer.decode(supervised) == f"{answer}</s>"
        prompt = ours.prompt(question).input_ids
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.labels[: len(prompt)] == [IGNORE] * len(prompt)
        assert encoded.input_ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(prompt[-1:]).endswith(":")
        own = [i for i, mine in zip(encoded.input_ids, encoded.question, strict=True) if mine]
        assert tokenizer.decode(own).strip() == bare


def test_the_text_of_vicuna_letter_for_letter() -> None:
    """What the tokenizer is given for one turn, and for two as LLaVA-1.5 trains them."""
    seen: list[str] = []
    tokenizer = families.llama_tokenizer()

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: object) -> object:
            seen.append(text)
            return tokenizer(text, **options)

    ours = Prompter(
        tokenizer=Spy(), template=TEMPLATES["vicuna_v1"], image_token="<image>", image_tokens=2
    )
    ours.prompt("Is it red?")
    ours.encode([("Is it red?", "no"), ("What is the man doing?", "skiing")], name="q")
    start = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: "
        "<image><image>\nIs it red? ASSISTANT:"
    )
    assert seen == [start, f"{start} no</s>USER: What is the man doing? ASSISTANT: skiing</s>"]


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<image>"])
def test_special_tokens_in_the_data_are_an_error(text: str) -> None:
    ours = prompter(families.llama_tokenizer())
    for turn in ((f"Is {text} red?", "no"), ("Is it red?", f"no {text}")):
        with pytest.raises(DataError, match="question 7: the text contains a special token"):
            ours.encode([turn], name="question 7")
    with pytest.raises(DataError, match="question 7: the text contains a special token"):
        ours.prompt(f"Is {text} red?", name="question 7")


def test_a_tokenizer_without_end_of_text() -> None:
    tokenizer = families.llama_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ClmoeError, match="no token that could end an answer"):
        prompter(tokenizer).encode([("Is it red?", "no")], name="q")
