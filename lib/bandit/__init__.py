"""AdaReasoner: how a frozen LLM is asked, learnt as a contextual bandit and held against rivals.

Training the LLM itself does not belong here, nor the toy LLM (dial) or the published comparison (studies).
"""

from lib.bandit.actions import HEADS, Action, ActionSpace
from lib.bandit.environments import Environment, LLMEnvironment, Surface, simulated_surface
from lib.bandit.learner import (
    ConfigurationPolicy,
    Decisions,
    JointPolicy,
    Policy,
    action_probabilities,
    annealed_temperature,
    boltzmann_probabilities,
    choose,
    closed_form_gradient,
    decide,
    entropy,
    linear_temperature,
    log_probabilities,
    regret_bound,
    reinforce_loss,
    released_loss,
)
from lib.bandit.training import BanditConfig, BanditTrainer, NoAnswersError

__all__ = [
    "HEADS",
    "Action",
    "ActionSpace",
    "BanditConfig",
    "BanditTrainer",
    "ConfigurationPolicy",
    "Decisions",
    "Environment",
    "JointPolicy",
    "LLMEnvironment",
    "NoAnswersError",
    "Policy",
    "Surface",
    "action_probabilities",
    "annealed_temperature",
    "boltzmann_probabilities",
    "choose",
    "closed_form_gradient",
    "decide",
    "entropy",
    "linear_temperature",
    "log_probabilities",
    "regret_bound",
    "reinforce_loss",
    "released_loss",
    "simulated_surface",
]
