"""Adaptive reasoning, three ways: ARM, AdaptThink and AdaReasoner. One module per idea."""

import logging

# On import bitsandbytes advises to fetch a faster CPU kernel from a hub; it is not needed here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
