"""Model folders: where they are, how a model in one is replaced, and the tokenizer that comes with it."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub

from sdistill.model.hugging_face import from_hugging_face
from sdistill.settings import ConfigError
from sdistill.text.chat import Chat, SignsChat, open_chat
from sdistill.text.hugging_face import TOKENIZER_FILE
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer

SIGNS_BASE = Path(__file__).parent / "assets" / "signs_base"
"""The shipped base model of the signs puzzle; `configs/signs/pretrain.py` makes it."""

CONFIG_FILE = "config.json"
"""Written last: a folder that has it has all of its weights."""

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

ORBAX_PARAMS = "params"
"""The subfolder that Orbax writes instead of safetensors."""

TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)

_NEW, _MOVING = ".new", ".moving"


def find_model(source: str | Path) -> Path:
    """The folder of a model: a local one, `signs_base`, or the download of a name such as `Qwen/Qwen3-8B`.

    Raises:
      FileNotFoundError: if it is neither, or a run's directory; says how to get a model here, or where it is.
    """
    if source == "signs_base":
        return SIGNS_BASE
    if Path(source).is_dir():
        if (Path(source) / "checkpoints").is_dir() or (Path(source) / "model" / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{source} is a run; its model is in {source}/model once it has ended")
        return finish_exchange(source)
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"no folder {source}: not a model folder, nor a name of Hugging Face's")
    patterns = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # no network, no such name, no access: many classes, one way out
        raise FileNotFoundError(
            f"no folder {source}, and Hugging Face has no such model that can be downloaded from here "
            f"({first_line(error)}); fetch it where there is a network with "
            f"`hf download {source} --local-dir FOLDER` and give that folder"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_chat(source: str | Path | None) -> Chat:
    """The tokenizer and the prompt format of a model, a folder or a name as `find_model` takes it.

    The signs puzzle's for None, and for a folder without `tokenizer.json` whose model has the puzzle's
    vocabulary, up to the next multiple of 8.

    Raises:
      FileNotFoundError: if a file is missing.
      ConfigError: if there is no tokenizer and the model is not of the puzzle.
    """
    signs = SentencePieceTokenizer(SIGNS_TOKENIZER)
    if source is None:
        return SignsChat(signs)
    folder = find_model(source)
    if (folder / TOKENIZER_FILE).is_file():
        return open_chat(folder)
    vocab_size = from_hugging_face(folder / CONFIG_FILE).vocab_size
    if vocab_size >= signs.vocab_size + 8:
        raise ConfigError(
            f"{folder} has no {TOKENIZER_FILE}, and its vocab_size={vocab_size} is not the signs puzzle's; "
            "give the folder or the name of the model that it comes from as tokenizer"
        )
    return SignsChat(signs)


def copy_text_files(source: str | Path, target: Path) -> None:
    """Copies the tokenizer, chat template and generation settings of a model that are there."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (find_model(source) / name for name in TEXT_FILES):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


@contextlib.contextmanager
def replace_model(path: str | Path) -> Iterator[Path]:
    """A folder to write a model to, `config.json` last, that then takes the place of the model in `path`.

    If this is interrupted, `path` holds the old model or the new one, whole: the old one until the new one
    is all on disk; from then on `finish_exchange` completes the exchange. Other files of `path` stay.
    """
    path = finish_exchange(path)
    new = path / _NEW
    shutil.rmtree(new, ignore_errors=True)  # of an earlier save that was interrupted
    new.mkdir(parents=True, exist_ok=True)
    yield new
    finish_exchange(path)


def finish_exchange(path: str | Path) -> Path:
    """The folder, after finishing an interrupted exchange of its model (see `replace_model`).

    During an exchange there is no `config.json`, so nobody else takes a mixture for a model.
    """
    path = Path(path)
    new, moving = path / _NEW, path / _MOVING
    if (new / CONFIG_FILE).is_file():  # the new model is whole
        for old in (path / CONFIG_FILE, path / INDEX_FILE, *path.glob("model*.safetensors")):
            old.unlink(missing_ok=True)
        if (path / ORBAX_PARAMS).is_dir():
            shutil.rmtree(path / ORBAX_PARAMS)
        new.rename(moving)  # from here on, nothing in `path` is of the old model
    if moving.is_dir():
        for part in sorted(moving.iterdir(), key=lambda part: part.name == CONFIG_FILE):
            part.replace(path / part.name)
        moving.rmdir()
    return path
