"""The built-in base model: a LLaVA small enough to train and run on a laptop's CPU.

A `LlavaForConditionalGeneration` made of a CLIP vision tower for 48x48 pictures (nine patches of
16 pixels, one image token each), a two-layer projector and a Llama decoder, with a byte-level BPE
tokenizer, so that it can say any word. `tiny_folder` is where its trained weights are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
PICTURE_SIDE = 48
PATCH_SIDE = 16
IMAGE_TOKENS = (PICTURE_SIDE // PATCH_SIDE) ** 2
VOCABULARY = 896
MAX_POSITIONS = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:"
    "{% else %}{% for part in message['content'] %} {{ part['text'] }}{% endfor %}</s>{% endif %}"
    "{% endfor %}"
)


def tiny_folder() -> Path:
    """The folder of the trained built-in base, as `from_pretrained` reads it."""
    return Path(__file__).resolve().parent.parent / "assets" / "tiny_llava"


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that gives the frequent words of `texts` one token each.

    Every text can be encoded: bytes that were never seen are tokens of their own. BOS is put in
    front, EOS is not appended, and padding is on the left.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """The image processor: RGB, resized to 48x48, scaled to [-1, 1]; it needs pillow only."""
    return CLIPImageProcessorPil(
        do_resize=True,
        size={"height": PICTURE_SIDE, "width": PICTURE_SIDE},
        do_center_crop=False,
        crop_size={"height": PICTURE_SIDE, "width": PICTURE_SIDE},
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor that joins the tokenizer and the image processor."""
    return LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The untrained model for `tokenizer`, in float32; seed torch first to make it repeatable."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=96,
        image_size=PICTURE_SIDE,
        patch_size=PATCH_SIDE,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=128**-0.5,  # the usual 0.02 is for wider models: attention starts flat
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
