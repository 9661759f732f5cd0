"""Methods of training: formulas, hooks and configuration of each in a file of its own."""

from collections.abc import Mapping
from typing import Any

from lib.checked import close
from lib.methods.ada_grpo import AdaGRPO
from lib.methods.adaptthink import AdaptThink
from lib.methods.arora_zanette import AroraZanette
from lib.methods.base import MethodConfig
from lib.methods.grpo import GRPO
from lib.methods.l1_exact import L1Exact
from lib.methods.l1_max import L1Max
from lib.methods.thinking_rewards import LengthReward, NoThinkingBonus

ALL = (GRPO, AdaGRPO, AdaptThink, NoThinkingBonus, LengthReward, L1Exact, L1Max, AroraZanette)
METHODS: dict[str, type[MethodConfig]] = {method.name: method for method in ALL}


def find_method(name: str) -> type[MethodConfig]:
    """The method of a name; an unknown one is a ValueError with the list."""
    if name not in METHODS:
        raise ValueError(f"No method {name!r}{close(name, METHODS) or '.'} There are {', '.join(METHODS)}")
    return METHODS[name]


def from_json(values: Mapping[str, Any]) -> MethodConfig:
    """A configuration from `MethodConfig.as_json`."""
    return find_method(values["method"])(**{k: v for k, v in values.items() if k != "method"})
