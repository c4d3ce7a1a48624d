"""Every family of vision-language model, small and random: load, train, save, route, answer.

Qwen's and SmolVLM's processors cannot be made where torchvision is missing (SmolVLM's also needs
num2words), because of their video half. For these families the tests load the real processor class
with the pillow picture processor, the tokenizer, and no video processor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from clmoe.data.batches import Batch, collate
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.evaluation.features import question_features
from clmoe.evaluation.generate import generate_answers
from clmoe.model.adapter_file import load_adapter, save_adapter
from clmoe.model.backbone import Backbone, load_backbone
from clmoe.model.checkpointing import enable_checkpointing
from clmoe.model.config import ClmoeConfig
from clmoe.model.control import record_gates, router_names
from clmoe.model.pictures import Pictures, make_prompter, picture_inputs
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Base, Train
from clmoe.training.answer_loss import AnswerLoss
from clmoe.training.loop import train_adapter

from .families import FAMILIES, LAYERS, QUESTIONS

SIZES = [(40, 20), (20, 20), (10, 50)]
VICUNA = (
    "<s> A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions. USER: "
)
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
)
# The prompt for the first question, whose picture is 40 x 20, and what ends an answer.
PROMPTS = {
    "llava": (f"{VICUNA}{'<image>' * 4} \nWhat is the man doing? ASSISTANT:", "</s>"),
    "llava_next": (f"<s> USER: {'<image>' * 14} \nWhat is the man doing? ASSISTANT:", "</s>"),
    "qwen2_5_vl": (
        f"{QWEN}{'<|image_pad|>' * 10}<|vision_end|>What is the man doing?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "idefics3": (
        f"<|im_start|>User:<fake_token_around_image><row_1_col_1>{'<image>' * 4}"
        f"<fake_token_around_image><row_1_col_2>{'<image>' * 4}\n\n<fake_token_around_image>"
        f"<global-img>{'<image>' * 4}<fake_token_around_image>What is the man doing?"
        "<end_of_utterance>\nAssistant:",
        "<end_of_utterance>",
    ),
    "gemma3": (
        f"<bos><start_of_turn>user\n\n\n<start_of_image>{'<image_soft_token>' * 4}<end_of_image>"
        "\n\nWhat is the man doing?<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "paligemma": (f"{'<image>' * 4}<bos>What is the man doing?\n", "<eos>"),
}
PROMPTS["qwen3_vl"] = PROMPTS["qwen2_5_vl"]
PROMPTS["smolvlm"] = PROMPTS["idefics3"]


class Asked:
    """A family's base with six questions about pictures of three sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = load_backbone(Base(model=str(folder)))
        self.prompter = make_prompter(self.base, suffix="")
        noise = torch.Generator().manual_seed(0)
        self.images = [
            Image.fromarray(
                torch.randint(0, 256, (h, w, 3), generator=noise, dtype=torch.uint8).numpy()
            )
            for w, h in SIZES * 2
        ]
        self.turns = [QUESTIONS[(i + i // 3) % 3] for i in range(6)]

    def text(self, row: int) -> str | None:
        pictures = self.base.pictures
        return None if pictures is None else pictures.text(self.images[row].size)

    def encoded(self) -> list[Encoded]:
        return [
            self.prompter.encode([turn], name=str(row), picture=self.text(row))
            for row, turn in enumerate(self.turns)
        ]

    def prompts(self) -> list[Encoded]:
        return [
            self.prompter.prompt(question, picture=self.text(row))
            for row, (question, _) in enumerate(self.turns)
        ]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return picture_inputs(self.base, batch, images=[self.images[r] for r in batch.rows])

    def batch(self, samples: list[Encoded], rows: list[int], *, left: bool = False) -> Batch:
        pad = self.base.tokenizer.pad_token_id
        return collate([samples[row] for row in rows], rows=rows, pad=pad, left=left)


@pytest.fixture(params=sorted(FAMILIES))
def asked(
    request: pytest.FixtureRequest, folders: Callable[[str], Path], without_video: None
) -> Asked:
    return Asked(folders(request.param))


def adapted(base: Backbone, **fields: Any) -> Any:
    return attach(base.model, ClmoeConfig(**{"experts": 4, "r": 8, "alpha": 16.0, **fields}))


def test_prompt_and_supervised_part(asked: Asked) -> None:
    """The prompt letter for letter; the loss is on the answer and on a token that ends it."""
    wanted, end = PROMPTS[asked.folder.name]
    tokenizer = asked.base.tokenizer
    assert tokenizer.decode(asked.prompts()[0].input_ids) == wanted
    lengths = set()
    for sample, prompt, (_, answer) in zip(
        asked.encoded(), asked.prompts(), asked.turns, strict=True
    ):
        supervised = [label for label in sample.labels if label != IGNORE]
        # A space that parts prompt and answer belongs to the answer's first token.
        decoded = tokenizer.decode(supervised).removeprefix(asked.prompter.template.gap)
        assert decoded == f"{answer}{end}"
        assert supervised[-1] in asked.prompter.stops
        assert sample.input_ids[: len(prompt.input_ids)] == prompt.input_ids
        assert sample.labels[: len(prompt.input_ids)] == [IGNORE] * len(prompt.input_ids)
        lengths.add(sample.input_ids.count(asked.base.image_token_id))
    fixed = asked.folder.name in ("llava", "gemma3", "paligemma")
    assert (len(lengths) == 1) == fixed


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # PaliGemma's processor
def test_prompt_is_what_the_models_own_processor_makes(asked: Asked) -> None:
    """Ids and every tensor, against the processor given the rendered chat and the picture."""
    if asked.base.pictures is None:
        pytest.skip("LLaVA-1.5's prompt is not its processor's")
    processor = asked.base.pictures._processor
    for row, (question, _) in enumerate(asked.turns[:3]):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = f"{asked.base.pictures.marker}{question}"  # PaliGemma has no chat template
        if asked.base.chat_template:
            text = processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=processor.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            ).removeprefix("<bos>")  # in Gemma 3, template and tokenizer both add it
        wanted = processor(images=[[asked.images[row]]], text=[text], return_tensors="pt")
        got = asked.inputs(asked.batch(asked.prompts(), [row]))
        wanted.pop("labels", None)
        assert got.keys() == wanted.keys()
        for key, tensor in got.items():
            assert torch.equal(tensor, wanted[key]), key


def test_experts_are_on_every_decoder_mlp_and_nowhere_else(asked: Asked) -> None:
    model = adapted(asked.base)
    config = asked.base.model.config.get_text_config()
    adapted_linears = [n for n, m in model.named_modules() if type(m).__name__ == "MixtureLinear"]
    assert len(adapted_linears) == 3 * config.num_hidden_layers == 3 * LAYERS
    decoder = asked.base.model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    assert all(id(model.get_submodule(name)) in inside for name in adapted_linears)
    assert not any("vision" in name or "visual" in name for name in adapted_linears)
    n, r, hidden, wide = 4, 8, config.hidden_size, config.intermediate_size
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == LAYERS * (3 * r * (hidden + wide) + n * hidden)


def test_training_lowers_the_loss_and_the_adapter_comes_back(asked: Asked, tmp_path: Path) -> None:
    model = adapted(asked.base)
    samples = asked.encoded()
    settings = Train(lr=2e-2, batch_size=3, epochs=8.0, checkpoint_every=0)
    log = train_adapter(
        model,
        samples=samples,
        inputs=asked.inputs,
        settings=settings,
        pad=asked.base.tokenizer.pad_token_id,
        label="test",
    )
    assert log.losses[-1] < 0.7 * log.losses[0]
    save_adapter(model, tmp_path / "adapter")
    fresh = load_adapter(load_backbone(Base(model=str(asked.folder))).model, tmp_path / "adapter")
    fresh.eval()
    fed = asked.inputs(asked.batch(samples, [0, 1, 2]))
    with torch.no_grad():
        trained, loaded = model.eval()(**fed).logits, fresh(**fed).logits
        with model.disable_adapter():
            bare = model(**fed).logits
    assert torch.equal(trained, loaded)
    assert not torch.allclose(trained, bare, atol=1e-2)


def test_loss_is_the_cross_entropy_of_the_models_own_logits(
    asked: Asked, randomize: Callable[..., None]
) -> None:
    model = adapted(asked.base)
    randomize(model)
    batch = asked.batch(asked.encoded(), [0, 1, 2])
    fed = asked.inputs(batch)
    with torch.no_grad():
        got = AnswerLoss(model)(fed, batch.labels)
        logits = model.get_base_model()(**fed).logits
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    AnswerLoss(model).check(fed, batch.labels)


def test_checkpointing_changes_no_gradient(asked: Asked, randomize: Callable[..., None]) -> None:
    model = adapted(asked.base).train()
    randomize(model)
    batch = asked.batch(asked.encoded(), [0, 1, 2])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
        model.zero_grad()
        AnswerLoss(model)(asked.inputs(batch), batch.labels).backward()
        gradients.append({name: p.grad.clone() for name, p in trained.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_answers_in_batches_are_the_answers_one_at_a_time(
    asked: Asked, randomize: Callable[..., None]
) -> None:
    model = adapted(asked.base).eval()
    randomize(model)
    prompts, answers = asked.prompts(), []
    for batch_size in (1, 4, 6):
        found = generate_answers(
            model,
            prompts=prompts,
            rows=range(6),
            inputs=asked.inputs,
            tokenizer=asked.base.tokenizer,
            max_new_tokens=5,
            batch_size=batch_size,
            stops=asked.prompter.stops,
        )
        answers.append({a.row: a.text for group in found for a in group})
    assert sorted(answers[0]) == list(range(6))
    assert len(set(answers[0].values())) > 1
    assert answers[0] == answers[1] == answers[2]
    # By hand, without a cache: the whole sequence again for every token.
    batch = asked.batch(prompts, [1])
    ids = batch.input_ids
    for _ in range(5):
        labels = ids.clone()  # what follows the prompt is answer, which PaliGemma is told
        labels[:, : batch.labels.shape[1]] = IGNORE
        step = Batch(ids, torch.ones_like(ids), labels, ids > 0, [1])
        with torch.no_grad():
            token = model(**asked.inputs(step)).logits[:, -1].argmax(-1, keepdim=True)
        if int(token) in asked.prompter.stops:
            break
        ids = torch.cat([ids, token], dim=1)
    new = ids[0, len(prompts[1].input_ids) :]
    text = asked.base.tokenizer.decode(new, skip_special_tokens=True)
    assert answers[0][1] == text.strip()


def test_every_router_is_seen(asked: Asked) -> None:
    model = adapted(asked.base).eval()
    batch = asked.batch(asked.prompts(), [0, 1, 2])
    seen: dict[str, tuple[int, ...]] = {}
    with torch.no_grad(), record_gates(model, lambda name, gate: seen.update({name: gate.shape})):
        model.get_base_model().model(**asked.inputs(batch), use_cache=False)
    assert list(seen) == router_names(model)
    assert len(seen) == LAYERS
    assert set(seen.values()) == {(*batch.input_ids.shape, 4)}


def test_questions_have_features(asked: Asked) -> None:
    """F(x) of Eq 7 from the text alone, the same whatever the batch."""
    questions = [asked.prompter.text_only(question) for question, _ in QUESTIONS]
    features = [
        question_features(
            asked.base.model,
            questions=questions,
            special=set(asked.base.tokenizer.all_special_ids),
            kind="question-mean",
            batch_size=size,
        )
        for size in (1, 3)
    ]
    assert features[0].shape == (3, 32)
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-5)


def test_output_layer_runs_on_one_position_a_step(asked: Asked) -> None:
    rows: list[int] = []
    asked.base.model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: rows.append(args[0].shape[:-1].numel())
    )
    answers = generate_answers(
        asked.base.model,
        prompts=asked.prompts(),
        rows=[0, 1, 2],
        inputs=asked.inputs,
        tokenizer=asked.base.tokenizer,
        max_new_tokens=3,
        batch_size=3,
    )
    assert len(next(iter(answers))) == 3
    assert set(rows) == {3}
    assert 1 <= len(rows) <= 3


def test_pictures_from_disk_and_their_text(asked: Asked, tmp_path: Path) -> None:
    for row, image in enumerate(asked.images):
        image.save(tmp_path / f"{row}.png")
    pictures = Pictures(asked.base, root=tmp_path)
    assert [pictures.text(f"{row}.png") for row in range(6)] == [asked.text(r) for r in range(6)]
    batch = asked.batch(asked.prompts(), [2, 0], left=True)
    got = pictures.inputs(batch, names=["2.png", "0.png"])
    wanted = asked.inputs(batch)
    if asked.base.pictures is None:  # embeddings there, pixels here
        pixels = pictures.inputs(batch, names=["2.png", "0.png"], train_projector=True)
        assert torch.equal(pixels["pixel_values"], wanted["pixel_values"])
        logits = [asked.base.model(**fed).logits for fed in (got, wanted)]
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    else:
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in got)
