"""`clmoe bench`: what this machine does in a second, ours beside a plain LoRA."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import AsJson, examples
from clmoe_cli.present import session

app = typer.Typer(
    help="Measure a layer, a training step or answering on this machine, beside a plain LoRA.",
    epilog=examples("clmoe bench layer", "clmoe bench train --model llava-small"),
    no_args_is_help=True,
)
MODEL_HELP = (
    "tiny, llava-small or llava-7b; all but tiny get random weights."
    " (default: llava-7b on a GPU, tiny on a CPU)"
)

Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help=MODEL_HELP, show_default=False)
]
Layers = Annotated[
    int | None, typer.Option("--layers", min=1, help="Decoder blocks, fewer than the model has.")
]
Rank = Annotated[int, typer.Option("--rank", min=1, help="r, the same for every adapter.")]
Experts = Annotated[int, typer.Option("--experts", min=1, help="n, the number of experts.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Of the frozen weights. (default: bfloat16 on a GPU, float32 on a CPU)",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda or cuda:1. (default: a GPU where there is one)",
        show_default=False,
    ),
]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="At most so many rounds.")]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds", min=0.0, help="What the rounds may take together; three are done anyway."
    ),
]


@app.command(
    "layer",
    epilog=examples(
        "clmoe bench layer",
        "clmoe bench layer --hidden 4096 --intermediate 11008 --tokens 64 --repeats 3",
    ),
)
def layer(
    context: typer.Context,
    hidden: Annotated[
        int | None,
        typer.Option("--hidden", min=2, help="Width of the model. (default: 4096, CPU 1024)"),
    ] = None,
    intermediate: Annotated[
        int | None,
        typer.Option("--intermediate", min=2, help="Width of its MLPs. (default: 11008, CPU 2752)"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=2, help="Tokens of a run. (default: 8192, CPU 256)"),
    ] = None,
    rank: Rank = 64,
    experts: Experts = 8,
    dtype: Dtype = None,
    device: Device = None,
    repeats: Repeats = 20,
    seconds: Seconds = 30.0,
    as_json: AsJson = False,
) -> None:
    """Measure one adapted linear and an MLP: plain, PEFT LoRA, a loop over experts, and ours."""
    call = session(context, runs=None, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.bench_layer(
                hidden=hidden,
                intermediate=intermediate,
                tokens=tokens,
                rank=rank,
                experts=experts,
                dtype=dtype,
                device=device,
                repeats=repeats,
                seconds=seconds,
            )
        )
    )


@app.command(
    "train", epilog=examples("clmoe bench train", "clmoe bench train --model llava-small --batch 2")
)
def train(
    context: typer.Context,
    model: Model = None,
    layers: Layers = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Samples a step. (default: 4)")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", min=6, help="Text tokens a sample, beside its image. (default: 64, CPU 32)"
        ),
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute the decoder blocks.")
    ] = False,
    rank: Rank = 64,
    experts: Experts = 8,
    dtype: Dtype = None,
    device: Device = None,
    repeats: Repeats = 20,
    seconds: Seconds = 30.0,
    as_json: AsJson = False,
) -> None:
    """Measure a whole training step of a vision-language model, adapter by adapter."""
    call = session(context, runs=None, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.bench_train(
                model=model,
                layers=layers,
                batch=batch,
                tokens=tokens,
                checkpointing=checkpointing,
                rank=rank,
                experts=experts,
                dtype=dtype,
                device=device,
                repeats=repeats,
                seconds=seconds,
            )
        )
    )


@app.command("eval", epilog=examples("clmoe bench eval", "clmoe bench eval --batch-size 64 --json"))
def evaluate(
    context: typer.Context,
    model: Model = None,
    layers: Layers = None,
    batch: Annotated[int, typer.Option("--batch-size", min=2, help="Questions at a time.")] = 16,
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=2, help="Questions of a run. (default: one batch)"),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=1, help="Longest answer, in tokens.")
    ] = 10,
    rank: Rank = 64,
    experts: Experts = 8,
    dtype: Dtype = None,
    device: Device = None,
    repeats: Repeats = 10,
    seconds: Seconds = 30.0,
    as_json: AsJson = False,
) -> None:
    """Measure answering in batches against one question at a time, and compare the answers."""
    call = session(context, runs=None, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.bench_eval(
                model=model,
                layers=layers,
                batch=batch,
                questions=questions,
                new_tokens=new_tokens,
                rank=rank,
                experts=experts,
                dtype=dtype,
                device=device,
                repeats=repeats,
                seconds=seconds,
            )
        )
    )
