"""The command line: the commands of `swiftvlm`. Thin: parse, call, print."""
