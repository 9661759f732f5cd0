import gc
import random
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from lib.dial import sample_questions
from lib.engines.base import Request, Sampling
from lib.engines.decode import by_tokens, decode, nucleus, pick, room_for_tokens
from lib.policies.load import load_policy
from lib.runs import ROOT

CHECKPOINTS = sorted(path.parent.name for path in (ROOT / "data" / "checkpoints").glob("*/config.json"))
EOS = 1


def random_model(architecture, *, dtype=torch.float32, **options):
    """An untrained model with grouped key heads, and two tokens that are likely enough to end responses."""
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(
        architecture, **sizes, **heads, eos_token_id=EOS, pad_token_id=0, initializer_range=0.3, **options
    )
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def random_requests(count, *, seed=0, length=40):
    rng = random.Random(seed)
    return [
        Request(tuple(rng.choices(range(2, 40), k=rng.randint(1, 12))), (), length, key=("q", place))
        for place in range(count)
    ]


def generated(model, requests, **options):
    """The same by `model.generate`, in one left-padded batch, each row cut after its end token."""
    starts = [one.prompt_ids + one.forced_ids for one in requests]
    width = max(map(len, starts))
    output = model.generate(
        input_ids=torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in starts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in starts]),
        max_new_tokens=requests[0].max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    rows = output[:, width:].tolist()
    cut = [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]
    return [one.forced_ids + tuple(row) for one, row in zip(requests, cut, strict=True)]


@pytest.fixture(scope="module")
def sft():
    return load_policy("dial-sft")


def asked(tokenizer, count, *, length=160, seed=0, repeats=1):
    questions = sample_questions(count, seed=seed)
    return [
        Request(tuple(tokenizer(question.prompt).input_ids), (), length, key=(str(place), sample))
        for place, question in enumerate(questions)
        for sample in range(repeats)
    ]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_tokens_are_those_of_generate(name):
    model, tokenizer = load_policy(name)
    requests = asked(tokenizer, 24, repeats=2)
    ours = decode(model, requests, Sampling(), [tokenizer.eos_token_id])
    assert tokenizer.eos_token_id == EOS
    assert [one.ids for one in ours] == generated(model, requests)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("qwen2", {}),
        ("qwen3", {}),
        ("llama", {}),
        ("qwen3", {"attn_implementation": "eager"}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ],
)
def test_greedy_tokens_of_random_models_are_those_of_generate(architecture, options):
    model, requests = random_model(architecture, **options), random_requests(40)
    ours = decode(model, requests, Sampling(), [EOS])
    assert [one.ids for one in ours] == generated(model, requests)
    assert 0 < sum(one.truncated for one in ours) < 40  # some end by themselves, some at their length


def test_bfloat16_and_an_adapter_decode_too():
    model = random_model("qwen3", dtype=torch.bfloat16)
    [request] = random_requests(1)
    assert [one.ids for one in decode(model, [request], Sampling(), [EOS])] == generated(model, [request])
    model = random_model("qwen2")
    requests, plain = random_requests(8), decode(model, random_requests(8), Sampling(), [EOS])
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    ours = decode(model, requests, Sampling(), [EOS])
    assert [one.ids for one in ours] == generated(model, requests) != [one.ids for one in plain]


@pytest.mark.parametrize("name", ["dial-sft", "dial-thinker"])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_completion_does_not_depend_on_the_requests_beside_it(name, top_p):
    model, tokenizer = load_policy(name)
    sampling, ends = Sampling(1.0, top_p, seed=3), [tokenizer.eos_token_id]
    requests = asked(tokenizer, 12, repeats=4)
    together = decode(model, requests, sampling, ends)
    assert len({one.ids for one in together[:4]}) > 1  # samples of one question differ
    shuffled = random.Random(0).sample(range(len(requests)), len(requests))
    again = decode(model, [requests[place] for place in shuffled], sampling, ends, batch_tokens=2000)
    assert [one.ids for one in again] == [together[place].ids for place in shuffled]
    for place in (0, 13, 47):
        assert decode(model, [requests[place]], sampling, ends)[0].ids == together[place].ids
    other = decode(model, requests, Sampling(1.0, top_p, seed=4), ends)
    assert [one.ids for one in other] != [one.ids for one in together]


def test_equal_requests_without_keys_draw_apart_and_again_the_same(sft):
    model, tokenizer = sft
    prompt = tuple(tokenizer(sample_questions(1, seed=5)[0].prompt).input_ids)
    first, again = (
        decode(model, [Request(prompt)] * 8, Sampling(1.0, seed=1), [tokenizer.eos_token_id]) for _ in "ab"
    )
    assert first == again
    assert len({one.ids for one in first}) > 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8)])
def test_tokens_are_drawn_from_the_distribution(temperature, top_p):
    model, count = random_model("qwen2"), 4000
    request = Request((5, 9, 3), (), 1)
    drawn = decode(model, [request] * count, Sampling(temperature, top_p, seed=2), [])
    logits = model(torch.tensor([request.prompt_ids])).logits[0, -1]
    expected = torch.softmax(logits.detach().double() / temperature, -1)
    if top_p < 1:
        ordered, places = expected.sort(descending=True)
        last = int((ordered.cumsum(0) < top_p).sum())
        expected[places[last + 1 :]] = 0
        expected /= expected.sum()
    found = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=40)
    assert found[expected == 0].sum() == 0
    common = expected * count >= 5
    observed = [*found[common].tolist(), found[~common].sum().item()]
    wanted = [*(expected[common] * count).tolist(), expected[~common].sum().item() * count]
    observed, wanted = zip(*((o, w) for o, w in zip(observed, wanted, strict=True) if w > 0), strict=True)
    assert chisquare(observed, wanted).pvalue > 0.01


