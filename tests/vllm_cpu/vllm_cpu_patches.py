"""What vLLM's CPU build needs so that it can stand for vLLM on a card. Put this folder on PYTHONPATH.

vLLM loads it as a plugin in every process, since the dist-info folder beside it says so. conftest.py puts it
there, and PYTHONPATH=$PWD/tests/vllm_cpu does for a dry run. On a machine with a card it must not be there.
"""

import os

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine of `LLM` in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",  # 5 s less to start
    "OMP_NUM_THREADS": "1",
}
HEAD_SIZE = 32  # the smallest that the CPU's attention has


def register():
    """Called by vLLM before it makes an engine."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import torch
    import vllm.engine.arg_utils as arguments
    import vllm.model_executor.layers.utils as layers
    from vllm.model_executor.models import qwen2, qwen3

    def linear(layer, **_):
        # The usual one packs the weights away, where a trainer's new ones do not reach them.
        layer.cpu_linear = torch.nn.functional.linear

    def create_model_config(self, *, usual=arguments.EngineArgs.create_model_config):
        self.dtype = "float32" if self.dtype == "auto" else self.dtype  # else bfloat16
        self.enforce_eager = True
        return usual(self)

    layers.dispatch_cpu_unquantized_gemm = linear
    arguments.EngineArgs.create_model_config = create_model_config
    for models in (qwen2, qwen3):
        models.Attention = padded(models.Attention)


def padded(attention):
    """Attention whose heads may be narrower than the kernels': zeros beside them change nothing."""

    import torch

    class Padded(attention):
        def __init__(self, num_heads, head_size, scale, **named):
            super().__init__(num_heads, max(HEAD_SIZE, head_size), scale, **named)
            self.real = head_size

        def forward(self, *states):
            room = (0, self.head_size - self.real)
            heads = [torch.nn.functional.pad(x.unflatten(-1, (-1, self.real)), room) for x in states]
            wide = super().forward(*(x.flatten(-2) for x in heads))
            return wide.unflatten(-1, (-1, self.head_size))[..., : self.real].flatten(-2)

    return Padded
