"""Model cards: what a training left says what it is, in the README.md beside its weights.

python -m lib.studies.cards runs/single_gpu/03_ada_grpo

Method, base, data, settings and numbers come from the run folder; no place on this machine is named.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import ModelCard, ModelCardData

from lib.course.rules import SHIPPED, is_path
from lib.runs import ROOT, RunFolderError, located, read_json, runs_folder, write_atomically
from lib.sources.catalogue import SOURCES

IGNORED = ("previous", "models")  # folders of a run that hold no result of it
NOT_SETTINGS = ("base", "method", "start", "rows", "validation_rows", "reward")
HEAD = {
    "sft": "Supervised fine-tuning on four formats ([ARM](https://arxiv.org/abs/2505.20258), section 4.1)",
    "ada_grpo": "Ada-GRPO ([ARM](https://arxiv.org/abs/2505.20258), section 4.2)",
    "adaptthink": "[AdaptThink](https://arxiv.org/abs/2505.13417)",
}
FRAMES = {
    "formats": 'The prompt is `"Human: {question}\\nAssistant:"`; a response opens with `<ANSWER>`, `<COT>`, '
    "`<CODE>` or `<LONG_COT>`, and the answer stands between `<ANSWER>` and `</ANSWER>`.",
    "thinking": "The prompt ends in `<think>` (by the chat template, where there is one); a response that "
    "begins with `</think>` skips thinking.",
}
TEXT = """\
# {name}

{method}, {weights}, from {base}.
Made with the notebook {notebook} of adaptive-reasoning, seed {seed}, {steps} steps, {date}, commit {commit}.

## Data

{data}

## Settings

```yaml
{settings}```

Versions: {versions}.

## Numbers

{numbers}

## How to use it

```python
{loading}
```

{frame}

## Licence

The licences of the base model and of the data apply. Choose one that they allow before you publish this.
"""


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one of the hub: not shipped, no folder."""
    return name not in SHIPPED and not is_path(name)


@dataclass(frozen=True)
class Trained:
    """A folder of weights, with what is known of the training that made it."""

    folder: Path
    settings: dict[str, Any]
    finished: dict[str, Any]
    run: Path  # the notebook's
    parameters: dict[str, Any]  # the notebook's

    @property
    def method(self) -> str:
        return self.settings.get("method", "sft")

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").exists()


def find_trained(folder: Path) -> list[Trained]:
    """Every result of a finished training in or below a folder: adapters, merged and whole policies."""
    folder, found = folder.resolve(), []
    for place in sorted({path.parent for path in folder.rglob("*.safetensors")}):
        below = place.relative_to(folder).parts
        hidden = any(part in IGNORED or part.startswith((".", "checkpoint-")) for part in below)
        training = [p for p in (place.parent, place.parent / "checkpoint") if (p / "finished.json").exists()]
        if training and not hidden:
            settings, finished = (read_json(training[0] / f"{name}.json") for name in ("config", "finished"))
            run = next((p for p in place.parents if _is_notebooks(p)), None)
            if run is None:
                raise RunFolderError(
                    f"{place}: no notebook's run lies above it, so nothing is known of its data"
                )
            found.append(Trained(place, settings, finished, run, read_json(run / "config.json")))
    return found


def _is_notebooks(folder: Path) -> bool:
    return (folder / "config.json").exists() and "PROFILE" in read_json(folder / "config.json")


def write_cards(folder: Path) -> list[Path]:
    """Write the card of every result below a run folder, where it changed; the cards' paths.

    Others may tell a policy by sizes and times of its files, so a card that says the same is not touched.
    """
    written = []
    for trained in find_trained(folder):
        path, text = trained.folder / "README.md", str(make_card(trained))
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
        written.append(path)
    return written


def make_card(trained: Trained) -> ModelCard:
    """The card of one result."""
    base, revision, words = base_of(trained.settings["base"])
    # An adapter fits its own base only.
    own = trained.is_adapter and not is_hub_name(trained.settings["base"])
    counts, local = _counted(trained.folder), _from_files(trained.parameters)
    hubs = [SOURCES[name].hub for name in counts if name in SOURCES and not local]
    header = ModelCardData(
        base_model=None if own else base,
        library_name="peft" if trained.is_adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=[hub for hub in hubs if hub] or None,
        tags=["adaptive-reasoning", trained.method.replace("_", "-"), "trl"],
    )
    weights = trained.settings.get("weights", "full")
    kinds = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA (LoRA on a base in NF4)"}
    facts = {
        "name": f"{trained.method} {trained.folder.name}",
        "method": HEAD.get(trained.method, trained.method),
        "weights": kinds[weights] + (", adapter" if trained.is_adapter else ", merged" * (weights != "full")),
        "base": words,
        "notebook": (trained.run.parent if trained.parameters.get("RUN_NAME") else trained.run).name,
        "seed": trained.settings.get("seed"),
        "steps": trained.finished["facts"].get("steps"),
        "date": trained.finished["date"],
        "commit": (trained.finished["commit"] or "unknown")[:12],
        "data": "\n".join(_data_lines(counts, local)) or "Not known.",
        "settings": _settings(trained.settings),
        "versions": ", ".join(f"{name} {version}" for name, version in trained.finished["versions"].items()),
        "numbers": _numbers(trained),
        "loading": _loading(trained, base if not own else None, revision),
        "frame": FRAMES[trained.settings.get("reading", "formats")],
    }
    return ModelCard(_without_places(f"---\n{header.to_yaml()}\n---\n\n{TEXT.format(**facts)}"))


