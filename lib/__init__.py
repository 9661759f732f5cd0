"""Adaptive reasoning, three ways: ARM, AdaptThink and AdaReasoner. Rooms in floors; no import goes upwards.

The modules beside this file are the vocabulary of all rooms and import none of them. Above it lie sandbox,
sources, policies and engines, then methods, bandit and measure, then dial, course and studies.
"""

import logging

# On import bitsandbytes advises to fetch a faster CPU kernel from a hub; it is not needed here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
