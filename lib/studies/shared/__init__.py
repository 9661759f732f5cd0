"""What several notebooks share, and nobody needs who trains a model without them."""

from lib.studies.shared.alone import asking
