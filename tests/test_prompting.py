"""Prompts, reading replies, sampling baselines, judges and embedders, on scripted and small real models."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

from lib.bandit.actions import Action, ActionSpace
from lib.bandit.environments import LLMEnvironment
from lib.bandit.llms import CUT, LocalLLM, Request
from lib.engines.ask import as_engine, weights_behind
from lib.engines.base import Kept
from lib.engines.completions import ServerEngine
from lib.engines.vllm import VLLMEngine
from lib.policies.adapters import add_lora, merge_adapter
from lib.policies.load import fingerprint, load_policy
from lib.studies import embedders, judges, prompting
from lib.studies import prompting_baselines as baselines


class Scripted:
    """A frozen LLM that answers by a rule of prompt and seed."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def ask(self, requests):
        self.asked += requests
        return [self.rule(request) for request in requests]


# ---- prompts


def test_the_configured_prompt_holds_all_parts():
    action = ActionSpace.paper().decode(4321)
    prompt = prompting.configured_prompt("Is 7 prime?", action)
    assert "Is 7 prime?" in prompt and action.instruction in prompt
    assert f"at most {action.steps} steps" in prompt


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Thinking.\nAnswer: B", "B"),
        ("Answer: 3\nNo, wait.\nAnswer: 4.", "4"),
        ("**Answer:** (C)", "C"),
        ("answer: yes", "yes"),
        ("The answer is B", None),
        ("", None),
    ],
)
def test_reading_a_reply(reply, answer):
    assert prompting.read_reply(reply) == answer


# ---- baselines


def test_self_consistency_counts_answers_and_leaves_out_what_cannot_be_read():
    replies = ["Answer: 1", "?", "Answer: 2", "Answer: 2", "?"]
    assert baselines.self_consistency(replies, prompting.read_reply) == "2"
    assert baselines.self_consistency(["?"], prompting.read_reply) is None


def test_best_of_n_takes_the_best_and_sampling_drops_failures():
    llm = Scripted(lambda r: None if r.seed == 1 else "x" * r.seed or CUT)
    ((*replies,),) = baselines.sample(llm, ["p"], count=4, temperature=1.0)
    assert replies == ["xx", "xxx"] and baselines.best_of_n(replies, len) == "xxx"
    assert baselines.best_of_n([], len) is None


def test_auto_cot_takes_one_answered_example_near_each_centre():
    embeddings = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0], [5.05, 5.0]])
    replies = ["a", "b", "c", "d", None]
    examples = baselines.auto_cot_examples(list("12345"), embeddings, replies, count=2, seed=0)
    assert (
        len(examples) == 2 and {e[0] for e in examples} & {"1", "2"} and {e[0] for e in examples} & {"3", "4"}
    )
    assert baselines.with_examples("Q", [("P", "R")]) == "P R\nQ"


def test_the_tree_follows_the_beginning_whose_continuations_agree():
    def rule(request):
        begun = request.prompt.removeprefix("Q")
        if "good" in begun:
            return "more\nAnswer: 7"
        if "bad" in begun:
            return f"more\nAnswer: {request.seed}"
        return "good\nAnswer: 7" if request.seed % 4 in (0, 1, 2) else "bad\nAnswer: 1"

    llm = Scripted(rule)
    assert baselines.tree_of_thoughts(llm, "Q", prompting.read_reply) == "7"
    assert baselines.tree_of_thoughts(Scripted(lambda r: None), "Q", prompting.read_reply) is None
    assert any("good" in r.prompt for r in llm.asked)  # it went on from a kept beginning


def test_reflection_shows_the_first_attempt_and_falls_back_on_it():
    llm = Scripted(lambda r: "Answer: 2" if "Q1" in r.prompt else None)
    first = ["Answer: 1", "Answer: 5", None]
    assert baselines.reflect(llm, ["Q1", "Q2", "Q3"], first) == ["Answer: 2", "Answer: 5", None]
    assert len(llm.asked) == 2 and "Answer: 1" in llm.asked[0].prompt
    baselines.reflect(llm, ["Q1"], ["R"], ask="{prompt} {reply}\n{prompt}")
    assert llm.asked[-1].prompt == "Q1 R\nQ1"


def test_a_meter_counts_what_every_reply_costs():
    metered = baselines.Metered(
        Scripted(lambda r: None if r.seed else "one two"), lambda t: len(t.split()), 9
    )
    assert metered.ask([Request("p", 0.0), Request("p", 0.0, 1)]) == ["one two", None]
    assert metered.costs == [2, 9] == metered.per_question(2) and metered.per_question(1) == [11]
    with pytest.raises(ValueError, match="2 requests do not belong to 3 questions"):
        metered.per_question(3)


