"""AdaReasoner: how a frozen LLM is asked, learnt as a contextual bandit.

actions: what can be chosen · environments: what answers · learner: formulas and policy · training: the loop ·
llms: prompts in, replies out. Notebook 06's prompt, judge and embeddings, the rivals that it holds the policy
against, and what it makes of logged decisions, are in lib.studies.
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
