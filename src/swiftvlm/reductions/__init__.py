"""What methods do before the language model, tile by tile: the tensors behind `methods`."""