def test_selection_takes_the_medoid_of_the_largest_group():
    angles = torch.tensor([0.0, 0.1, 0.2, 1.5, 1.6])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    assert baselines.select_by_cluster(list("abcde"), embeddings) == "b"
    assert baselines.select_by_cluster([], embeddings[:0]) is None


# ---- a local model as the frozen LLM


def test_a_local_llm_asks_once_and_remembers(tmp_path):
    cache = tmp_path / "answers.jsonl"
    model, tokenizer = load_policy("dial-llm")
    question = "Human: The red dial shows 3. Turn it +4 x7 then +1. Now? think 2.\nAssistant:"
    requests = [Request(question, 0.0, seed) for seed in (0, 5)] + [Request(question, 1.0, s) for s in (0, 1)]
    llm = LocalLLM((model, tokenizer), cache=cache)
    first = llm.ask(requests)
    assert first[0] == first[1] and "It shows" in first[0]
    llm.engine = None  # from here on there is nobody to ask
    assert llm.ask(requests) == first
    with llm.cache.path.open("a") as file:
        file.write('["half a li')  # what a kill leaves behind
    again = LocalLLM((model, tokenizer), cache=cache)
    again.engine = None
    assert again.ask(requests) == first
    assert LocalLLM((model, tokenizer), cache=cache, max_new_tokens=3).ask(requests[:1]) == [CUT]
    other = LocalLLM(load_policy("dial-sft"), cache=cache)
    assert other.ask(requests[:1]) != first[:1], "another model gave the kept reply of the first"


def test_a_local_llm_gives_no_reply_of_other_weights_with_the_same_name(tmp_path):
    """A model keeps the name of its base, whatever became of its weights."""
    cache, [request] = tmp_path / "answers.jsonl", [Request("Human: Now?", 0.0)]
    base, tokenizer = load_policy("dial-llm")
    adapted = add_lora(load_policy("dial-llm")[0], rank=2, alpha=4)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    others = [adapted, *(merge_adapter("dial-llm", tmp_path / "adapter", quantised=q) for q in (False, True))]
    others += [load_policy("dial-llm", quantised=True)[0], load_policy("dial-llm", dtype=torch.bfloat16)[0]]
    trained = load_policy("dial-llm")[0]
    trained.model.norm.weight.data += 1e-3
    models = [base, *others, trained]
    assert len({model.name_or_path for model in models}) == 1
    llms = [LocalLLM((model, tokenizer), cache=cache) for model in models]
    assert len({llm.cache.path for llm in llms}) == len(models)
    first, merged = llms[0].ask([request]), LocalLLM((models[2], tokenizer), cache=cache)
    assert merged.ask([request]) != first, "the merged model gave the kept reply of its base"
    again = LocalLLM(
        (merge_adapter("dial-llm", tmp_path / "adapter", quantised=False), tokenizer), cache=cache
    )
    assert again.setting == merged.setting and again.replies == merged.replies
    assert llms[0].setting["model"] == fingerprint("dial-llm")  # as shipped runs name it


def test_an_engine_is_named_by_what_it_was_loaded_from(tmp_path, monkeypatch):
    """It was named by its place in memory, so no cache was found again and no bandit run went on."""
    local = as_engine(load_policy("dial-llm"))
    kept = Kept(Kept(local, tmp_path / "kept.jsonl"), tmp_path / "again.jsonl")
    server = ServerEngine("http://x/v1", "dial-llm", local.tokenizer)
    assert weights_behind(kept) == weights_behind(local) == weights_behind(server) == fingerprint("dial-llm")
    monkeypatch.setattr("lib.engines.vllm.import_vllm", lambda: SimpleNamespace(LLM=lambda **given: object()))
    loaded = [("dial-llm", {}), ("dial-sft", {}), ("dial-llm", {"dtype": "bfloat16"})]
    names = [weights_behind(VLLMEngine.load(base, **options)) for base, options in loaded]
    again = Kept(VLLMEngine.load("dial-llm", memory_share=0.5), tmp_path / "kept.jsonl")
    assert len(set(names)) == 3 and weights_behind(again) == names[0]
    for nameless in (VLLMEngine(object(), local.tokenizer), SimpleNamespace(tokenizer=None, generate=None)):
        with pytest.raises(ValueError, match=r"nothing says what it is.*give it an attribute `setting`"):
            LocalLLM(nameless)
    assert LocalLLM(SimpleNamespace(generate=None, setting="mine")).setting["model"] == "mine"


