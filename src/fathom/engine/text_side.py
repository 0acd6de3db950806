"""What turns characters into tokens for one deployment: where its files are, and its template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fathom.config import EngineConfig
from fathom.core.types import SamplingParams
from fathom.engine.generation_config import default_sampling
from fathom.text.chat import ChatTemplate, choose_template
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from fathom.weights.index import check_directory, read_json


@dataclass(frozen=True, slots=True)
class TextSide:
    """A tokenizer, the template of its conversations, and the checkpoint's default sampling."""

    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams


def model_directory(config: EngineConfig) -> Path:
    """The checkpoint's directory: the one asked for, or the embedded model's.

    Raises: CheckpointError where it is not there.
    """
    if config.model is None:
        return embedded_path()
    return _directory(config.model)


def load_text(config: EngineConfig) -> TextSide:
    """The text side of a deployment.

    Raises: CheckpointError naming the file at fault.
    """
    model = model_directory(config)
    read_json(model / "config.json")  # a directory that holds no checkpoint is said to hold none
    tokenizer = Tokenizer.load(tokenizer_directory(config))
    return TextSide(tokenizer, choose_template(tokenizer.config), default_sampling(model))


def tokenizer_directory(config: EngineConfig) -> Path:
    """Where the tokenizer's files are. Raises: CheckpointError where that is no directory."""
    if config.tokenizer:
        return _directory(config.tokenizer)
    return model_directory(config)


def _directory(name: str) -> Path:
    path = Path(name).expanduser()
    check_directory(path)
    return path
