"""A task that is no question about a picture: captions, through `jsonl`, with their own scorer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from clmoe.errors import UsageError
from clmoe.evaluation.samples import read_samples
from clmoe.metrics.answer_accuracy import rouge_l
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline

COLORS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Plain squares, with a caption and a question each."""
    lines = []
    for number in range(24):
        name, rgb = list(COLORS.items())[number % 3]
        shade = tuple(max(0, value - number) for value in rgb)
        Image.new("RGB", (32, 32), shade).save(tmp_path / f"{number}.png")
        split = ("train", "train", "val", "test")[number // 6]
        common = {"image": f"{number}.png", "split": split}
        caption = f"a {name} square"
        lines += [
            {**common, "task": "color", "question": "what color is it?", "answer": name},
            {
                **common,
                "task": "caption",
                "question": "describe the picture",
                "answer": caption,
                "answers": [caption, f"a picture of a {name} square"],
            },
        ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_captions_beside_questions(pictures: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    keys = ["data.source=jsonl", f"data.root={pictures / 'q.jsonl'}", f"data.images={pictures}"]
    keys += ["adapter.rank=8", "train.epochs=6", "train.batch_size=4", "train.lr=5e-3"]
    keys += ["runtime.threads=1", "eval.max_new_tokens=8", "report.scorer=rouge-l"]
    result = pipeline.run(
        runs, recipe="shapes", overrides=keys, name="c", dry_run=False, keep_going=False
    )
    assert result.data["scorer"] == "rouge-l"
    run = Run.open(runs, "c")
    cell = Node("eval", "caption", after="caption")
    samples = read_samples(run.output(cell, "samples"))
    assert {s.answer for s in samples} == {f"a {name} square" for name in COLORS}
    expected = sum(float(rouge_l(s.prediction, s.answer, s.answers).value or 0) for s in samples)
    row = len(run.tasks) if run.tasks[-1] == "caption" else run.tasks.index("caption") + 1
    [found] = [
        c["correct"] for c in result.data["cells"] if (c["row"], c["task"]) == (row, "caption")
    ]
    assert found == pytest.approx(expected)
    assert expected > 0.5 * len(samples)  # it has learned to write captions
    with pytest.raises(UsageError, match="there is no scorer 'rouge'") as caught:
        pipeline.report(runs, run="c", kind="all", overrides=["report.scorer=rouge"])
    assert caught.value.hint == "did you mean rouge-l?"
