"""AdaReasoner: how a frozen LLM is asked, learnt as a contextual bandit and held against rivals.

actions: what can be chosen · environments: what answers · learner: formulas and policy · training: the loop ·
rivals: fixed and linear learners · off_policy: what another policy would have earned · embedders, judges,
llms, prompting: questions in, replies out.
"""

from lib.bandit.actions import HEADS, Action, ActionSpace
from lib.bandit.environments import LLMEnvironment, Surface, simulated_surface
from lib.bandit.learner import (
    ConfigurationPolicy,
    annealed_temperature,
    boltzmann_probabilities,
    choose,
    reinforce_loss,
)
from lib.bandit.training import BanditConfig, BanditTrainer

__all__ = [
    "HEADS",
    "Action",
    "ActionSpace",
    "BanditConfig",
    "BanditTrainer",
    "ConfigurationPolicy",
    "LLMEnvironment",
    "Surface",
    "annealed_temperature",
    "boltzmann_probabilities",
    "choose",
    "reinforce_loss",
    "simulated_surface",
]
