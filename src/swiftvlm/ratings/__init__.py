"""How single methods rate tokens: one file each, used by one method."""
