"""Adaptive reasoning, three ways: ARM, AdaptThink and AdaReasoner. One module per idea."""
