"""Small random models of several families, saved to a folder as real ones are.

Each has the configuration class, the chat template's shape and the special tokens of its family,
a tokenizer trained here, and its family's own picture processor (the pillow kind).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)  # fmt: skip

LAYERS = 2
SQUARE = {"height": 16, "width": 16}
QUESTIONS = [
    ("What is the man doing?", "skiing"),
    ("Is it red?", "no"),
    ("How many dogs are there in the picture?", "two dogs"),
]
CORPUS = [
    *(text for pair in QUESTIONS for text in pair),
    "system user model assistant User Assistant USER ASSISTANT You are a helpful assistant.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
    "Answer the question using a single word or phrase. what shape colour is the thing in row",
]


def byte_level(specials: list[str], *, size: int = 420, **fields: Any) -> Any:
    """A byte-level BPE, as Qwen's, SmolVLM's and Llama 3's are."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return wrapped(core, **fields)


def sentencepiece(
    specials: list[str], *, prefix: str, bos: str | None, size: int = 240, **fields: Any
) -> Any:
    """A BPE with byte fallback and "▁" for a space, as Llama's and Gemma's are.

    Args:
        specials: Special tokens, in the order of their ids.
        prefix: "legacy" puts a space before every piece between special tokens (Llama's old
            tokenizer), "first" before the text alone, "never" nowhere (Gemma).
        bos: The token put before every text, or None.
        size: Size of the vocabulary.
        fields: For transformers' tokenizer.
    """
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        steps = [normalizers.Replace(" ", "▁")]
        if prefix == "legacy":
            steps.insert(0, normalizers.Prepend("▁"))
        core.normalizer = normalizers.Sequence(steps)
        core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # to train on words
    strip = [] if prefix == "never" else [decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    core.train_from_iterator(CORPUS * 3, trainer)
    core.model = _with_bytes(core, specials)
    if bos is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, specials.index(bos))]
        )
    return wrapped(core, unk_token="<unk>", **fields)


def _with_bytes(core: Tokenizer, specials: list[str]) -> models.BPE:
    """The trained model with a token for every byte, behind the special tokens."""
    trained = json.loads(core.to_str())["model"]
    pieces = sorted(trained["vocab"], key=trained["vocab"].get)[len(specials) :]
    every = [*specials, *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    return models.BPE(
        vocab={piece: number for number, piece in enumerate(every)},
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )


def wrapped(core: Tokenizer, **fields: Any) -> Any:
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **fields
    )


def llama_text(tokenizer: Any, kind: type = hf.LlamaConfig, **fields: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )


def vision(kind: type, *, patch: int, **fields: Any) -> Any:
    return kind(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=patch,
        **fields,
    )


LLAMA_SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
LLAMA_FIELDS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "extra_special_tokens": {"image_token": "<image>"},
}


def llama_tokenizer(prefix: str = "legacy") -> Any:
    return sentencepiece(LLAMA_SPECIALS, prefix=prefix, bos="<s>", **LLAMA_FIELDS)


def llava(folder: Path) -> None:
    tokenizer = llama_tokenizer()
    config = hf.LlavaConfig(
        vision_config=vision(hf.CLIPVisionConfig, patch=8),
        text_config=llama_text(tokenizer),
        image_token_id=tokenizer.image_token_id,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE)
    hf.LlavaProcessor(
        processor,
        tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    ).save_pretrained(folder)


def llava_next(folder: Path) -> None:
    tokenizer = llama_tokenizer()
    grid = [[16, 32], [32, 16], [32, 32]]
    config = hf.LlavaNextConfig(
        vision_config=vision(hf.CLIPVisionConfig, patch=8),
        text_config=llama_text(tokenizer),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    hf.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    processor = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=grid
    )
    template = (
        "{% for m in messages %}{{ m.role | upper }}: "
        "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    hf.LlavaNextProcessor(
        processor,
        tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=template,
    ).save_pretrained(folder)


QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
QWEN_SPECIALS += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n"
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen(folder: Path, *, model: type, config: type, text: type, vision_fields: Any) -> None:
    tokenizer = byte_level(
        QWEN_SPECIALS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    model(
        config(
            text_config=llama_text(tokenizer, text, rope_parameters=rope),
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "out_hidden_size": 32,
                **vision_fields,
            },
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
        )
    ).save_pretrained(folder)
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    hf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    ).save_pretrained(folder)


def qwen2_5_vl(folder: Path) -> None:
    _qwen(
        folder,
        model=hf.Qwen2_5_VLForConditionalGeneration,
        config=hf.Qwen2_5_VLConfig,
        text=hf.Qwen2_5_VLTextConfig,
        vision_fields={"window_size": 16, "fullatt_block_indexes": [1]},
    )


def qwen3_vl(folder: Path) -> None:
    _qwen(
        folder,
        model=hf.Qwen3VLForConditionalGeneration,
        config=hf.Qwen3VLConfig,
        text=hf.Qwen3VLTextConfig,
        vision_fields={"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    )


IDEFICS_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
IDEFICS_IMAGES = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}


def _idefics(folder: Path, *, model: type, config: type) -> Any:
    """Save the model of Idefics3 or of its successor; return its tokenizer."""
    cells = [f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>"]
    tokenizer = byte_level(
        [*specials, "<image>", "<end_of_utterance>", "<global-img>", *cells],
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    model(
        config(
            text_config=llama_text(tokenizer),
            vision_config=vision(dict, patch=4),
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
    ).save_pretrained(folder)
    return tokenizer


def idefics3(folder: Path) -> None:
    tokenizer = _idefics(
        folder, model=hf.Idefics3ForConditionalGeneration, config=hf.Idefics3Config
    )
    hf.Idefics3Processor(
        hf.Idefics3ImageProcessorPil(**IDEFICS_IMAGES),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    ).save_pretrained(folder)


def smolvlm(folder: Path) -> None:
    tokenizer = _idefics(folder, model=hf.SmolVLMForConditionalGeneration, config=hf.SmolVLMConfig)
    tokenizer.chat_template = IDEFICS_TEMPLATE
    tokenizer.save_pretrained(folder)
    hf.SmolVLMImageProcessorPil(**IDEFICS_IMAGES).save_pretrained(folder)


GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_SPECIALS += ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<image>"]
GEMMA_FIELDS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def gemma3(folder: Path) -> None:
    tokenizer = sentencepiece(
        GEMMA_SPECIALS,
        prefix="never",
        bos="<bos>",
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        **GEMMA_FIELDS,
    )
    config = hf.Gemma3Config(
        text_config=llama_text(tokenizer, hf.Gemma3TextConfig, sliding_window=16),
        vision_config=vision(hf.SiglipVisionConfig, patch=4, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    hf.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{% for p in m.content %}"
        "{{ '<start_of_image>' if p.type == 'image' else p.text | trim }}{% endfor %}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size=SQUARE),
        tokenizer,
        image_seq_length=4,
        chat_template=template,
    ).save_pretrained(folder)


def paligemma(folder: Path) -> None:
    tokenizer = sentencepiece(
        GEMMA_SPECIALS,
        prefix="never",
        bos=None,
        extra_special_tokens={"image_token": "<image>"},
        **GEMMA_FIELDS,
    )
    images = hf.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    config = hf.PaliGemmaConfig(
        text_config=llama_text(tokenizer, hf.GemmaConfig),
        vision_config=vision(hf.SiglipVisionConfig, patch=8, vision_use_head=False),
        image_token_index=tokenizer.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    hf.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "paligemma": paligemma,
}


def make(name: str, folder: Path) -> Path:
    """Save a family's small random model to a new folder."""
    torch.manual_seed(0)
    FAMILIES[name](folder)
    return folder
