"""Methods of training: formulas, hooks and configuration of each in a file of its own.

How a policy is loaded belongs to policies, how it is measured to measure, which runs were made to studies.
"""
