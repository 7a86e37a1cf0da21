"""Converts a model folder from Hugging Face's safetensors to an Orbax checkpoint, or back.

    python -m sdistill.convert Qwen/Qwen3-0.6B models/qwen3_0p6b            # to Orbax
    python -m sdistill.convert models/qwen3_0p6b qwen3_0p6b --dtype bfloat16  # and back

The source is a folder or a name of Hugging Face's. The target has the other format, and copies of tokenizer,
chat template and generation settings. Converting there and back gives the same bits.
"""

import argparse
import sys
import time
from pathlib import Path

from sdistill.model.folders import CONFIG_FILE, copy_text_files, find_model
from sdistill.model.hugging_face import stored_dtype
from sdistill.model.weights import is_orbax, load_model, save_orbax, save_pretrained
from sdistill.settings import ConfigError


def convert(source: str | Path, target: str | Path, *, dtype: str | None = None) -> str:
    """Writes `source` to `target` in the other format.

    Args:
      dtype: Type of the parameters there; None for the one they have.

    Returns: a description of what was written.

    Raises:
      ConfigError: if the target is not empty, or the source's weights do not belong to its config.
      FileNotFoundError: if there is no such source.
    """
    source, target = find_model(source), Path(target)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; give a new folder")
    dtype = dtype or stored_dtype(source / CONFIG_FILE)
    start = time.monotonic()
    model = load_model(source, dtype=dtype)
    if is_orbax(source):
        format_name = "Hugging Face safetensors"
        save_pretrained(model, target)
    else:
        format_name = "Orbax checkpoint"
        save_orbax(model, target)
    copy_text_files(source, target)
    count, seconds = model.config.parameter_count(), time.monotonic() - start
    return f"{format_name}, {count:,} parameters in {dtype}, {seconds:.1f} s"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m sdistill.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="model folder of either format, or a name such as Qwen/Qwen3-0.6B")
    parser.add_argument("target", help="folder to write")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="type to store; default: that of the source"
    )
    arguments = parser.parse_args()
    try:
        written = convert(arguments.source, arguments.target, dtype=arguments.dtype)
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.target}: {written}")


if __name__ == "__main__":
    main()
