"""Functions that tests/test_launch.py starts in one process or in several."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def join() -> int:
    """Join the other processes, if any; gives this one's rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    dist.init_process_group("gloo")
    return dist.get_rank()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def sum_squares(config: dict[str, Any]) -> dict[str, Any]:
    """Each process sums its share of the squares below `count`."""
    rank = join()
    world = dist.get_world_size() if dist.is_initialized() else 1
    share = torch.arange(rank, config["count"], world)
    print(f"rank {rank} has {len(share)} numbers")
    return {"sum": int(total((share**2).sum())), "weights": (0.5, config["weight"])}


def threads(config: dict[str, Any]) -> dict[str, Any] | None:
    """The threads of all; only process 0 returns something, as many training functions do."""
    rank = join()
    count = int(total(torch.tensor(torch.get_num_threads())))
    return {"threads": count} if rank == 0 else None


def fail_in_the_last(config: dict[str, Any]) -> dict[str, Any]:
    """The last process raises; the others wait for it in a collective."""
    if join() == dist.get_world_size() - 1:
        raise ValueError("the cat ate the batch")
    return {"sum": int(total(torch.ones(1)))}


def die_in_the_last(config: dict[str, Any]) -> dict[str, Any]:
    """The last process is killed as the system does it; the others wait for it in a collective."""
    if _noted(config) == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": int(total(torch.ones(1)))}


def leave_in_the_last(config: dict[str, Any]) -> dict[str, Any]:
    """As `die_in_the_last`, but it ends itself, and says nothing."""
    if _noted(config) == dist.get_world_size() - 1:
        os._exit(1)
    return {"sum": int(total(torch.ones(1)))}


def stick_in_the_last(config: dict[str, Any]) -> dict[str, Any]:
    """The last process is killed; the others hear nothing, as in a collective of NCCL, nor SIGTERM."""
    if _noted(config) == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return {}


def _noted(config: dict[str, Any]) -> int:
    """Join, and note one's process id where a folder is given."""
    rank = join()
    if "folder" in config:
        Path(config["folder"], f"{rank}.pid").write_text(str(os.getpid()))
    dist.barrier()
    return rank


def abort_at_the_end(config: dict[str, Any]) -> dict[str, Any]:
    """The work is whole, but taking the process down aborts it, as gloo's threads sometimes do."""
    join()
    libc = ctypes.CDLL(None)
    libc.on_exit(libc.abort, None)
    return {"sum": int(total(torch.ones(1)))}


def wait(config: dict[str, Any]) -> dict[str, Any]:
    """Note one's process id, and never come back."""
    rank = join()
    Path(config["folder"], f"{rank}.pid").write_text(str(os.getpid()))
    print("waiting")
    time.sleep(600)
    return {}


def wait_politely(config: dict[str, Any]) -> dict[str, Any]:
    """As `wait`, but note a Ctrl-C, as a trainer writes its checkpoint then."""
    try:
        return wait(config)
    except KeyboardInterrupt:
        time.sleep(0.5)
        Path(config["folder"], f"{os.environ['RANK']}.saved").touch()
        return {}


