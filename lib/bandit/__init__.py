"""AdaReasoner: how a frozen LLM is asked, learnt as a contextual bandit.

actions: what can be chosen · environments: what answers · learner: formulas and policy · training: the loop ·
embedders, judges, llms, prompting: questions in, replies out. The rivals and baselines that notebook 06 holds
it against, and what it makes of logged decisions, are in lib.studies.
"""

from lib.bandit.actions import HEADS, Action, ActionSpace
from lib.bandit.environments import LLMEnvironment
from lib.bandit.learner import (
    ConfigurationPolicy,
    annealed_temperature,
    boltzmann_probabilities,
    choose,
    reinforce_loss,
)
from lib.bandit.training import BanditConfig, BanditTrainer
