"""Methods of training: formulas, hooks and configuration of each in a file of its own."""
