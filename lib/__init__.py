"""Adaptive reasoning, three ways: ARM, AdaptThink and AdaReasoner. One module per idea."""

import logging
import warnings

# On import bitsandbytes advises to fetch a faster CPU kernel from a hub; it is not needed here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Without ipywidgets tqdm warns that it cannot draw its bar; the course logs numbers instead of bars.
warnings.filterwarnings("ignore", message="IProgress not found")
