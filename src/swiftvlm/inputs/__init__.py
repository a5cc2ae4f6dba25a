"""From what a user has (files, a question, a checkpoint) to what a model takes, or an error that says what is wrong."""
