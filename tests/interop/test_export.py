"""`clmoe export`: the card says what is in the folder, and pushing happens only when asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from clmoe.errors import ClmoeError, InputStageError, UsageError
from clmoe.interop import hub
from clmoe.interop.bundle import BundleSettings, read_settings
from clmoe.interop.model_card import CardCell, CardFacts, model_card
from clmoe.model.adapter_info import AdapterInfo
from clmoe.recipe.load import load_recipe
from clmoe.recipe.schema import Base
from clmoe.runs.plan import Node, Plan
from clmoe.runs.run import Run
from clmoe.stages.audit import audit
from clmoe.stages.export import _caveats as caveats
from clmoe.stages.export import _dtype as dtype_used
from clmoe.stages.export import _settings as settings_rows
from clmoe.stages.export import export_bundle
from clmoe.stages.result import Result

Export = Callable[..., Result]


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "learned"
    export_bundle(finished, out=out, run=None, after=None, push=None)
    return out


@pytest.fixture
def export(finished: Path, tmp_path: Path) -> Export:
    def run(runs: Path | None = None, **options: Any) -> Result:
        options = {"run": None, "after": None, "push": None} | options
        return export_bundle(runs or finished, out=tmp_path / "out", **options)

    return run


def card(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def rows(text: str) -> dict[str, list[str]]:
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in found}


class TestCard:
    """What README.md says."""

    def test_front_matter_is_what_the_hub_reads(self, exported: Path) -> None:
        front, _ = card(exported)
        assert front["library_name"] == "peft"
        assert "license" not in front
        assert "base_model" not in front  # tiny is no name on the Hub
        assert {"clmoe", "lora"} <= set(front["tags"])
        loaded = huggingface_hub.ModelCard.load(exported / "README.md")
        assert loaded.data.library_name == "peft"

    def test_the_row_of_the_matrix_with_counts(self, finished: Path, exported: Path) -> None:
        run = Run.open(finished)
        found = rows(card(exported)[1])
        percents = []
        for task in run.tasks:
            score = run.manifest(Node("eval", task, after="count")).summary["scores"]["exact"]
            percents.append(100 * score["correct"] / score["total"])
            assert found[task] == [f"{percents[-1]:.1f}", f"{score['correct']:g} of 24"]
        assert f"(AP) is {sum(percents) / 3:.2f}." in card(exported)[1]

    def test_settings_tasks_and_versions(self, exported: Path) -> None:
        body = card(exported)[1]
        found = rows(body)
        assert found["tasks, in the order learned"] == ["1. recognition, 2. location, 3. count"]
        for name, value in (
            ("experts n", "8 (`adapter.experts`)"),
            ("total rank r", "16 (`adapter.rank`)"),
            ("alpha", "32.0 (`adapter.alpha`)"),
            ("top K", "2 (`route.top_k`)"),
            ("gamma", "0.7 (`merge.gamma`)"),
            ("beta", "0.5 (`eval.beta`)"),
        ):
            assert found[name] == [value]
        assert found["base model"] == ["`tiny` (built into clmoe)"]
        assert found["data source"] == ["`shapes`"]
        assert re.search(r"python 3\.\d+.*, torch 2\.", body)

    def test_both_ways_of_loading_work(
        self,
        finished: Path,
        exported: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        copy = tmp_path / "moved"
        shutil.copytree(exported, copy)
        picture = next((finished / "small" / "prepare" / "images").glob("*.png"))
        shutil.copy(picture, copy / "picture.png")
        monkeypatch.chdir(copy)
        whole, plain = re.findall(r"```python\n(.*?)```", card(exported)[1], flags=re.DOTALL)
        names: dict[str, Any] = {}
        exec(whole + plain, names)
        assert capsys.readouterr().out.split()[-1] in ("recognition", "location", "count")
        adapter = names["model"].peft_config["default"]
        assert (adapter.peft_type, adapter.experts) == ("CLMOE", 8)

    def test_what_plain_peft_does_not_give(self, exported: Path) -> None:
        body = card(exported)[1]
        assert (
            "Plain PEFT gives experts and the instance router: Eq 3 with the gate of Eq 5, as "
            in (body)
        )
        assert "as if beta were 1. It does not give the task router" in body

    def test_a_missing_cell_is_said(self, runs: Path, export: Export, tmp_path: Path) -> None:
        result = export(runs, after="location")
        # Row 2 has only the tasks seen by then, all evaluated.
        assert result.data["missing_results"] == []
        assert "count" not in rows(card(tmp_path / "out")[1])
        shutil.rmtree(tmp_path / "out")
        run = Run.open(runs)
        state = run.state(run.node(Node("eval", "location", after="count")))
        assert state.directory is not None
        shutil.rmtree(state.directory)
        result = export(runs)
        assert result.data["missing_results"] == ["location"]
        assert any("results are missing: location" in note for note in result.notes)
        found = rows(card(tmp_path / "out")[1])
        assert found["location"][0] == "missing"
        assert found["recognition"][0] != "missing"
        assert "(AP) is missing, because a cell is" in card(tmp_path / "out")[1]

    def test_a_base_of_the_hub_one_expert_and_nothing_evaluated(self) -> None:
        settings = BundleSettings(
            1, "llava-hf/llava-1.5-7b-hf", "abc123", "auto", "", ("a", "b"), False, 1.0, "x", 0.0, 8
        )
        info = AdapterInfo(1, 8, 16.0, "ffn", "per-block", {}, (), None)
        cells = [CardCell("a", missing="not evaluated"), CardCell("b", missing="not evaluated")]
        facts = CardFacts(
            "n", "ema", [("r", "8")], "exact", "test", cells, None, "vqa_v2", {"clmoe": "1"}
        )
        text = model_card(facts, bundle=settings, info=info)
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["base_model"] == "llava-hf/llava-1.5-7b-hf"
        assert "every result is missing" in text
        assert "Plain PEFT gives the one expert, and here that is everything" in text
        assert ".from_pretrained('llava-hf/llava-1.5-7b-hf', revision='abc123')" in text

    def test_what_the_run_did_otherwise_is_said(self) -> None:
        facts = CardFacts(
            "n", "clmoe", [("r", "8")], "exact", "test", [CardCell("a", 1.0, 2)], 50.0, "vqa_v2",
            {"clmoe": "1"}, joint=True, caveats=("The true task was given.",),
        )  # fmt: skip
        settings = BundleSettings(
            2, "me/base", None, "auto", "\nOne word.", ("a", "b"), False, 1.0, "x", 0.0, 8,
            dtype="bfloat16", device="cuda",
        )  # fmt: skip
        info = AdapterInfo(1, 8, 16.0, "ffn", "per-block", {}, (), None)
        text = model_card(facts, bundle=settings, info=info)
        assert "one LoRA that learned all tasks at once with" in text
        assert "Accuracy after all of these tasks, scorer" in text
        assert "The true task was given." in text
        assert "exactly" not in text
        assert "In bfloat16 they may also differ with the questions that share a batch." in text
        assert "clmoe.load(folder, device='cuda')" in text
        assert r'["what color is it?\nOne word."]' in text
        assert "from_pretrained('me/base', dtype='bfloat16')" in text
        assert rows(text)["the base when it answered"] == ["bfloat16, on cuda"]

    def test_only_settings_that_had_a_part(self) -> None:
        def names(*overrides: str) -> set[str]:
            recipe = load_recipe(None, overrides=overrides).recipe
            return {name for name, _ in settings_rows(Plan(recipe, ("a", "b")))}

        whole = names()
        assert {"top K", "gamma", "beta", "task index", "routers"} <= whole
        assert whole - names("method.name=ema") == {"top K", "beta", "task index", "routers"}
        assert "gamma" not in names("method.name=moelora")
        assert names("method.name=ewc") - whole == {"strategy"}

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("eval.oracle_task=true", "with the true task of each question"),
            ("index.noise=0.5", "a share of 0.5 of the task ids at random"),
            ("protocol.task_known=true", "could show the model their task"),
            ("eval.beta=0.5", ""),
        ],
    )
    def test_caveats(self, override: str, told: str) -> None:
        recipe = load_recipe(None, overrides=[override]).recipe
        found = caveats(Plan(recipe, ("a", "b")))
        assert len(found) == bool(told)
        assert told in " ".join(found)

    @pytest.mark.parametrize(
        ("dtype", "device", "used"),
        [
            ("auto", "cpu", "float32"),
            ("auto", None, "auto"),
            ("bfloat16", "cpu", "bfloat16"),
            ("float32", None, "float32"),
        ],
    )
    def test_the_dtype_that_auto_was(self, dtype: Any, device: str | None, used: str) -> None:
        assert dtype_used(Base(dtype=dtype), device) == used

    def test_nothing_is_guessed_of_a_gpu_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert dtype_used(Base(), "cuda") == "auto"  # it depends on that GPU
        assert dtype_used(Base(dtype="bfloat16"), "cuda") == "bfloat16"


class TestFolder:
    """What is written."""

    def test_the_same_as_from_python_and_auditable(self, exported: Path) -> None:
        names = {path.name for path in exported.iterdir()}
        assert names == {
            "README.md", "adapter_config.json", "adapter_model.safetensors", "clmoe.json",
            "index", "task_router",
        }  # fmt: skip
        audited = audit([exported])
        facts = {row[0]: row[1] for row in audited.tables[0].rows}
        assert audited.notes[0] == "the base when it answered: float32, on cpu"
        assert facts["format"] == "clmoe bundle"
        assert facts["tasks"] == "recognition, location, count (beta 0.5)"

    def test_result(self, export: Export, tmp_path: Path) -> None:
        result = export(after="recognition")
        assert result.next_command == f"clmoe audit {tmp_path / 'out'}"
        assert result.data["tasks"] == ["recognition"]
        assert result.data["pushed_to"] is None
        assert read_settings(tmp_path / "out").tasks == ("recognition",)
        assert "the card names no license: add one before you publish it" in result.notes

    def test_refusals_leave_nothing(self, export: Export, runs: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="before any task there is no adapter") as caught:
            export(after="base")
        assert str(caught.value.hint).startswith("clmoe export --after recognition --out ")
        with pytest.raises(UsageError, match="there is no task 'locaton'; did you mean 'location'"):
            export(after="locaton")
        run = Run.open(runs)
        state = run.state(run.node(Node("merge", "count")))
        assert state.directory is not None
        shutil.rmtree(state.directory)
        with pytest.raises(InputStageError, match="merge/03-count is ") as missing:
            export(runs)
        assert missing.value.hint == "clmoe merge --task count"
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    def test_an_existing_folder_stays(self, export: Export, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(ClmoeError, match="exists"):
            export()
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_full_disk_leaves_nothing(
        self, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("clmoe.interop.bundle.shutil.copytree", full)
        with pytest.raises(ClmoeError, match="out cannot be written: .*No space left"):
            export()
        assert list(tmp_path.iterdir()) == []


def test_the_commands_load_torch_only_when_they_run() -> None:
    code = "import sys, clmoe.stages.pipeline; print({'torch', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class FakeApi:
    """Stands in for HfApi; remembers what it was asked."""

    calls: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(FakeApi, "error", None)
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    monkeypatch.setattr(hub, "get_token", lambda: "given")
    return FakeApi


class TestPush:
    """Uploading, to a hub that only remembers."""

    def test_not_without_being_asked(self, export: Export, api: type[FakeApi]) -> None:
        export()
        assert api.calls == []

    def test_one_private_repository_one_commit(
        self, export: Export, api: type[FakeApi], tmp_path: Path
    ) -> None:
        result = export(push="learned")
        (made, created), (sent, uploaded) = api.calls
        assert (made, sent) == ("create_repo", "upload_folder")
        assert created == {
            "repo_id": "learned", "repo_type": "model", "private": True, "exist_ok": True
        }  # fmt: skip
        assert uploaded["repo_id"] == "me/learned"
        assert uploaded["folder_path"] == tmp_path / "out"
        assert "me/learned" in result.data["pushed_to"]

    def test_no_token(
        self, export: Export, api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "get_token", lambda: None)
        with pytest.raises(
            ClmoeError, match="is written, but not pushed to me/x: .* no token"
        ) as e:
            export(push="me/x")
        assert e.value.hint is not None
        assert e.value.hint.endswith(f"hf upload me/x {tmp_path / 'out'}")
        assert (tmp_path / "out" / "clmoe.json").is_file()
        assert api.calls == []

    def test_offline(self, export: Export, api: type[FakeApi], tmp_path: Path) -> None:
        api.error = ConnectionError("no route to host\nand more")
        with pytest.raises(ClmoeError, match="ConnectionError: no route to host$") as caught:
            export(push="me/x")
        assert caught.value.exit_code == 1
        assert (tmp_path / "out" / "README.md").is_file()

    def test_a_wrong_name_is_refused_before_anything_is_written(
        self, export: Export, api: type[FakeApi], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="'a/b/c' is no name of a repository"):
            export(push="a/b/c")
        assert list(tmp_path.iterdir()) == []