# ---- the base ----------------------------------------------------------------------------------


def base_of(name: str) -> tuple[str | None, str | None, str]:
    """Hub name, revision and words of a base; a policy of ours leads back to what it was trained from."""
    if is_hub_name(name):
        hub, _, revision = name.partition("@")
        return hub, revision or None, f"`{hub}`" + (f" at revision `{revision}`" if revision else "")
    if name in SHIPPED:
        return None, None, f"`{name}`, which comes with adaptive-reasoning"
    card = located(name) / "README.md"
    known = ModelCard.load(card).data.base_model if card.exists() else None
    if known is None or is_path(str(known)):
        return None, None, f"a local policy, `{Path(name).name}`"
    return str(known), None, f"a local policy, `{Path(name).name}`, which was trained from `{known}`"


# ---- parts of the text -------------------------------------------------------------------------


def _counted(folder: Path) -> Counter[str]:
    """Training rows by source, from the rows that the notebook gave to the training."""
    rows = next((p / "rows.jsonl" for p in folder.parents if (p / "rows.jsonl").exists()), None)
    if rows is None:
        return Counter()
    table = pd.read_json(rows, lines=True, dtype=False)
    return Counter(table["source"] if "source" in table else table["id"].str.partition("/")[0])


def _from_files(parameters: Mapping[str, Any]) -> bool:
    """Whether training rows came from local files, whose revision is not known: of 02, those of 01."""
    if file := parameters.get("SFT_ROWS"):
        made = located(file).parent.parent / "config.json"
        return not made.exists() or bool(read_json(made).get("DATA_FOLDER"))
    return bool(parameters.get("DATA_FOLDER"))


def _data_lines(counts: Mapping[str, int], local: bool) -> Iterator[str]:
    for name, count in counts.items():
        if name in SOURCES:
            source = SOURCES[name]
            place = f"`{source.hub}` at `{source.revision}`" if source.hub and not local else "local files"
            yield f"- {name}: {count} training rows ({source.home}, {place}; licence: {source.licence})"
        else:
            yield f"- {name}: {count} training rows, drawn by adaptive-reasoning"


def _settings(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump({k: v for k, v in settings.items() if k not in NOT_SETTINGS}, sort_keys=False)


def _numbers(trained: Trained) -> str:
    """What the notebook measured of this policy, as a table."""
    file = trained.run / "metrics.json"
    metrics = read_json(file) if file.exists() else {}
    own = metrics.get(trained.method) or metrics.get(trained.settings.get("weights", ""))
    if not isinstance(own, dict):
        return "Not measured."
    flat = pd.json_normalize(own).iloc[0]
    rows = [f"| {name} | {value:.4g} |" for name, value in flat.items() if pd.api.types.is_number(value)]
    sources, count = trained.parameters.get("TEST_SOURCES", []), trained.parameters.get("TEST_QUESTIONS")
    asked = f"On {count} test questions of {', '.join(sources)} (responses of at most "
    asked += f"{trained.parameters.get('MAX_NEW_TOKENS')} tokens), one seed:"
    return "\n".join([asked, "", "| measure | value |", "|---|---|", *rows])


def _loading(trained: Trained, base: str | None, revision: str | None) -> str:
    at = f", revision={revision!r}" if revision else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    place = '"path/or/name/of/this/repository"'
    if not trained.is_adapter:
        lines += [f"model = AutoModelForCausalLM.from_pretrained({place})"]
    else:
        lines[:0] = ["from peft import PeftModel"]
        where = f'"{base}"{at}' if base else '"the/local/policy/named/above"'
        lines += [f"base = AutoModelForCausalLM.from_pretrained({where})"]
        lines += [f"model = PeftModel.from_pretrained(base, {place})"]
        if trained.settings.get("weights") == "qlora":
            lines += ["# trained on the base in NF4: load it so, or merge as lib.policies.merge_adapter does"]
    return "\n".join([*lines, f"tokenizer = AutoTokenizer.from_pretrained({place})"])


def _without_places(text: str) -> str:
    """The text without folders of this machine."""
    for place, name in ((runs_folder(), "runs"), (ROOT, "."), (Path.home(), "~")):
        text = text.replace(str(place.resolve()), name).replace(str(place), name)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.studies.cards", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run folder; every result below it gets a card")
    written = write_cards(parser.parse_args().folder)
    print("\n".join(map(str, written)) or "no finished training lies there")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
