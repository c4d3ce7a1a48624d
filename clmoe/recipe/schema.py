"""Every key of a recipe: its type, default, help, symbol in the paper, and the stages it changes.

A key declares the stages whose RESULT it changes; keys that change only speed or labels declare
none. The declarations are all that fingerprints and freshness know about a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from clmoe.recipe.fields import STAGES, Names, Order, Section, Split, Splits, Targets
from clmoe.recipe.fields import key as _key

__all__ = ["METHOD_NAMES", "SECTIONS", "STAGES", "Recipe", "Section"]

MethodName = Literal[
    "clmoe", "vanilla", "multitask", "mmoe", "rmoe", "ema", "moelora", "pertask",
    "ewc", "mas", "er", "der", "derpp", "vs", "vqacl",
]  # fmt: skip
METHOD_NAMES: tuple[str, ...] = get_args(MethodName)


class Data(Section):
    """Which questions there are, and how they are prepared."""

    source: str = _key("shapes", "registered data source, or hf:NAME", "prepare")
    root: Path | None = _key(None, "folder of the source's files", "prepare")
    images: Path | None = _key(None, "image folder, where it is not under data.root", "prepare")
    tasks: Names = _key(None, "tasks to prepare; null: all", "prepare")
    splits: Splits = _key(None, "splits to prepare; null: all", "prepare")
    train_per_task: PositiveInt | None = _key(
        None, "training questions a task; null: the source's default", "prepare"
    )
    val_per_task: PositiveInt | None = _key(
        None, "validation questions a task; null: the source's default", "prepare"
    )
    test_per_task: PositiveInt | None = _key(
        None, "test questions a task; null: the source's default", "prepare"
    )
    seed: int = _key(0, "seed of drawing and of choosing questions", "prepare", ge=0)
    val_fraction: float = _key(
        0.05, "share of train, cut by image, where there is no val", "prepare", ge=0, lt=1
    )
    balance_answers: bool = _key(False, "equally many questions of each answer", "prepare")
    suffix: str | None = _key(None, "instruction after a question; null: the source's", "prepare")
    suffixes: dict[str, str] = _key(
        {},
        "another instruction after a task's questions; needs protocol.task_known",
        "prepare",
        neutral={},
    )
    check_images: bool = _key(True, "open every image while preparing", "prepare")
    keep_going: bool = _key(False, "write bad questions to rejected.jsonl and go on", "prepare")
    question_types: Path | None = _key(None, "file with another question-type map", "prepare")
    karpathy: Path | None = _key(None, "dataset_coco.json of the Karpathy split", "prepare")
    columns: dict[str, str] = _key({}, "our name of a column: its name in hf:NAME", "prepare")
    error_limit: PositiveInt = _key(20, "problems to list before giving up")
    turns: Literal["question", "image"] = _key(
        "question", "a training sample is one question, or all questions of an image", "train"
    )


class Base(Section):
    """The frozen vision-language model."""

    model: str = _key(
        "tiny",
        "tiny (built in), a hub name, or a folder",
        "train",
        "route",
        "index",
        "eval",
        symbol="W",
    )
    revision: str | None = _key(
        None, "commit, branch or tag of a hub model", "train", "route", "index", "eval"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = _key(
        "auto", "auto: bfloat16 on CUDA, else float32", "train", "route", "index", "eval"
    )
    quantization: Literal["none", "nf4"] = _key(
        "none",
        "nf4: the decoder's linears in 4 bits",
        "train",
        "route",
        "index",
        "eval",
        neutral="none",
    )
    prompt: Literal["auto", "short", "vicuna_v1", "chat", "paligemma"] = _key(
        "auto", "prompt template; auto: by model", "train", "route", "index", "eval"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = _key(
        "auto", "attention kernel; auto: flash where installed, else sdpa"
    )
    projector: Literal["frozen", "trained", "merged"] = _key(
        "frozen", "the projector: frozen, trained, or trained and merged", "train", "merge"
    )


class Protocol(Section):
    """In which order tasks come."""

    order: Order = _key("forward", "forward, reverse, or every task by name", "train")
    joint: bool = _key(False, "all tasks at once: an upper bound", "train")
    per_task: bool = _key(
        False,
        "one adapter a task, each from the base; the task index chooses",
        "train",
        "eval",
        neutral=False,
    )
    task_known: bool = _key(
        False,
        "questions may show their task (data.suffixes); every table says so",
        "report",
        neutral=False,
    )


class Adapter(Section):
    """The mixture of low-rank experts."""

    experts: PositiveInt = _key(8, "number of experts; 1 is a plain LoRA", "train", symbol="n")
    rank: PositiveInt = _key(64, "total rank of all experts together", "train", symbol="r")
    alpha: float = _key(
        128.0, "scale: the mixture is multiplied by alpha / rank", "train", symbol="alpha", gt=0
    )
    dropout: float = _key(0.0, "dropout before the experts", "train", ge=0, lt=1)
    targets: Targets = _key(
        "ffn", "linears with experts: ffn, all-linear, or patterns of names", "train"
    )
    routers: Literal["per-block", "per-linear"] = _key(
        "per-block", "one instance router a block, or one a linear", "train", symbol="W_gate"
    )
    router_std: float = _key(0.02, "standard deviation of a new router's weights", "train", ge=0)
    router_start: Literal["continued", "fresh"] = _key(
        "continued", "routers at the start of a task", "train"
    )

    @model_validator(mode="after")
    def _whole_rank_each(self) -> Adapter:
        if self.rank % self.experts:
            raise PydanticCustomError(
                "rank",
                "adapter.rank {rank} is not a multiple of adapter.experts {experts}: "
                "each expert has rank r / n",
                {"rank": self.rank, "experts": self.experts},
            )
        return self


class Train(Section):
    """How one task is trained."""

    lr: float = _key(2e-4, "peak learning rate", "train", gt=0)
    epochs: float = _key(1.0, "passes over a task's questions", "train", gt=0)
    batch_size: PositiveInt = _key(16, "samples a step, over all devices", "train")
    warmup: float = _key(0.03, "share of the steps that warms up", "train", ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = _key(
        "cosine", "learning rate after warm-up", "train"
    )
    weight_decay: float = _key(0.0, "AdamW's weight decay", "train", ge=0)
    clip: float = _key(1.0, "largest norm of the gradient; 0: no clipping", "train", ge=0)
    seed: int = _key(0, "seed of initial weights, order of samples and dropout", "train", ge=0)
    group_by_length: bool = _key(
        True, "batches of similar length, the longest first", "train", neutral=False
    )
    micro_batch: PositiveInt | Literal["auto"] | None = _key(
        None, "samples at a time in a process; null: its share of a batch; auto: what fits"
    )
    checkpoint_every: int = _key(200, "steps between checkpoints; 0: none", ge=0)
    gradient_checkpointing: bool = _key(False, "recompute activations to save memory")


class Strategy(Section):
    """What a continual-learning method adds to tuning task after task (`clmoe.baselines`)."""

    kind: Literal["none", "ewc", "mas", "er", "der", "derpp", "vs", "vqacl"] = _key(
        "none", "penalty (ewc, mas), replay (er, der, derpp), features (vs), prototypes", "train"
    )
    strength: float = _key(
        1.0, "lambda of ewc and mas: weight of the penalty", "train", symbol="lambda", ge=0
    )
    decay: float = _key(1.0, "ewc, mas: how much of old importances stays", "train", ge=0, le=1)
    samples: PositiveInt = _key(200, "ewc, mas: examples that importances are from", "train")
    memory: PositiveInt = _key(5000, "examples of earlier tasks to keep, in all", "train")
    policy: Literal["equal", "reservoir"] = _key(
        "equal", "which examples to keep: equal shares of tasks, or a reservoir", "train"
    )
    alpha: float = _key(1.0, "der: weight of logits; vs: of the triplet term", "train", ge=0)
    beta: float = _key(1.0, "derpp: weight of memory's answers; vs: of centres", "train", ge=0)
    margin: float = _key(0.1, "vs: margin of the triplet term", "train", ge=0)
    top_logits: PositiveInt = _key(64, "der: logits stored for each answer token", "train")
    question_momentum: float = _key(
        0.5, "vqacl: how much of a question prototype stays", "train", ge=0, lt=1
    )
    picture_momentum: float = _key(
        0.3, "vqacl: how much of a picture prototype stays", "train", ge=0, lt=1
    )


class Route(Section):
    """The task router: which experts a task uses (Eq 6)."""

    top_k: PositiveInt = _key(2, "experts that belong to a task", "route", symbol="K")
    scope: Literal["per-layer", "global"] = _key(
        "per-layer", "task weights for each router, or one mean of all", "route", symbol="w_T"
    )
    tokens: Literal["prompt", "question", "answer", "all"] = _key(
        "prompt", "tokens that count in a sample's mean", "route"
    )


class Merge(Section):
    """Momentum of experts across tasks (Eq 10 to 12)."""

    rule: Literal["roles", "none"] = _key("roles", "by expert roles, or no merge", "merge")
    gamma: float = _key(
        0.7, "weight of the earlier experts where they are shared", "merge", symbol="gamma"
    )
    allow_any_gamma: bool = _key(False, "accept a gamma outside (0.5, 1]")
    space: Literal["factors", "product"] = _key(
        "factors", "average A_i and B_i apart, or B_i A_i", "merge", symbol="theta"
    )
    routers: Literal["keep", "momentum", "previous"] = _key(
        "keep", "instance routers after a merge: the task's, averaged, the earlier", "merge"
    )

    @model_validator(mode="after")
    def _gamma_above_half(self) -> Merge:
        if not self.allow_any_gamma and not 0.5 < self.gamma <= 1:
            raise PydanticCustomError(
                "gamma",
                "merge.gamma {gamma} is outside (0.5, 1]: Eq 10 keeps a share gamma of experts "
                "that tasks share and 1 - gamma of task-specific ones, so at 0.5 or less the "
                "shared experts move at least as much as the specific ones "
                "(merge.allow_any_gamma=true accepts it)",
                {"gamma": f"{self.gamma:g}"},
            )
        return self


class Index(Section):
    """The task index: which task a question belongs to (Eq 7, 8)."""

    kind: Literal["centroid", "kmeans", "lda"] = _key(
        "centroid", "one mean a task, several, or class means with one covariance", "index"
    )
    centers: PositiveInt = _key(4, "centres a task of kmeans", "index")
    feature: Literal["question-mean", "question-last", "embedding-mean"] = _key(
        "question-mean", "text feature of a question", "index", symbol="F"
    )
    shrinkage: float = _key(
        0.1, "shrinkage of lda's covariance, when tasks are told apart", "eval", ge=0, le=1
    )
    seed: int = _key(0, "seed of kmeans", "index", ge=0)
    soft: float = _key(
        0.0,
        "temperature of mixing the nearest tasks' weights; 0: the nearest alone",
        "eval",
        ge=0,
        neutral=0.0,
    )
    noise: float = _key(
        0.0, "share of task ids replaced at random", "eval", ge=0, le=1, neutral=0.0
    )


class Eval(Section):
    """How a row of the accuracy matrix is answered (Eq 9)."""

    beta: float = _key(
        0.5, "weight of the instance router; 1: no task router", "eval", symbol="beta", ge=0, le=1
    )
    split: Split = _key("test", "questions to answer", "eval")
    max_new_tokens: PositiveInt = _key(10, "longest answer", "eval")
    oracle_task: bool = _key(False, "use the true task in place of the index", "eval", "report")
    batch_size: PositiveInt = _key(128, "questions at a time")
    seed: int = _key(0, "seed of index.noise", "eval", ge=0, neutral=0)
    rows: Literal["all", "last"] = _key(
        "all", "rows of the matrix that `run` fills; last: AP alone, for choosing settings"
    )


class Report(Section):
    """Metrics and their intervals."""

    scorer: str = _key(
        "exact", "answer score: exact, vqa, vqa-lenient, rouge-l, or one that was added", "report"
    )
    seed: int = _key(0, "seed of the bootstrap", "report", ge=0)
    resamples: PositiveInt = _key(2000, "bootstrap resamples", "report")


class Runtime(Section):
    """Where it runs; changes no result."""

    device: str = _key("auto", "auto, cpu, cuda, cuda:1, mps")
    threads: PositiveInt | None = _key(None, "CPU threads; null: all cores")


class Method(Section):
    """A label; choosing it sets the keys of its preset (`clmoe.recipe.presets`)."""

    name: MethodName = _key(
        "clmoe", "preset over other keys; itself only named in the report", "report"
    )


class Recipe(Section):
    """One whole recipe: every value that decides a run."""

    name: str = _key("shapes", "name of the recipe and, unless given, of the run", min_length=1)
    data: Data = Data()
    base: Base = Base()
    protocol: Protocol = Protocol()
    adapter: Adapter = Adapter()
    train: Train = Train()
    strategy: Strategy = Strategy()
    route: Route = Route()
    merge: Merge = Merge()
    index: Index = Index()
    eval: Eval = Eval()
    report: Report = Report()
    runtime: Runtime = Runtime()
    method: Method = Method()

    @model_validator(mode="after")
    def _tasks_shown_only_where_known(self) -> Recipe:
        if self.data.suffixes and not self.protocol.task_known:
            raise PydanticCustomError(
                "suffixes",
                "data.suffixes shows the task of a question to the model, which no method may "
                "know: leave it out, or set protocol.task_known=true, which marks every table",
            )
        return self

    @model_validator(mode="after")
    def _tasks_one_after_another(self) -> Recipe:
        alone = {
            "per_task": "trains each adapter alone, from the base",
            "joint": "trains all tasks at once",
        }
        for key, why in alone.items():
            if self.strategy.kind != "none" and getattr(self.protocol, key):
                raise PydanticCustomError(
                    "strategy",
                    "protocol.{key} {why}, so strategy.kind {kind} has no earlier task to hold or "
                    "to replay: set strategy.kind=none, or protocol.{key}=false",
                    {"key": key, "why": why, "kind": self.strategy.kind},
                )
        return self

    def get(self, key: str) -> Any:
        """The value of a dotted key, as JSON would hold it (tuples as lists, paths as text).

        Raises:
            KeyError: There is no such key.
        """
        return self.flat()[key]

    def flat(self) -> dict[str, Any]:
        """Every dotted key with its JSON value, in the order of the schema."""
        return flatten(self.model_dump(mode="json"))


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of a nested mapping of sections; `data.columns` and the like stay one value."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if name in SECTIONS and isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            flat[name] = value
    return flat


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
