"""Ask a policy in words: texts in, texts out, and tasks in, rollouts out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.checked import identity
from lib.engines.base import Completion, Engine, Kept, Request, Sampling, numbered
from lib.engines.completions import ServerEngine
from lib.engines.local import TransformersEngine
from lib.engines.vllm import VLLMEngine
from lib.formats import parse_response
from lib.policies.load import fingerprint, load_policy, load_tokenizer, weights_of
from lib.tasks import Rollout, Task
from lib.verify import is_correct

Policy = tuple[PreTrainedModel, PreTrainedTokenizerBase] | Engine
ENGINES = ("transformers", "vllm", "server")
GREEDY = Sampling()
Reader = Callable[[str], tuple[str | None, str | None]]  # a response -> its format and its answer


@dataclass(frozen=True)
class Response:
    """A response as text. `tokens` count the forced prefix and the end token, as ARM counts tags."""

    text: str
    tokens: int
    truncated: bool


def load_engine(name: str, base: str, *, url: str = "", **options: Any) -> Engine:
    """An engine by name, for a model as `load_policy` knows it; a "server" is asked at `url`."""
    if name not in ENGINES:
        raise ValueError(f"engine {name!r} is not one of {', '.join(ENGINES)}")
    if name == "transformers":
        return TransformersEngine(*load_policy(base), **options)
    if name == "vllm":
        return VLLMEngine.load(base, **options)
    if not url:
        raise ValueError('engine "server" needs url, like http://localhost:8000/v1')
    return ServerEngine(url, base, load_tokenizer(base), **options)


def as_engine(policy: Policy) -> Engine:
    """An engine as it is; a model and its tokenizer as an engine of this process."""
    return TransformersEngine(*policy) if isinstance(policy, tuple) else policy


def weights_behind(policy: Policy) -> Any:
    """What tells the weights that answer from others; ValueError where neither name nor `setting` does."""
    engine = as_engine(policy)
    if isinstance(engine, Kept):
        return weights_behind(engine.engine)
    if isinstance(engine, ServerEngine):
        return fingerprint(engine.model)
    return weights_of(engine.model) if isinstance(engine, TransformersEngine) else identity(engine)


def respond(
    policy: Policy,
    prompts: Sequence[str],
    *,
    prefix: str = "",
    max_new_tokens: int = 160,
    sampling: Sampling = GREEDY,
    keys: Sequence[tuple[str, int]] | None = None,
) -> list[Response]:
    """Continue each prompt after a forced `prefix`: one response for each, in order."""
    engine = as_engine(policy)
    forced = tuple(engine.tokenizer(prefix, add_special_tokens=False).input_ids)
    encoded = engine.tokenizer(list(prompts)).input_ids if prompts else []
    requests = [
        Request(tuple(ids), forced, max_new_tokens, key)
        for ids, key in zip(encoded, keys or repeat(None, len(prompts)), strict=True)
    ]
    return [_read(engine.tokenizer, one) for one in engine.generate(requests, sampling)]


def _read(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> Response:
    ids = completion.ids if completion.truncated else completion.ids[:-1]
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    return Response(text, len(completion.ids), completion.truncated)


def read_tagged(text: str) -> tuple[str | None, str | None]:
    """The format that a tagged response opens with, and its answer where it is valid (see `lib.formats`)."""
    parsed = parse_response(text)
    return parsed.format, parsed.answer if parsed.is_valid else None


def ask(
    policy: Policy,
    tasks: Sequence[Task],
    *,
    prefix: str = "",
    read: Reader = read_tagged,
    method: str = "",
    mode: str = "adaptive",
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[Rollout]:
    """Ask each task once, in order, after a forced `prefix`; name a task twice to get two samples of it.

    `read` finds format and answer in a response; `method` and `mode` name the measurement.
    """
    samples, prompts = numbered(task.id for task in tasks), [task.prompt for task in tasks]
    keys = [(task.id, sample) for task, sample in zip(tasks, samples, strict=True)]
    named: dict[str, Any] = {"prefix": prefix, "max_new_tokens": max_new_tokens, "keys": keys}
    responses = respond(policy, prompts, sampling=Sampling(temperature, top_p, seed), **named)
    return [
        score(task, response, read, sample=sample, seed=seed, method=method, mode=mode)
        for task, sample, response in zip(tasks, samples, responses, strict=True)
    ]


def score(task: Task, response: Response, read: Reader, **names: Any) -> Rollout:
    """A response to a task as a rollout; without a reference answer it is neither right nor wrong."""
    format, answer = read(response.text)
    return Rollout(
        task_id=task.id,
        format=format,
        text=response.text,
        answer=answer,
        correct=is_correct(answer, task.answer, task.kind) if task.answer else None,
        tokens=response.tokens,
        truncated=response.truncated,
        **names,
    )
