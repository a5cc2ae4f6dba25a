"""How single methods rate tokens; what several share is in `swiftvlm.scores`."""
