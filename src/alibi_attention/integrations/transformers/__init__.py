"""ALiBi models in Hugging Face Transformers: BLOOM, MPT and Falcon as they are, others trained with ALiBi.

::

    enable(model); disable(model)          our operator in a loaded BLOOM, MPT or Falcon (alibi=True)
    replace_positions(model)               ALiBi in place of a model's own positions, to train it so
    kv_cache(model); horizon_cache(model)  for generate(past_key_values=...)
    split_context(model)                   one sequence over several processes of torch.distributed

Importing this registers ``attn_implementation="alibi"``; a version of Transformers that was not tested is refused.
"""

# First: what follows imports Transformers.
from alibi_attention.integrations.transformers import versions
from alibi_attention.integrations.transformers.cache import horizon_cache, kv_cache
from alibi_attention.integrations.transformers.enabling import disable, enable
from alibi_attention.integrations.transformers.positions import replace_positions
from alibi_attention.integrations.transformers.registration import register
from alibi_attention.integrations.transformers.splitting import split_context

TESTED_VERSIONS = versions.TESTED_VERSIONS

register()

__all__ = ["TESTED_VERSIONS", "disable", "enable", "horizon_cache", "kv_cache", "replace_positions", "split_context"]
