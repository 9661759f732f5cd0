"""The architecture behind a model's name: from data/models.yaml, a folder, or the notebook that makes it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.course.notebooks import NOTEBOOKS
from lib.course.profiles import plan
from lib.runs import ROOT, located

FILE = ROOT / "data" / "models.yaml"
_MADE = re.compile(r"(?:.*/)?runs/(?P<place>[^/]+)/(?P<notebook>\d\d_[^/]+)/")
_SMALL = re.compile(r"dial-|data/checkpoints/")


class PlanError(Exception):
    """Nothing can be planned; the message says what is missing and what to give."""


@dataclass(frozen=True)
class Model:
    """A decoder's sizes. Norms and biases, 0.01 % of the weights, are left out."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int  # width of one head
    wide: int  # of the feed-forward layer
    vocabulary: int
    tied: bool

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices."""
        return 2 * self.hidden * self.head * (self.heads + self.kv_heads) + 3 * self.hidden * self.wide

    @property
    def matrices(self) -> int:
        """Weights of all layers' matrices: what NF4 stores and LoRA adapts."""
        return self.layers * self.layer

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.matrices + self.table * (2 - self.tied)

    def adapters(self, rank: int) -> int:
        """Weights of LoRA on all linear layers but the output."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        inputs_outputs = (
            2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.wide)
        )
        return rank * self.layers * inputs_outputs

    def kv(self, width: int) -> int:
        """Bytes of one token's keys and values, of `width` bytes each."""
        return 2 * self.layers * self.kv_heads * self.head * width


def find_model(name: str, where: str = "MODEL") -> Model | None:
    """The sizes of a model by its name, folder or run; None for the dial world's and random ones.

    Raises PlanError for one that is not known, with what to give.
    """
    if _SMALL.match(name):
        return None
    folder = located(name)
    if (folder / "config.json").exists():
        return _from_config(name, folder / "config.json")
    if (folder / "adapter_config.json").exists():
        return find_model(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    if made := _MADE.match(name):
        return find_model(_base_of(made["place"], made["notebook"]), where)
    known = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    if sizes := known.get(_plain(name)):
        return Model(name, **sizes)
    decoders = ", ".join(one for one in known if "hidden" in known[one])
    raise PlanError(
        f"{where}={name!r}: its architecture is not known. Give a local folder with its config.json, or add "
        f"it to {FILE.relative_to(ROOT)}, which has {decoders}."
    )


def smaller(model: Model) -> list[str]:
    """Names of the same family's smaller models, the largest first."""
    known = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    family = re.sub(r"[\d.]+B$", "", _plain(model.name))
    others = [
        Model(name, **sizes) for name, sizes in known.items() if re.sub(r"[\d.]+B$", "", name) == family
    ]
    fewer = [one for one in others if one.parameters < model.parameters]
    return [one.name for one in sorted(fewer, key=lambda one: -one.parameters)]


def encoder_parameters(name: str, where: str) -> int:
    """How many weights an encoder has."""
    known = yaml.safe_load(FILE.read_text(encoding="utf-8")).get(_plain(name), {})
    if "parameters" not in known:
        raise PlanError(f"{where}={name!r}: add the number of its parameters to {FILE.relative_to(ROOT)}.")
    return known["parameters"]


def _plain(name: str) -> str:
    return name.partition("@")[0].removesuffix("-Instruct")


def _base_of(profile: str, notebook: str) -> str:
    """The model that a notebook of a profile starts from."""
    return str(plan(NOTEBOOKS / f"{notebook}.ipynb", profile, {}).values["MODEL"])


def _from_config(name: str, file: Path) -> Model:
    read = json.loads(file.read_text(encoding="utf-8"))
    heads = read["num_attention_heads"]
    return Model(
        name=name,
        hidden=read["hidden_size"],
        layers=read["num_hidden_layers"],
        heads=heads,
        kv_heads=read.get("num_key_value_heads", heads),
        head=read.get("head_dim") or read["hidden_size"] // heads,
        wide=read["intermediate_size"],
        vocabulary=read["vocab_size"],
        tied=read.get("tie_word_embeddings", False),
    )
