"""ALiBi attention (Press, Smith, Lewis; ICLR 2022): exact, in O(length) memory, at linear cost."""

from alibi_attention.bias import build_alibi_bias
from alibi_attention.cache import HorizonCache, HorizonCertificate, HorizonViolation, HorizonWarning, KVCache
from alibi_attention.certificate import Certificate, certify
from alibi_attention.dispatch import explain_backends
from alibi_attention.merge import merge_attention
from alibi_attention.module import ALiBiAttention, weight_decay_groups
from alibi_attention.ops import alibi_attention
from alibi_attention.slopes import alibi_slopes, scale_slopes

__version__ = "0.1.0"

__all__ = [
    "ALiBiAttention",
    "Certificate",
    "HorizonCache",
    "HorizonCertificate",
    "HorizonViolation",
    "HorizonWarning",
    "KVCache",
    "alibi_attention",
    "alibi_slopes",
    "build_alibi_bias",
    "certify",
    "explain_backends",
    "merge_attention",
    "scale_slopes",
    "weight_decay_groups",
]
