"""Making the names known to Transformers."""

from __future__ import annotations

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.falcon.modeling_falcon import FALCON_ATTENTION_CLASSES

from alibi_attention.integrations.transformers.general import alibi_forward, tried_forward
from alibi_attention.integrations.transformers.masks import GENERAL, NATIVE, TRIED, padding_mask
from alibi_attention.integrations.transformers.native import ALiBiFalconAttention


def register() -> None:
    """``attn_implementation="alibi"`` for models that choose their attention by name, Falcon among them."""
    AttentionInterface.register(GENERAL, alibi_forward)
    AttentionInterface.register(TRIED, tried_forward)
    # NATIVE is no attention to be had by name: what is built of an enabled model's configuration is stock, and would
    # get no mask. So Transformers refuses to build it.
    for name in (GENERAL, NATIVE, TRIED):
        AttentionMaskInterface.register(name, padding_mask)
    FALCON_ATTENTION_CLASSES[GENERAL] = ALiBiFalconAttention