def test_draws_along_a_response_are_independent(sft):
    """The mean log-probability of what is drawn is minus the entropy: E[log p] + H = 0 at every place."""
    model = random_model("llama")
    requests = [Request((7, 8), (), 12, key=("q", sample)) for sample in range(500)]
    drawn = decode(model, requests, Sampling(1.0, seed=2), [])
    ids = torch.tensor([(7, 8, *one.ids) for one in drawn])
    with torch.no_grad():
        log_probs = model(ids).logits[:, 1:-1].log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    surprise = log_probs.gather(-1, ids[:, 2:, None])[..., 0] + entropy
    z = surprise.mean(0) / surprise.std(0) * len(ids) ** 0.5
    assert z.abs().max() < 3.5
    kept = torch.tensor([one.log_probs for one in drawn])
    torch.testing.assert_close(kept, log_probs.gather(-1, ids[:, 2:, None])[..., 0], atol=1e-4, rtol=0)


def test_each_row_has_its_own_length_forced_ids_and_ends():
    model = random_model("qwen3")
    lengths = [1, 5, 0, 17, 3]
    requests = [Request((4, 6), (9, 2), length, key=("q", i)) for i, length in enumerate(lengths)]
    found = decode(model, requests, Sampling(1.0), [])
    assert [len(one.ids) - 2 for one in found] == lengths == [len(one.log_probs) for one in found]
    assert all(one.ids[:2] == (9, 2) and one.truncated for one in found)
    ended = decode(model, random_requests(60), Sampling(1.0), [EOS, 7])
    assert {one.ids[-1] for one in ended if not one.truncated} == {EOS, 7}
    assert all(not {EOS, 7} & set(one.ids[:-1]) for one in ended)


def test_a_token_that_may_not_come_first_comes_later():
    model, first = random_model("qwen2"), tuple(range(20))
    requests = [replace(one, never_first=first) for one in random_requests(60, length=8)]
    found = decode(model, requests[:40] + random_requests(20, length=8, seed=1), Sampling(1.0), [EOS])
    assert all(one.ids[0] >= 20 for one in found[:40])
    assert any(token < 20 for one in found[:40] for token in one.ids[1:])
    assert any(one.ids[0] < 20 for one in found[40:])  # each request has its own
    suppressed = decode(model, requests, Sampling(), [EOS])
    expected = generated(model, requests, begin_suppress_tokens=list(first))
    assert [one.ids for one in suppressed] == expected


def test_rows_of_similar_size_share_a_batch():
    sizes = [5, 50, 6, 49, 7, 51]
    assert by_tokens(sizes, 110) == [[0, 2, 4], [3, 1], [5]]
    assert by_tokens(sizes, 10) == [[0], [2], [4], [3], [1], [5]]  # a row larger than a batch goes alone
    assert by_tokens(sizes, 10**6, 4) == [[0, 2, 4, 3], [1, 5]]
    assert by_tokens([], 10) == []


def test_a_token_of_no_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(5, 1)
    draws = torch.tensor([0.0, 0.49999, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    tokens, log_probs = pick(logits, Sampling(1.0), draws)
    assert tokens.tolist() == [1, 1, 3, 3, 3]
    torch.testing.assert_close(log_probs, torch.full((5,), 0.5).log())


def test_the_nucleus_is_the_smallest_set_that_holds_top_p():
    log_probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    torch.testing.assert_close(nucleus(log_probs, 0.7).exp(), torch.tensor([[0, 2 / 3, 0, 1 / 3]]))
    torch.testing.assert_close(nucleus(log_probs, 0.3).exp(), torch.tensor([[0, 1.0, 0, 0]]))


def test_nothing_is_left_behind_even_when_it_is_stopped(sft, monkeypatch):
    model, tokenizer = sft
    requests, ends = asked(tokenizer, 6), [tokenizer.eos_token_id]
    before = decode(model, requests, Sampling(1.0), ends)

    def tensors():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    alive, steps = tensors(), []

    def stopped(*arguments, **named):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return forward(*arguments, **named)

    forward = model.forward
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", stopped)
        with suppress(KeyboardInterrupt):
            decode(model, requests, Sampling(1.0), ends)
    assert tensors() <= alive + 1
    for _ in range(3):
        assert decode(model, requests, Sampling(1.0), ends) == before
    assert tensors() <= alive + 1


def test_a_batch_fits_into_what_an_accelerator_has_left(monkeypatch):
    """Qwen2.5-3B: 36 layers, 2 key heads of 128, 2 bytes: 36,864 bytes for the keys and values of a token."""
    sizes = {"num_hidden_layers": 36, "num_key_value_heads": 2, "num_attention_heads": 16}
    sizes |= {"hidden_size": 2048}
    model = SimpleNamespace(
        device=torch.device("cuda:0"), dtype=torch.bfloat16, config=AutoConfig.for_model("qwen2", **sizes)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    assert room_for_tokens(model) == 10 * 2**30 // 2 // 36_864
    assert room_for_tokens(random_model("qwen2")) > 2**40  # a CPU's memory is not asked
