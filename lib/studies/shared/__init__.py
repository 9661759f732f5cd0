"""What several notebooks share, and nobody needs who trains a model without them."""

from lib.studies.shared.alone import asking
from lib.studies.shared.arm_code import split_simulated_output
from lib.studies.shared.states import decision_states, probe_accuracy
