"""Text from a model, token by token: what any source of logits has in common."""
