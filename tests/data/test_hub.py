from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from clmoe.data.prepared import read_examples
from clmoe.errors import DataError, UsageError


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local data set of two splits, its pictures inside, its columns named otherwise."""
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "reply": datasets.ClassLabel(names=["no", "yes"]),
            "picture": datasets.Image(),
            "topic": datasets.Value("string"),
            "uid": datasets.Value("int64"),
        }
    )
    for split, colors in (("train", range(20)), ("test", (200, 201))):
        rows = [
            {
                "prompt": f"Is {k} red?",
                "reply": k % 2,
                "picture": {"bytes": png(color), "path": None},
                "topic": "color",
                "uid": 100 + color + k,
            }
            for color in colors
            for k in (0, 1000)
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "set"


COLUMNS = {"question": "prompt", "answer": "reply", "image": "picture", "task": "topic"}


def test_a_local_folder_is_read_and_its_pictures_stored_once(
    prepare: Any, out: Path, tmp_path: Path, folder: Path
) -> None:
    summary = prepare(source=f"hf:{folder}", columns=COLUMNS | {"question_id": "uid"})
    test = read_examples(out, task="color", split="test")
    assert [e.question_id for e in test] == ["300", "1300", "301", "1301"]
    assert test[0].question == "Is 0 red?"
    assert {e.answer for e in test} == {"no"}
    assert test[0].image == test[1].image != test[2].image
    assert len(list((tmp_path / "out" / "images").iterdir())) == 22
    stored = summary.source.image_root / test[0].image
    assert stored.read_bytes() == png(200)


def test_validation_is_cut_by_the_content_of_the_picture(
    prepare: Any, out: Path, folder: Path
) -> None:
    prepare(source=f"hf:{folder}", columns=COLUMNS, val_fraction=0.3)
    train, val = (read_examples(out, task="color", split=split) for split in ("train", "val"))
    assert val
    assert {e.image for e in train}.isdisjoint({e.image for e in val})


def test_a_bar_is_never_drawn(prepare: Any, folder: Path, capfd: Any) -> None:
    datasets.enable_progress_bars()
    prepare(source=f"hf:{folder}", columns=COLUMNS)
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_missing_columns_are_named_with_those_there_are(prepare: Any, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(source=f"hf:{folder}", columns={"question": "prompt"})
    assert "has no column for answer, image, task; its columns: prompt, reply" in str(caught.value)
    assert caught.value.hint == "data.columns='{answer: COLUMN}'"


def test_an_unknown_field_gets_a_suggestion(prepare: Any, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no field 'quest' \(did you mean question\?\)"):
        prepare(source=f"hf:{folder}", columns={"quest": "prompt"})


def test_pictures_may_be_paths_below_data_images(prepare: Any, out: Path, tmp_path: Path) -> None:
    line = (
        '{"question": "What?", "answer": "%s", "image": "./a.png", "task": "t",'
        ' "answers": ["x", "y"]}\n'
    )
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text(line % "x" + line % "")
    (tmp_path / "a.png").write_bytes(png(1))
    name = f"hf:{tmp_path / 'set'}"
    with pytest.raises(UsageError, match="set data.images to their folder"):
        prepare(source=name, splits="test", keep_going=True)
    with pytest.raises(DataError) as caught:
        prepare(source=name, splits="test", images=tmp_path)
    assert caught.value.problems == (f"{name}/test:2: 'answer' is empty",)
    prepare(source=name, splits="test", images=tmp_path, keep_going=True)
    (example,) = read_examples(out, task="t", split="test")
    assert (example.question_id, example.image, example.answers) == ("test-0", "a.png", ("x", "y"))


@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_bytes_that_are_no_picture_are_reported(
    prepare: Any, tmp_path: Path, content: bytes
) -> None:
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question", "answer", "task")}
        | {"image": datasets.Image()}
    )
    row = {
        "question": "a",
        "answer": "b",
        "task": "t",
        "image": {"bytes": content, "path": None},
    }
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_list([row], features=features)
    table.to_parquet(tmp_path / "set" / "test.parquet")
    with pytest.raises(DataError) as caught:
        prepare(source=f"hf:{tmp_path / 'set'}", splits="test")
    (problem,) = caught.value.problems
    assert "/test:1: " in problem
    assert "picture" in problem


def test_a_folder_that_is_not_there_is_named(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        prepare(source=f"hf:{tmp_path / 'no'}")


OFFLINE = """
from pathlib import Path
from clmoe.data.prepare import prepare_data
from clmoe.errors import DataError
from clmoe.recipe.schema import Data
try:
    prepare_data(Data(source="hf:somebody/something"), workspace=Path("w"), out=Path("w"))
except DataError as error:
    print(error.message, error.hint, sep="\\n")
"""


@pytest.mark.slow
def test_offline_the_error_has_the_command_to_fetch_the_data_set(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    message, hint = finished.stdout.splitlines()
    assert message.startswith("the data set somebody/something cannot be loaded: ")
    assert "hf download --repo-type dataset somebody/something --local-dir something" in hint
    assert "--source hf:./something" in hint
