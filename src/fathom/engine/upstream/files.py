"""What a proxy reads of the model's files, where it has them."""

from __future__ import annotations

import json
from pathlib import Path

from fathom.core.types import SamplingParams
from fathom.engine.generation_config import default_sampling
from fathom.engine.text_side import TextSide
from fathom.engine.upstream.chat import NOT_ASKED
from fathom.errors import ConfigError
from fathom.text.absent import UPSTREAM_TEMPLATE, AbsentTokenizer
from fathom.text.chat import choose_template
from fathom.text.tokenizer import Tokenizer


def text_side(directory: str | None) -> TextSide:
    """The text side of a model whose tokenizer files are in `directory`; None: the upstream's.

    Raises: CheckpointError, ConfigError.
    """
    if directory is None:
        unasked = SamplingParams(temperature=NOT_ASKED, top_p=NOT_ASKED)
        return TextSide(AbsentTokenizer(), UPSTREAM_TEMPLATE, unasked)
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise ConfigError("--tokenizer is not a directory", found=directory)
    tokenizer = Tokenizer.load(path)
    return TextSide(tokenizer, choose_template(tokenizer.config), default_sampling(path))


def context_of(directory: str | None) -> object:
    """What `config.json` beside the tokenizer says of the context, where it says anything."""
    try:
        file = Path(directory or "").expanduser() / "config.json"
        return json.loads(file.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