def wait_stubbornly(config: dict[str, Any]) -> dict[str, Any]:
    """As `wait`, and deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wait(config)


def wait_for_the_end(config: dict[str, Any]) -> dict[str, Any]:
    """As `wait`, but note a SIGTERM, as a trainer writes its checkpoint then too."""

    def save(number: int, frame: Any) -> None:
        print("saving")
        Path(config["folder"], f"{os.environ['RANK']}.saved").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    return wait(config)


def save_slowly(config: dict[str, Any]) -> dict[str, Any]:
    """As `wait_for_the_end`, but the step that is to be saved takes 35 s more."""

    def save(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(35)
        Path(config["folder"], f"{os.environ['RANK']}.saved").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, save)
    return wait(config)


def where(config: dict[str, Any]) -> dict[str, Any]:
    """In which process and on which device the work is done."""
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None
    return {"pid": os.getpid(), "device": device, "group": os.environ.get("WORLD_SIZE")}


def slow(config: dict[str, Any]) -> dict[str, Any]:
    time.sleep(2)
    return {"slept": 2}


def tick(config: dict[str, Any]) -> dict[str, Any]:
    join()
    for number in range(3):
        print(f"tick {number}")
        time.sleep(1)
    print("a warning", file=sys.stderr)
    return {}


def give_a_tensor(config: dict[str, Any]) -> dict[str, Any]:
    return {"loss": torch.ones(1)}


def give_nothing(config: dict[str, Any]) -> None:
    pass


def leave(config: dict[str, Any]) -> dict[str, Any]:
    sys.exit(0)


not_a_function = 3


def one_group_step(config: dict[str, Any]) -> dict[str, Any]:
    """A step of Ada-GRPO on three groups of eight set responses, shared by the processes."""
    from lib.dial import dial_task, gold_response, sample_questions
    from lib.formats import ReasoningFormat
    from lib.methods.ada_grpo import AdaGRPO
    from lib.methods.fit import build
    from lib.runs import Run
    from lib.tasks import task_rows

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    questions = {q.prompt: q for q in sample_questions(3, seed=0, depths=[1, 2, 7])}
    settings = AdaGRPO.cpu(
        config["base"], batches=1, prompts=3, micro_batch_size=24 // processes, **config.get("changes", {})
    )
    direct, short, code, long = ReasoningFormat
    formats = [long, long, long, short, short, code, long, direct]  # the last two are made wrong

    def speak(prompts: list[str], trainer: Any) -> dict[str, Any]:
        tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
        texts = []
        for place, prompt in enumerate(prompts, start=first):
            question, format = questions[prompt], formats[place % 8]
            text = gold_response(question, format)
            wrong = str((int(question.answer) + 1) % 10)
            texts.append(text.replace(f"\n{question.answer}\n", f"\n{wrong}\n") if place % 8 > 5 else text)
        return {
            "prompt_ids": tokenizer(prompts).input_ids,
            "completion_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts).input_ids],
            "logprobs": None,
        }

    rows = task_rows([dial_task(question) for question in questions.values()])
    trainer = build(settings, rows, Run(Path(config["folder"], str(processes)), {}))
    trainer.rollout_func = speak
    kept, score = {}, trainer._generate_and_score_completions

    def keep(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = score(inputs)
        kept["local"] = len(batch["advantages"])
        kept["advantages"] = trainer.accelerator.gather(batch["advantages"].contiguous()).tolist()
        return batch

    trainer._generate_and_score_completions = keep
    trainer.train()
    logs = trainer.state.log_history[0]
    names = [name for name in logs if "format/" in name or name.endswith(("accuracy", "tokens/mean"))]
    return kept | {
        "processes": processes,
        "metrics": {name: logs[name] for name in [*names, "reward", "reward_std", "entropy"]},
        "gradient": logs["grad_norm"],
    }


def three_steps(config: dict[str, Any]) -> dict[str, Any]:
    """Three steps by each method on a random Qwen2.5 in NF4 with LoRA, and KL to the frozen start."""
    folder, base = Path(config["folder"]), config["base"]
    return {method: _three_steps(method, base, folder / method) for method in ("ada_grpo", "grpo")}


def _three_steps(method: str, base: str, folder: Path) -> dict[str, Any]:
    from lib.dial import dial_tasks
    from lib.methods import METHODS
    from lib.methods.fit import build
    from lib.runs import Run
    from lib.tasks import task_rows

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = METHODS[method].cpu(
        base,
        weights="qlora",
        batches=3,
        prompts=2,
        num_generations=4,
        micro_batch_size=8 // processes,
        max_completion_length=12,
        learning_rate=1e-2,
        beta=0.05,
    )
    rows = task_rows(dial_tasks(6, split="train", seed=0))

    def parity(completion_ids: list[list[int]], **others: Any) -> list[float]:
        """No answer of a random model is right: reward what can differ."""
        return [float(ids[0] % 2) for ids in completion_ids]

    trainer = build(settings, rows, Run(folder, {}), reward=parity)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = [
        name
        for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        if not torch.equal(p.detach(), before[name])
    ]
    logs = trainer.state.log_history[:3]
    return {
        "changed": changed,
        "kl": [row["kl"] for row in logs],
        "gradients": [row["grad_norm"] for row in logs],
        "quantised": trainer.accelerator.unwrap_model(trainer.model).is_loaded_in_4bit,
        "processes": processes,
    }


def adaptthink_step(config: dict[str, Any]) -> dict[str, Any]:
    """One step of gradient descent with AdaptThink on greedy responses; gives some weights and metrics."""
    from lib.methods.adaptthink import AdaptThink
    from lib.methods.fit import build
    from lib.runs import Run

    settings = AdaptThink.cpu(
        config["base"],
        batches=1,
        prompts=config.get("prompts", 4),
        micro_batch_size=4 * config.get("prompts", 4) // int(os.environ.get("WORLD_SIZE", "1")),
        max_completion_length=20,
        max_nothinking_length=6,
        learning_rate=1.0,
        trainer={"optim": "sgd", "top_k": 1},
    )
    run = Run(Path(config["folder"]), {})
    trainer = build(settings, config["rows"], run, validation_rows=config["rows"][:4])
    weights = trainer.model.model.layers[0].self_attn.q_proj.weight
    before = weights.detach().clone()
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "loss" in row)
    metrics = {name: value for name, value in logged.items() if isinstance(value, float)}
    moved = (weights.detach() - before).abs().max().item()
    weights = weights.detach().flatten()[:200].tolist()
    return {"weights": weights, "moved": moved, "metrics": metrics}


def adaptthink_nf4(config: dict[str, Any]) -> dict[str, Any]:
    """Three steps of AdaptThink with LoRA on an NF4 base."""
    from lib.methods.adaptthink import AdaptThink
    from lib.methods.fit import fit
    from lib.runs import Run

    settings = AdaptThink.cpu(
        config["base"],
        weights="qlora",
        lora_rank=4,
        prompts=2,
        micro_batch_size=4,
        batches=3,
        max_completion_length=12,
        max_nothinking_length=6,
    )
    run = Run(Path(config["folder"]), {})
    return fit(settings, config["rows"], run, validation_rows=config["rows"][:2])[2]


def trimmed_step(config: dict[str, Any]) -> dict[str, Any]:
    """A step on 16 responses: those of the first half are short, those of the second are long."""
    import trl
    from datasets import Dataset

    from lib.dial import dial_tokenizer, new_dial_model
    from lib.methods.trimming import TrimmingTrainer

    processes, passes = int(os.environ.get("WORLD_SIZE", "1")), []

    def speak(prompts: list[str], trainer: TrimmingTrainer) -> dict[str, Any]:
        first = trainer.accelerator.process_index * len(prompts)
        lengths = [
            5 + place if place < 8 else 100 + 10 * place for place in range(first, first + len(prompts))
        ]
        completions = [[2 + place % 50 for place in range(length)] for length in lengths]
        return {
            "prompt_ids": trainer.processing_class(prompts).input_ids,
            "completion_ids": completions,
            "logprobs": None,
        }

    class Counted(TrimmingTrainer):
        def _passes(self, *arguments):
            found = super()._passes(*arguments)
            passes.append(len(found))
            return found

    arguments = trl.GRPOConfig(
        f"{config['folder']}/{processes}",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=16 // processes,
        num_generations=4,
        max_completion_length=400,
        max_steps=1,
        logging_steps=1,
        gradient_checkpointing=False,
    )
    trainer = Counted(
        model=new_dial_model(seed=0),
        reward_funcs=lambda completion_ids, **others: [float(len(ids) % 3) for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": f"{number} + 1"} for number in range(4)]),
        processing_class=dial_tokenizer(),
        rollout_func=speak,
    )
    trainer.train()
    counts = trainer.accelerator.gather(torch.tensor([passes[0]])).tolist()
    return {"passes": counts, "gradient": trainer.state.log_history[0]["grad_norm"]}


def trained(config: dict[str, Any]) -> dict[str, Any]:
    """A training as notebooks start it ("train", with its "call"), and what its weights are then."""
    from lib.engines.launch import find
    from lib.methods import training

    seen, usual = {}, training.run_training

    def watch(trainer: Any, *given: Any) -> dict[str, Any]:
        facts = usual(trainer, *given)
        weight = next(p for p in trainer.model.parameters() if p.requires_grad)
        seen.update(
            kind=type(weight).__name__, rows=[len(weight), len(getattr(weight, "_local_tensor", weight))]
        )
        return facts

    training.run_training = watch
    return find(config["train"])(config["call"]) | seen
