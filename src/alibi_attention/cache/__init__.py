"""Keys and values kept from one step to the next: all of them, or those that can still matter."""

from alibi_attention.cache.horizon import HorizonCache
from alibi_attention.cache.kv import KVCache
from alibi_attention.cache.proof import HorizonCertificate, HorizonViolation, HorizonWarning

__all__ = ["HorizonCache", "HorizonCertificate", "HorizonViolation", "HorizonWarning", "KVCache"]
