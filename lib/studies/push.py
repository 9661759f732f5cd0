"""Publish one result on the Hugging Face hub: privately, and only by this command.

python -m lib.studies.push runs/single_gpu/02_qlora_sft/checkpoint/merged --repo me/arm-3b

Log in first (`hf auth login`): the token is the library's affair, and is neither read nor printed here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError

from lib.course.rules import is_path
from lib.runs import RunFolderError, read_json
from lib.studies.cards import find_trained, write_cards

# Weights, tokenizer, card. Not the optimizer, the pickled arguments (they hold paths) or where it was made.
ALLOWED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
]
ALLOWED += ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "README.md"]


def push(folder: Path, repo: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a result with its card to a repository, which is made where it is missing; gives its address."""
    check_result(folder)
    api = api or HfApi()
    api.create_repo(repo, private=not public, exist_ok=True)
    message = f"{folder.name} by adaptive-reasoning"
    done = api.upload_folder(folder_path=folder, repo_id=repo, allow_patterns=ALLOWED, commit_message=message)
    return str(done.commit_url)


def check_result(folder: Path) -> None:
    """Hold a folder to what others need of it: weights as safetensors, a card, a base they can get."""
    if not folder.is_dir():
        raise RunFolderError(f"There is no folder {folder}.")
    below = [str(trained.folder) for trained in find_trained(folder)]
    if not list(folder.glob("*.safetensors")):
        hint = f" Push one of {', '.join(below)}." if below else ""
        raise RunFolderError(f"{folder} holds no weights as safetensors.{hint}")
    write_cards(folder)
    if not (folder / "README.md").exists() or not ModelCard.load(folder / "README.md").text.strip():
        raise RunFolderError(f"{folder} has no card: README.md says what the weights are.")
    adapter = folder / "adapter_config.json"
    base = read_json(adapter)["base_model_name_or_path"] if adapter.exists() else ""
    if base and is_path(base):
        raise RunFolderError(
            f"{adapter} names a base on this machine ({base}), so nobody else could load the adapter. Push "
            "the merged policy, or publish that base and name it there."
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.studies.push", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="the folder with the weights: checkpoint/merged, .../policy"
    )
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="for all to see, if the repository is new")
    given = parser.parse_args()
    try:
        print(push(given.folder, given.repo, public=given.public))
    except (OSError, HFValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
