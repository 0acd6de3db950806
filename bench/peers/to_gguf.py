"""Converts a checkpoint to GGUF with llama.cpp's own script, in an environment of its own.

    python to_gguf.py LLAMA_CPP_DIR CHECKPOINT_DIR OUT_FILE

The script knows tokenizers by a hash over token ids, so it refuses one that was trained a minute
ago; this says that ours splits text as GPT-2's does. Knows nothing of fathom.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """The command line."""
    source, checkpoint, out = (Path(word).resolve() for word in sys.argv[1:4])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    base = __import__("conversion.base", fromlist=["TextModel"])
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    script = str(source / "convert_hf_to_gguf.py")
    sys.argv = [script, str(checkpoint), "--outfile", str(out), "--outtype", "bf16"]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
