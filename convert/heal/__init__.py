"""`convert-attn heal`: the quality that a conversion lost, won back by training."""
