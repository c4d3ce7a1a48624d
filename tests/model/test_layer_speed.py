"""The mixture costs what a plain LoRA of the same rank costs, forward and backward together."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach

LIMIT = 1.10


def mlp(adapter):
    """Return the MLP of a one-block Llama of hidden size 1024, with an adapter of rank 64."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_attention_heads=8, **sizes))
    if isinstance(adapter, LoraConfig):
        return get_peft_model(model, adapter).get_base_model().model.layers[0].mlp
    return attach(model, adapter).get_base_model().model.layers[0].mlp


def seconds(module, x):
    """Processor time, which other processes on the machine do not stretch."""
    start = time.process_time()
    module(x).square().mean().backward()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("routers", ["per-block", "per-linear"])
def test_within_ten_percent_of_plain_lora(routers):
    ours = mlp(ClmoeConfig(experts=8, r=64, alpha=128.0, routers=routers))
    names = ["gate_proj", "up_proj", "down_proj"]
    lora = mlp(LoraConfig(r=64, lora_alpha=128, target_modules=names))
    x = torch.randn(1, 256, 1024, requires_grad=True)
    medians = []
    for _ in range(3):  # a busy machine is given another try
        seconds(ours, x), seconds(lora, x)
        medians.append(statistics.median(seconds(ours, x) / seconds(lora, x) for _ in range(11)))
        if medians[-1] < LIMIT:
            return
    raise AssertionError(f"median of the paired ratios to plain LoRA: {medians}, limit {LIMIT}")
