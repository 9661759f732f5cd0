"""Engines: token ids in, token ids out; whoever asks in words gets the same from each of them."""

import json

import pytest

from lib.dial import (
    WORLDS,
    dial_tasks,
    dial_tokenizer,
    gold_response,
    new_dial_model,
    parse_question,
    token_cost,
)
from lib.engines.ask import Response, ask, read_tagged, respond, score
from lib.engines.base import Completion, Kept, Request, Sampling
from lib.engines.local import TransformersEngine, cut
from lib.formats import ReasoningFormat
from lib.methods.rewards import accuracy_reward
from lib.tasks import task_rows


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(new_dial_model(seed=0).eval(), dial_tokenizer())


def prompts_of(count, *depths):
    return [task.prompt for task in dial_tasks(count, seed=0, depths=depths)]


def test_batching_and_padding_change_nothing_and_the_prefix_counts(engine):
    prompts = prompts_of(7, 9, 1, 5)
    small = TransformersEngine(engine.model, engine.tokenizer, batch_size=3)
    few_tokens = TransformersEngine(engine.model, engine.tokenizer, batch_tokens=90)
    options = {"prefix": "<COT>\n", "max_new_tokens": 5}
    alone = [respond(engine, [prompt], **options)[0] for prompt in prompts]
    assert respond(small, prompts, **options) == respond(few_tokens, prompts, **options) == alone
    for response in alone:
        assert response.text.startswith("<COT>\n")
        assert response.tokens == 6 if response.truncated else response.tokens <= 6
    assert respond(engine, []) == []


def test_a_batch_holds_so_many_tokens_and_no_more(engine):
    requests = [Request(tuple(range(n)), max_new_tokens=10) for n in (50, 10, 10, 30, 80)]
    batches = TransformersEngine(engine.model, engine.tokenizer, batch_tokens=80)._batches(requests)
    assert list(batches) == [[1, 2], [3], [0], [4]]  # a request alone may be larger than a batch


def test_a_completion_ends_at_its_end_or_its_cap():
    request = Request((1,), forced_ids=(7,), max_new_tokens=3)
    assert cut(request, [5, 0, 9, 9], {0, 2}) == Completion((7, 5, 0), truncated=False)
    assert cut(request, [5, 2, 0, 9], {0, 2}) == Completion((7, 5, 2), truncated=False)
    assert cut(request, [5, 5, 5, 0], {0, 2}) == Completion((7, 5, 5, 5), truncated=True)


def test_sampling_is_seeded(engine):
    prompts = prompts_of(4, 1, 5)
    one, same, other = (
        respond(engine, prompts, max_new_tokens=8, sampling=Sampling(1.0, seed=seed)) for seed in (0, 0, 1)
    )
    assert one == same != other
    with pytest.raises(ValueError, match="temperature must be 0"):
        Sampling(-1.0)
    with pytest.raises(ValueError, match="top_p must lie above 0"):
        Sampling(1.0, top_p=0)


class Reciter:
    """An engine that knows what to write: a text for each prompt."""

    def __init__(self, texts):
        self.tokenizer, self.texts, self.asked = dial_tokenizer(), texts, 0

    def generate(self, requests, sampling):
        self.asked += len(requests)
        prompts = [self.tokenizer.decode(list(request.prompt_ids)) for request in requests]
        ids = [self.tokenizer(self.texts[prompt]).input_ids for prompt in prompts]
        return [Completion((*row, self.tokenizer.eos_token_id), truncated=False) for row in ids]


def test_gold_responses_are_right_at_their_closed_form_cost():
    tasks = dial_tasks(24, seed=0, depths=range(1, 13))
    gold = {t.prompt: gold_response(parse_question(t.question), ReasoningFormat.CODE) for t in tasks}
    rollouts = ask(Reciter(gold), tasks, mode="code", seed=3, method="gold")
    assert all(rollout.correct and not rollout.truncated for rollout in rollouts)
    assert [r.tokens for r in rollouts] == [token_cost(ReasoningFormat.CODE, t.depth) for t in tasks]
    assert {(r.method, r.mode, r.format, r.seed) for r in rollouts} == {("gold", "code", "code", 3)}
    wrong = ask(Reciter(gold), tasks, read=lambda text: (None, "x"))
    assert not any(rollout.correct for rollout in wrong)


@pytest.mark.parametrize("world", WORLDS)
def test_the_kind_of_a_task_reaches_measuring_and_training_alike(world):
    """The kind was guessed in two places, each in its own way: training on the cups never earned anything."""
    tasks = dial_tasks(12, split="train", seed=0, world=world)
    rows = task_rows(tasks)
    gold = [gold_response(parse_question(task.question), ReasoningFormat.DIRECT) for task in tasks]
    columns = {name: [row[name] for row in rows] for name in ("answer", "kind")}
    assert accuracy_reward()(completions=gold, **columns) == [1.0] * 12
    scored = [
        score(task, Response(text, 4, False), read_tagged, sample=0, seed=0, method="", mode="")
        for task, text in zip(tasks, gold, strict=True)
    ]
    assert all(rollout.correct for rollout in scored)


def test_samples_of_a_task_are_counted_and_responses_may_be_revised():
    [task] = dial_tasks(1, seed=0)
    engine = Reciter({task.prompt: "It shows 3."})
    found = ask(engine, [task] * 3, revise=lambda prompts, given: [Response("x", 1, True)] * len(given))
    assert [(r.sample, r.text, r.tokens) for r in found] == [(0, "x", 1), (1, "x", 1), (2, "x", 1)]


def test_a_killed_measurement_goes_on_where_it_was(tmp_path):
    tasks = dial_tasks(10, seed=0, distinct=True)
    texts = {
        task.prompt: gold_response(parse_question(task.question), ReasoningFormat.CODE) for task in tasks
    }
    path = tmp_path / "kept.jsonl"
    first = Kept(Reciter(texts), path, at_once=3)
    whole = ask(first, tasks * 2)
    assert first.engine.asked == 20 and len(path.read_text().splitlines()) == 20
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:11]) + lines[11][:20])  # killed in mid-write
    again = Kept(Reciter(texts), path, at_once=3)
    assert ask(again, tasks * 2) == whole and again.engine.asked == 9
    assert all(json.loads(line)["digest"] for line in path.read_text().splitlines())
    ask(again, tasks, seed=1)
    assert again.engine.asked == 19  # another question to the engine, not the same
    with pytest.raises(ValueError, match="give each a key of its own"):
        respond(again, [tasks[0].prompt] * 2)


def test_what_is_kept_is_what_the_engine_draws(engine, tmp_path):
    tasks = dial_tasks(6, seed=0)
    options = {"temperature": 1.0, "max_new_tokens": 8, "seed": 4}
    kept = Kept(engine, tmp_path / "kept.jsonl")
    drawn = ask(engine, tasks, **options)
    assert ask(kept, tasks, **options) == ask(kept, tasks, **options) == drawn
