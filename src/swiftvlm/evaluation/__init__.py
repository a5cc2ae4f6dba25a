"""Accuracy under pruning: tasks, scores with standard errors, resumable runs, tables in the layout of the papers."""
