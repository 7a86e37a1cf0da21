"""Model folders: where they are, the model in them, and how it is spoken to."""

import re
import shutil
from pathlib import Path

import huggingface_hub
from jax.sharding import Mesh

from sdistill.model.checkpoint import is_orbax, load_orbax
from sdistill.model.decoder import Decoder
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import CONFIG_FILE, SIGNS_BASE, load_pretrained, settled
from sdistill.settings import ConfigError
from sdistill.text.chat import Chat, SignsChat, open_chat
from sdistill.text.hugging_face import TOKENIZER_FILE
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer

TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)


def find_model(source: str | Path) -> Path:
    """The folder of a model: a local one, `signs_base`, or the download of a name such as `Qwen/Qwen3-8B`.

    Raises:
      FileNotFoundError: if it is neither; says how to get the files here.
    """
    if source == "signs_base":
        return SIGNS_BASE
    if Path(source).is_dir():
        return settled(source)
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"no folder {source}: not a model folder, nor a name of Hugging Face's")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(source), allow_patterns=["*.json", "*.jinja", "*.safetensors", "merges.txt"]
            )
        )
    except Exception as error:  # no network, no such name, no access: many classes, one way out
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"no folder {source}, and Hugging Face has no such model that can be downloaded from here "
            f"({reason}); fetch it where there is a network with `hf download {source} --local-dir FOLDER` "
            "and give that folder"
        ) from error


def load_model(source: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32") -> Decoder:
    """The model of a folder or a name; arguments and errors of `load_pretrained` and `find_model`."""
    folder = find_model(source)
    load = load_orbax if is_orbax(folder) else load_pretrained
    return load(folder, mesh=mesh, dtype=dtype)


def load_chat(source: str | Path | None) -> Chat:
    """The tokenizer and the prompts of a model, a folder or a name as `find_model` takes it.

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
    """Puts what a model folder has of tokenizer, template and generation settings beside other weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (find_model(source) / name for name in TEXT_FILES):
        if file.is_file():
            shutil.copyfile(file, target / file.name)
