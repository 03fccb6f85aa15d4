"""Make a base model folder: bfloat16 safetensors with config and tokenizer, and a manifest.

`python -m tunesmith_trainer.convert --gguf FILE | --hf ID | --folder FOLDER --out FOLDER`
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tunesmith_trainer import artifact
from tunesmith_trainer.failure import TrainerError, invalid_input

# Seconds the hub may take to answer the first question; without a network people should not wait for retries.
_HUB_TIMEOUT = 10.0
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def from_gguf(file: Path, target: Path) -> None:
    """Dequantise a GGUF file. It holds the tokenizer and the chat template too."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not file.is_file():
        raise invalid_input("MODEL_INVALID", f"{file} is not a file", "give the path of a .gguf file")
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, dtype=torch.float32
    )
    config = loaded.config
    # A model loaded from GGUF counts as quantized and refuses to be saved; a new one of its kind does not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    config.dtype = torch.bfloat16
    torch.nn.Module.to(plain, torch.bfloat16)
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True).save_pretrained(
        target
    )


def from_folder(folder: Path, target: Path) -> None:
    """Copy the files of a local Hugging Face folder that a model needs, after the safety checks."""
    from tunesmith_trainer.model import check_folder

    if not folder.is_dir():
        raise invalid_input("MODEL_INVALID", f"{folder} is not a folder", "give a Hugging Face model folder")
    check_folder(folder)
    for pattern in _WANTED:
        for path in folder.glob(pattern):
            if path.name != artifact.MANIFEST:
                shutil.copyfile(path, target / path.name)


def from_hub(model_id: str, target: Path) -> None:
    """Download a model from the Hugging Face hub; pickles and code are not even fetched."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        revision = HfApi().model_info(model_id, timeout=_HUB_TIMEOUT).sha
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            snapshot_download(
                model_id,
                revision=revision,
                local_dir=scratch,
                allow_patterns=list(_WANTED),
                etag_timeout=_HUB_TIMEOUT,
            )
            from_folder(Path(scratch), target)
    except TrainerError:
        raise
    except Exception as error:  # the hub's client raises what its HTTP library does
        raise invalid_input(
            "MODEL_UNREACHABLE",
            f"{model_id} cannot be fetched from the Hugging Face hub: {type(error).__name__}: {error}",
            "check the id, the network and HF_TOKEN, or download it elsewhere and use --folder",
        ) from error


def main() -> int:
    """Convert what the command line names; gives the exit code."""
    parser = argparse.ArgumentParser(prog="tunesmith_trainer.convert", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, help="a GGUF file")
    source.add_argument("--hf", metavar="ID", help="a model of the Hugging Face hub")
    source.add_argument("--folder", type=Path, help="a local Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    fill: Callable[[Path], None]
    if options.gguf:
        name, fill = options.gguf.stem, lambda target: from_gguf(options.gguf, target)
    elif options.hf:
        name, fill = options.hf, lambda target: from_hub(options.hf, target)
    else:
        name, fill = options.folder.name, lambda target: from_folder(options.folder, target)
    try:
        made = artifact.write(options.out.resolve(), "model", {"source": name}, fill)
    except TrainerError as error:
        remedy = error.failure.remedy
        sys.stderr.write(" ".join(f"{error}; {remedy}".split()) + "\n")
        return 1
    sys.stdout.write(made.digest + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