def test_a_cut_reply_earns_nothing_and_no_reply_is_not_counted():
    replies = {"a": "Answer: 1", "b": CUT, "c": None}
    space = ActionSpace(("think",), (0.0,), (3,))
    world = LLMEnvironment(
        Scripted(lambda request: replies[request.prompt]), list("abc"), space, lambda q, _: q, lambda *_: 1.0
    )
    rewards = world(torch.arange(3), torch.zeros(3, dtype=torch.long), 0)
    assert rewards[:2].tolist() == [1.0, 0.0] and rewards[2].isnan()
    meter = baselines.Metered(world.llm, len, no_reply=99)
    assert meter.ask([Request(prompt, 0.0) for prompt in "abc"]) == ["Answer: 1", CUT, None]
    assert meter.costs == [9, 99, 99] and baselines.sample(meter, ["a", "b"], count=1, temperature=0.0) == [
        ["Answer: 1"],
        [],
    ]


# ---- judges and embedders, with real architectures on disk


@pytest.fixture
def tokenizer(word_level_tokenizer):
    return word_level_tokenizer


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SIZES = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def judged(judge):
    torch.manual_seed(0)
    return judge(
        prompts=["question one", "question two", "the question"],
        completions=["it is right", "it is wrong wrong wrong", "no"],
        answer=["one", "two", "yes"],
    )


def test_the_reward_model_is_loaded_and_squashed(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES, num_labels=1))
    path = saved(model, tokenizer, tmp_path)
    scores = judged(judges.RewardModelJudge(path, batch_size=2))
    assert len(scores) == 3 and all(0 < score < 1 for score in scores) and len(set(scores)) > 1
    assert scores == pytest.approx(judged(judges.RewardModelJudge(path, batch_size=1)), abs=1e-5)


def test_the_reference_is_read_however_long_reply_and_question_are(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES, num_labels=1))
    judge = judges.RewardModelJudge(saved(model, tokenizer, tmp_path), window=64)
    short, long = "one question", "one " + "yes " * 500 + "two"
    assert judge.pair(short, "it is right", "no") == {
        "text": short,
        "text_pair": "The reply is: it is right\nIt agrees with the reference answer no and is correct.",
    }
    for prompt, reply in ((short, long), (long, "it is right"), (long, long)):
        pair = judge.pair(prompt, reply, "no")
        assert pair["text_pair"].endswith("It agrees with the reference answer no and is correct.")
        assert 50 <= len(tokenizer(**pair).input_ids) + 3 <= 64  # all of it, and most of the window
        for text in (pair["text"], pair["text_pair"]):
            assert "yes" not in text or ("one yes" in text and "yes two" in text)  # beginning and end
    apart = [judge([short], [long], answer=[word])[0] for word in ("yes", "no")]
    assert apart[0] != apart[1]  # it was the same score before: neither was read
    assert 0 < judge([short], ["one"], answer=[long])[0] < 1


def test_a_classifier_with_several_labels_is_no_reward_model(tokenizer, tmp_path):
    path = saved(BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="has 3 labels; a reward model has one"):
        judges.RewardModelJudge(path)


def test_embedders(tokenizer, tmp_path):
    vectors = embedders.hashed_ngrams(["turn it twice", "turn it twice", "now what"])
    assert torch.equal(vectors[0], vectors[1]) and not torch.equal(vectors[0], vectors[2])
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3))
    torch.manual_seed(0)
    path = saved(BertModel(BertConfig(**SIZES)), tokenizer, tmp_path / "bert")
    encode = embedders.text_encoder(path)
    texts = ["the question is one", "two"]
    assert encode(texts).shape == (2, 16)
    assert torch.allclose(encode(texts)[1], encode(texts[1:])[0], atol=1e-5)  # padding changes nothing
    calls = []
    kept = embedders.cached(lambda t: calls.append(t) or encode(t), tmp_path / "cache", "bert")
    assert torch.equal(kept(texts), kept(texts)) and len(calls) == 1
    embedders.cached(lambda t: calls.append(t) or encode(t), tmp_path / "cache", "other")(texts)
    assert len(calls) == 2


def test_actions_are_plain_tuples():
    assert Action("a", 0.5, 3) == ("a", 0.5, 3)
