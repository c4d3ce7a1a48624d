"""What a step keeps for its backward pass, and what its largest single operation needs besides.

Derived from the decoder block of Llama, which LLaVA, Mistral and Qwen share: pre-normalised
attention and a gated MLP, frozen, with experts on some of its linears. N is the number of tokens of
a micro-batch (padding included), H the hidden width, F the MLP's, e the bytes of the base's dtype.
A frozen linear keeps only its weight; what is kept beside is named in each function, and a test
compares the sum with `torch.autograd.graph.saved_tensors_hooks`.
"""

from __future__ import annotations

from clmoe.training.base_shape import BaseShape, Tower

ATTENTION_IN = ("q_proj", "k_proj", "v_proj")
FLOAT = 4  # bytes of float32, in which norms, routers, softmax and the loss are computed


def attention_kept(shape: BaseShape, *, batch: int, tokens: int, size: int, padded: bool) -> int:
    """Bytes that the attention of one block keeps.

    Queries and keys after rotation, values, the output, and a float32 log-sum a head and token.
    With padding there is a mask [batch, 1, tokens, tokens], and keys and values are repeated to
    the number of query heads.
    """
    heads = 2 * shape.heads + 2 * (shape.heads if padded else shape.kv_heads)
    kept = batch * tokens * (heads * shape.head * size + shape.heads * FLOAT)
    return kept + (batch * tokens * tokens * size if padded else 0)


def norm_kept(shape: BaseShape, *, tokens: int) -> int:
    """Bytes that an RMS norm keeps: its input and the reciprocal root, in float32.

    In a float32 base the input is the residual stream itself, so it is counted here and only here.
    """
    return tokens * (shape.hidden + 1) * FLOAT


def experts_kept(shape: BaseShape, *, tokens: int, size: int, frozen_input: str = "") -> int:
    """Bytes that the experts of one block keep.

    For each adapted linear A x, where there is a gate the gated A x too [N, r] and the gate [N, n],
    and in a base of another dtype A and B cast to it. The input: gate and up share the normalised
    hidden state, down has the MLP's product, q, k and v the other normalised hidden state; o reads
    what attention keeps anyway. Dropout keeps its output and its mask for each linear instead, and
    then a router its input apart. A router keeps its softmax, in float32.

    Args:
        shape: The base and its adapter.
        tokens: N.
        size: e.
        frozen_input: "attention" or "mlp": the part whose input needs no gradient (in the first
            block), so that neither the cast A nor the mask of its linears is kept.
    """
    kept = 0
    cast = size if size != FLOAT else 0
    gated = shape.experts > 1
    inputs: dict[str, int] = {}
    routers: dict[str, int] = {}
    for name, (reads, writes) in shape.adapted.items():
        part = "attention" if name in ATTENTION_IN or name == "o_proj" else "mlp"
        source = name if name in ("o_proj", "down_proj") else part
        frozen = source == frozen_input
        kept += tokens * shape.rank * size * (2 if gated else 1)
        kept += shape.rank * cast * (writes + (0 if frozen else reads))
        if shape.dropout:
            kept += tokens * reads * size * (1 if frozen else 2)
        elif source != "o_proj":
            inputs[source] = reads
        if gated:
            kept += tokens * shape.experts * size
            routers[part if shape.shared else name] = shape.hidden if shape.shared else reads
    kept += tokens * sum(inputs.values()) * size
    for reads in routers.values():
        kept += tokens * (shape.experts * FLOAT + (reads * size if shape.dropout else 0))
    return kept


def mlp_kept(shape: BaseShape, *, tokens: int, size: int) -> int:
    """Bytes that one frozen MLP keeps: gate's output, its activation, and up's output."""
    return 3 * tokens * shape.wide * size


def block_kept(
    shape: BaseShape, *, batch: int, tokens: int, size: int, padded: bool, first: bool
) -> int:
    """Bytes that one block keeps.

    The first block's input needs no gradient where all before it is frozen, so its first norm keeps
    nothing; with experts on the MLP alone, neither do its attention and second norm.
    """
    all_tokens = batch * tokens
    attends = any(name in shape.adapted for name in ATTENTION_IN)
    frozen = ("attention" if attends else "mlp") if first else ""
    kept = experts_kept(shape, tokens=all_tokens, size=size, frozen_input=frozen)
    kept += mlp_kept(shape, tokens=all_tokens, size=size)
    norm = norm_kept(shape, tokens=all_tokens)
    if frozen == "mlp":
        return kept
    kept += attention_kept(shape, batch=batch, tokens=tokens, size=size, padded=padded)
    return kept + (norm if first else 2 * norm)


def backward_needs(shape: BaseShape, *, tokens: int, supervised: int, size: int) -> int:
    """Bytes of the largest moment of a backward pass beside what is kept.

    Three moments while everything is still kept. In the loss: log-softmax, its gradient and the
    gradient of the logits, [supervised, V] in float32, of which the first is what is kept. In the
    final norm: three float32 tensors [N, H] and the gradient. In the last MLP: the gradients of
    the product and both its factors, [N, F], less the product itself, which is freed by then, and
    two of [N, H].
    """
    loss = supervised * shape.vocabulary * 3 * FLOAT
    norm = tokens * shape.hidden * (3 * FLOAT + size)
    mlp = tokens * (2 * shape.wide + 2 * shape.hidden) * size
    return max(loss, norm, mlp)


def tower_needs(tower: Tower, *, pictures: int, size: int) -> int:
    """Bytes of a vision tower's forward pass without gradients.

    The pixels, in float32 and cast; the hidden states of every block, which LLaVA asks for; and in
    an MLP its inner activation three times (x * sigmoid(x)) with two hidden states.
    """
    pixels = 3 * tower.side**2 * (FLOAT + (size if size != FLOAT else 0))
    states = (tower.layers + 1) * tower.hidden
    inside = 3 * tower.wide + 2 * tower.hidden
    return pictures * (pixels + tower.tokens * (states + inside) * size)


def prefill_needs(shape: BaseShape, *, batch: int, tokens: int, size: int) -> int:
    """Bytes of the largest moment of reading prompts without gradients.

    In an MLP: the activated gate, and of up its base's output, the mixture's and their sum, [N, F];
    the residual stream, the normalised hidden state and the embeddings, [N, H]. In the attention:
    the mask, boolean and cast, and six times [N, H].
    """
    all_tokens = batch * tokens
    mlp = all_tokens * (4 * shape.wide + 3 * shape.hidden) * size
    mask = batch * tokens * tokens * (1 + size)
    attention = all_tokens * 6 * shape.hidden * size
    return mask + max(mlp, attention)
