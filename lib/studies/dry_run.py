"""Dry run: the notebooks of a profile, one after the other, with sizes cut and nothing else changed.

python -m lib.studies.dry_run --profile multi_gpu

Cut are sizes (notebooks/profiles/dry_run/), and processes to two. What is not at hand is stood in for: hub
models by random ones of their architecture, hub rows by data/samples, chat servers by `stand_in`. Weights,
sharding, vLLM and all else stay as they are; vLLM is left out where it is not installed, and that is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lib.course.declared import Parameter
from lib.course.notebooks import NOTEBOOKS, CourseError, choose, find_notebooks
from lib.course.profiles import Plan, assignment, plan, read_values
from lib.course.runner import check_plans, run_plans, table
from lib.runs import ROOT, RunFolderError
from lib.studies.cards import is_hub_name
from lib.studies.stand_in import sample_answers, serving, stand_in_model

SAMPLES = ROOT / "data" / "samples"
PORT = 18737  # the same every time, as the url is a parameter, and another one is another run
PROCESSES = 2
SIZES = (  # what an overlay may say: numbers of questions, steps, tokens and samples, and where rows lie
    *("TRAIN_QUESTIONS", "ERRING_QUESTIONS", "TEST_QUESTIONS", "CODE_QUESTIONS", "PILOT_QUESTIONS"),
    *("WATCHED_QUESTIONS", "PROMPTING_QUESTIONS", "REAL_TRAIN", "REAL_TEST", "OPE_DECISIONS", "RUN_CODE"),
    *("RUN_PUBLISHED_CODE", "STEPS", "FAULT_STEPS", "BATCHES", "LIVE_UPDATES", "REAL_UPDATES"),
    *("PROMPTS", "NUM_GENERATIONS", "PILOT_SAMPLES", "REFERENCE_SAMPLES", "PROBE_GROUPS", "VOTES"),
    *("MAX_NEW_TOKENS", "MAX_NOTHINKING_TOKENS", "BUDGETS", "DATA_FOLDER", "QUESTIONS_FILE"),
)
SIZES_OF_06 = ("UPDATES", "BATCH_SIZE")  # elsewhere UPDATES is a setting: steps on one rollout batch


# ---- from a profile to what can run here -------------------------------------------------------


def dry_plan(path: Path, profile: str, overrides: Mapping[str, Any], url: str) -> tuple[Plan, list[str]]:
    """A notebook's values in a dry run of a profile, and what is said about them."""
    planned = plan(path, profile, {})
    file = path.parent / "profiles" / "dry_run" / f"{path.stem}.yaml"
    if not planned.left_out and not file.exists():
        planned.left_out = "has no dry-run file"
    if planned.left_out:
        return planned, []
    planned.place = f"{profile}_dry_run"
    planned.given["PROFILE"] = planned.place
    where, sizes = f"{path.name}, profile file dry_run/{file.name}", read_values(file)
    planned.faults += list(size_faults(path.stem, sizes, where))
    planned.give({name: _smaller(value, planned.values.get(name)) for name, value in sizes.items()}, where)
    for parameter in planned.parameters:
        value = planned.values[parameter.name]
        if parameter.name != "PROFILE" and (new := _stand_in(parameter, value, profile, url)) != value:
            planned.give({parameter.name: new}, where)
    said = [f"{path.stem}  {line}" for line in _cut_to_this_machine(planned, where)]
    planned.override(overrides)
    return planned, said


def size_faults(stem: str, sizes: Mapping[str, Any], where: str) -> Iterator[str]:
    """Names in an overlay that are no sizes."""
    allowed = (*SIZES, *(SIZES_OF_06 if stem.startswith("06") else ()))
    for name in sizes:
        if name not in allowed:
            yield f"{where}: {name} is no size; a dry run changes {', '.join(allowed)} and nothing else."


def _smaller(value: Any, usual: Any) -> Any:
    """A size of the overlay, unless the profile's is smaller; -1 and the like mean as many as there are."""
    both = all(isinstance(number, int) and number > 0 for number in (value, usual))
    return min(value, usual) if both else value


def _stand_in(parameter: Parameter, value: Any, profile: str, url: str) -> Any:
    """What takes a value's place: another folder in runs/, a server that is there, a small random model."""
    if parameter.type != "str" or not value:
        return value
    kinds = {part.strip() for part in parameter.rule.split("|")}
    if "url" in kinds:
        return url
    if kinds & {"model", "real model"} and is_hub_name(value):
        return str(stand_in_model(value))
    return value.replace(f"runs/{profile}/", f"runs/{profile}_dry_run/")


def _cut_to_this_machine(planned: Plan, where: str) -> Iterator[str]:
    """Two processes for more; no vLLM where there is none."""
    values = planned.values
    if (count := values.get("NUM_PROCESSES", 1)) > PROCESSES:
        planned.give({"NUM_PROCESSES": PROCESSES}, where)
        yield f"{PROCESSES} processes for {count}"
    if importlib.util.find_spec("vllm") is None:
        trainer = {name: value for name, value in values.get("TRAINER", {}).items() if "vllm" not in name}
        plain = {"TRAINER": trainer, "ENGINE": "transformers"}
        asked = {name: value for name, value in plain.items() if "vllm" in str(values.get(name, ""))}
        planned.give(asked, where)
        if asked:
            yield "without vLLM, which is not installed here (make dry-run BIN=.venv-vllm/bin asks it)"


# ---- run ---------------------------------------------------------------------------------------


def dry_run(
    profile: str,
    *,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    again: bool = False,
    folder: Path = NOTEBOOKS,
    say: Callable[[str], None] = print,
) -> list[Any]:
    """Run a profile's notebooks dry; what needs no other's results runs beside the others."""
    chosen, overrides = choose(find_notebooks(folder), only, None), overrides or {}
    with serving(sample_answers(SAMPLES), PORT) as (url, *_):
        drawn = [dry_plan(path, profile, overrides, url) for path in chosen]
        plans = [planned for planned, _ in drawn]
        check_plans(plans, overrides)
        for _, said in drawn:
            for line in said:
                say(line)
        with ThreadPoolExecutor(2) as pool:
            lanes = [pool.submit(run_plans, lane, again=again, say=say) for lane in _lanes(plans)]
            outcomes = [outcome for lane in lanes for outcome in lane.result()]
    return sorted(outcomes, key=lambda outcome: outcome.notebook)


def _lanes(plans: Sequence[Plan]) -> tuple[list[Plan], list[Plan]]:
    """Those that read what others of them make, with these, in order; and the rest."""
    reads = {
        (reader.path.stem, maker.path.stem)
        for reader in plans
        for maker in plans
        if any(f"runs/{maker.place}/{maker.path.stem}/" in str(value) for value in reader.values.values())
    }
    chained = {stem for pair in reads for stem in pair}
    chain = [planned for planned in plans if planned.path.stem in chained]
    return chain, [planned for planned in plans if planned not in chain]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the profiles that the command line names; 1 where a notebook failed."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.studies.dry_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", nargs="+", required=True, metavar="NAME", help="for real models")
    parser.add_argument("--only", nargs="+", default=[], metavar="NOTEBOOK", help="by name or number")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--again", action="store_true", help="repeat what was finished before")
    given = parser.parse_args(arguments)
    failed = False
    try:
        overrides = dict(assignment(text) for text in given.set)
        for profile in given.profile:
            outcomes = dry_run(profile, only=given.only, overrides=overrides, again=given.again)
            print(f"\n{profile}, dry\n{table(outcomes)}\n", flush=True)
            failed |= any(outcome.failed for outcome in outcomes)
    except (CourseError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
