"""The command line: `swiftvlm run | plan | methods | families`. Thin: parse, call, print."""
