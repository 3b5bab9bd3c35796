"""The implementations of the operator, each a module with the members of `alibi_attention.backends.base.Backend`."""
