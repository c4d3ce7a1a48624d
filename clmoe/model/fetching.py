"""Getting the parts of a base model from a folder, the local cache or the hub.

Everything that can go wrong becomes one error that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import transformers
from safetensors import SafetensorError
from transformers.utils import cached_file

from clmoe.errors import ClmoeError, UsageError
from clmoe.model.tiny import tiny_folder

if TYPE_CHECKING:
    from clmoe.recipe.schema import Base

_PATIENCE = 5.0  # seconds in which the hub has to answer at all


class Source:
    """Where the parts of one base model come from."""

    def __init__(self, config: Base) -> None:
        """Find the folder, or ask once whether the hub can be reached.

        Raises:
            ClmoeError: The folder does not exist.
            UsageError: A folder is given with a revision.
        """
        self._config = config
        self.place = _place(config)
        self.is_folder = Path(self.place).is_dir()
        self._options: dict[str, Any] = {}
        if self.is_folder and config.revision is not None:
            what = "built in" if config.model == "tiny" else "a folder"
            raise UsageError(
                f"base.revision is {config.revision}, but base.model={config.model} is {what}, "
                "which has no revisions",
                hint="leave base.revision out",
            )
        if not self.is_folder:
            # Each file would be tried six times, for half a minute in all, before giving up.
            self._options = {"revision": config.revision, "local_files_only": not _hub_answers()}

    @property
    def folder(self) -> Path | None:
        """The folder that everything is read from, or None where the hub may have to send it."""
        if self.is_folder:
            return Path(self.place)
        config = self._cached("config.json") if self._options["local_files_only"] else None
        return None if config is None else config.parent

    def chat_template(self) -> str | None:
        """The chat template that older processors have in a file of its own, or None."""
        path = self._cached("chat_template.json")
        if path is None:
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ClmoeError(f"{path} holds no chat template: {error}") from error
        return str(found)

    def _cached(self, name: str) -> Path | None:
        try:
            found = cached_file(self.place, name, **self._options)
        except OSError:
            return None
        return None if found is None else Path(found)

    def fetch(self, kind: Any, **options: Any) -> Any:
        """Return ``kind.from_pretrained`` of this source.

        Raises:
            ClmoeError: It is not there, not complete, or needs a package that is not installed.
        """
        model = self._config.model
        try:
            return kind.from_pretrained(self.place, **self._options, **options)
        except ImportError as error:
            raise ClmoeError(
                f"{model} needs a package that is not installed: {_first_line(error)}",
                hint="pip install 'clmoe[vlm]'",
            ) from error
        except (OSError, ValueError, SafetensorError) as error:
            revision = f" --revision {self._config.revision}" if self._config.revision else ""
            if self.is_folder:
                raise ClmoeError(
                    f"{self.place} is not a complete vision-language model: {_first_line(error)}",
                    hint="it needs config.json, safetensors, tokenizer and preprocessor files",
                ) from error
            raise ClmoeError(
                f"the base model {model} is not on this machine and cannot be fetched: "
                f"{_first_line(error)}",
                hint=f"hf download {model}{revision}",
            ) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load without transformers' progress bars: the library prints nothing."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _place(config: Base) -> str:
    if config.model != "tiny":
        looks_like_path = config.model.startswith(("/", ".", "~")) or config.model.count("/") > 1
        folder = Path(config.model).expanduser()
        if looks_like_path and not folder.is_dir():
            raise ClmoeError(f"base.model is the folder {config.model}, which does not exist")
        return str(folder) if folder.is_dir() else config.model
    tiny = tiny_folder()
    if not tiny.is_dir():
        raise ClmoeError(f"the built-in base model is missing from the installation ({tiny})")
    return str(tiny)


def _hub_answers() -> bool:
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # whatever the hub's client raises: files can come from the cache alone
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
