"""Layers of a Transformers cache that attend by themselves, with the summary of their keys."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from alibi_attention.cache import HorizonCache, KVCache
from alibi_attention.integrations.transformers.arguments import check_module
from alibi_attention.integrations.transformers.masks import GENERAL, NATIVE


class OwnLayer(DynamicLayer):  # type: ignore[misc]
    """What a cache layer of ours does beside attending: Transformers' bookkeeping, and memory for padding.

    Args:
        cache: holds the keys and values.
    """

    is_compileable = False

    def __init__(self, cache: KVCache | HorizonCache) -> None:
        self.cache = cache
        self.is_initialized = False
        # (batch, tokens) bool as far as padding was ever spoken of; what came later was tokens.
        self._mask: Tensor | None = None
        # Whether a step failed in some layer of the cache.
        self.was_cut_short = False

    def append(self, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Add the keys and values of new tokens.

        Args:
            mask: (batch, tokens held and new) bool, or None.

        Raises:
            ValueError: for no tokens, or a mask that says something else of the tokens held than it did when they came.
        """
        if key.shape[2] == 0:
            raise ValueError(
                f"input_ids: expected tokens beyond the {self.cache.length} in the cache, got none; what a cache holds "
                "counts as the start of input_ids: pass the whole text so far, or take a new cache for a new text"
            )
        self._append(key, value, self._of_new_tokens(mask))

    def attend(self, query: Tensor, slopes: Tensor, scale: float) -> Tensor:
        """Attend the queries of the newest tokens to everything held."""
        return self.cache.attend(query, slopes, scale=scale)

    def _append(self, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        self.cache.append(key.detach(), value.detach(), key_mask=key_mask)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002
        self.dtype, self.device, self.batch_size = key_states.dtype, key_states.device, key_states.shape[0]
        self.is_initialized = True

    def _of_new_tokens(self, mask: Tensor | None) -> Tensor | None:
        past, held = self.cache.length, self._mask
        if mask is None and held is None:
            return None
        said = 0 if held is None else held.shape[1]
        if (
            mask is None
            or (held is not None and not torch.equal(mask[:, :said], held))
            or not bool(mask[:, said:past].all())
        ):
            raise ValueError(
                f"attention_mask: expected what it said before of the {past} tokens in the cache, got "
                f"{'None' if mask is None else 'another padding'}; pass the mask of the whole sequence at every step"
            )
        new = mask[:, past:]
        if bool(new.all()):
            return None
        self._mask = mask
        return new

    def get_seq_length(self) -> int:
        return self.cache.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.cache.length:
            self.cache.reorder(beam_idx)
            self.batch_size = len(beam_idx)
            if self._mask is not None:
                self._remember(self._mask.index_select(0, beam_idx.to(self._mask.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.cache.length:
            self.reorder_cache(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def reset(self) -> None:
        self.cache.reset()
        self._mask = None
        self.is_initialized = False
        self.was_cut_short = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: expected a negative number, got {tokens_to_remove}")
        self.cache.crop(max(self.cache.length + tokens_to_remove, 0))
        if self._mask is not None:
            self._remember(self._mask[:, : self.cache.length])

    def _remember(self, mask: Tensor) -> None:
        """Where nothing of it is padding any more, callers may say so with None."""
        self._mask = None if bool(mask.all()) else mask

    def offload(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__}: expected without offloading; DynamicCache(offloading=True) is left as it is"
        )

    def prefetch(self) -> None:
        self.offload()


class KVLayer(OwnLayer):
    """A `KVCache` where Transformers expects a DynamicLayer: a step reads only the keys inside its horizons.

    Stock attention can use it too, through ``update``, ``keys`` and ``values``.

    Args:
        capacity: as `KVCache`.
    """

    cache: KVCache
    is_croppable = True

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(KVCache(capacity))

    @classmethod
    def holding(cls, layer: DynamicLayer, mask: Tensor | None) -> KVLayer:
        """What a DynamicLayer holds, summarised.

        Args:
            mask: (batch, at least the tokens held) bool, or None.
        """
        own = cls()
        if layer.get_seq_length() > 0:
            held = None if mask is None else mask[:, : layer.get_seq_length()]
            own._append(layer.keys, layer.values, own._of_new_tokens(held))
        return own

    @property
    def keys(self) -> Tensor | None:
        """(batch, num_kv_heads, length, head_dim), a view, or None."""
        return self.cache.key if self.cache.length else None

    @property
    def values(self) -> Tensor | None:
        """(batch, num_kv_heads, length, head_dim), a view, or None."""
        return self.cache.value if self.cache.length else None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As stock attention calls it: append, and hand out everything."""
        if self._mask is not None:
            raise ValueError(
                "past_key_values: expected without padding where stock attention continues it, got a padded batch; "
                "start again with another cache"
            )
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            _check_continues(self, key_states)
            # What is held here has no history. From now on this is the layer Transformers would have made.
            plain = self.plain()
            self.__class__ = DynamicLayer
            self.__dict__ = vars(plain)
            return self.update(key_states, value_states)
        self._append(key_states, value_states, None)
        return self.cache.key, self.cache.value

    def plain(self) -> DynamicLayer:
        """What is held, as the layer Transformers would have made."""
        layer = DynamicLayer()
        if self.cache.length:
            layer.update(self.cache.key, self.cache.value)
        return layer


class HorizonLayer(OwnLayer):
    """A `HorizonCache` in a Transformers cache. Stock attention cannot use it: what is far is not there any more.

    Args:
        options: as `HorizonCache`.
    """

    cache: HorizonCache
    is_croppable = False
    keys = None
    values = None

    def __init__(self, **options: Any) -> None:
        super().__init__(HorizonCache(**options))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Refuses: nobody is to attend to what is left as if it were all."""
        raise ValueError(
            "past_key_values: expected a cache that holds every key (DynamicCache) for stock attention, and for a "
            "sequence that processes share, got a horizon cache; it serves models after enable() alone"
        )


def check_step(cache: Any, index: int, tokens: int) -> None:
    """Raises ValueError where an earlier step was cut short, so that layers do not hold the same tokens.

    Args:
        index: of the layer that is about to get ``tokens`` new ones, an OwnLayer; those before it have theirs.
    """
    layer = cache.layers[index]
    held, first = layer.get_seq_length(), cache.get_seq_length(0) - (tokens if index else 0)
    if layer.was_cut_short or held != first:
        got = f"{held} in layer {index} and {first} in the first" if held != first else "what a failed step left"
        raise ValueError(
            f"past_key_values: expected a cache whose layers hold the same tokens, got {got}; a step that is cut short "
            "leaves its tokens in some of the layers: call cache.reset(), or start again with another cache"
        )


def cut_short(cache: Any) -> None:
    """Let no further step be taken: layers hold the tokens of one that failed, and those behind it may lack them."""
    for layer in cache.layers:
        if isinstance(layer, OwnLayer):
            layer.was_cut_short = True


def own_layer(cache: Any, index: int, key: Tensor, mask: Tensor | None, wants_graph: bool) -> OwnLayer | None:
    """The cache's layer, if it attends by itself; a layer of a plain DynamicCache is made such a one.

    It stays as it is where a graph must be kept, that of what it holds as well, under a compiler, and with padding on
    the right.
    """
    layers = cache.layers
    layer = layers[index] if index < len(layers) else None
    if torch.is_grad_enabled() and layer is not None and type(layer) is DynamicLayer and layer.get_seq_length() > 0:
        # A prefix that is tuned is held, and nothing else may need a gradient.
        wants_graph = wants_graph or layer.keys.requires_grad or layer.values.requires_grad
    if isinstance(layer, OwnLayer):
        if not wants_graph:
            return layer
        if not isinstance(layer, KVLayer):
            raise ValueError(
                f"past_key_values: expected without gradients or dropout, got {type(layer).__name__} where they are "
                "wanted; call eval() and run under torch.no_grad()"
            )
        layers[index] = layer.plain()
        return None
    if type(layer) is DynamicLayer:
        _check_continues(layer, key)
    grows = type(layer) is DynamicLayer or (layer is None and cache.layer_class_to_replicate is DynamicLayer)
    if not grows or wants_graph or cache.offloading or torch.compiler.is_compiling():
        return None
    if mask is not None and not bool(mask[:, -1].all()):
        return None
    while len(layers) <= index:
        layers.append(DynamicLayer())
    own = layers[index] = KVLayer.holding(cast(DynamicLayer, layers[index]), mask)
    return own


def _check_continues(layer: DynamicLayer, key: Tensor) -> None:
    if layer.get_seq_length() > 0 and layer.keys.shape[1::2] != key.shape[1::2]:
        (heads, dim), (new_heads, new_dim) = layer.keys.shape[1::2], key.shape[1::2]
        raise ValueError(
            f"past_key_values: expected {new_heads} heads of keys of {new_dim} dimensions, got {heads} of {dim}; an "
            "enabled Falcon does not repeat shared keys, and writes the rounding of its biases beside them: start "
            "again with another cache"
        )


def kv_cache(model: PreTrainedModel, capacity: int | None = None) -> Cache:
    """A cache for ``generate(past_key_values=...)`` with a `KVCache` in each layer.

    An enabled model gives an empty DynamicCache such layers by itself; this is for making room at once.

    Args:
        model: an enabled model.
        capacity: tokens to make room for; it grows when they are used up.

    Raises:
        ValueError: for a capacity below 1.
    """
    return Cache(layers=[KVLayer(capacity) for _ in range(_num_layers(model))])


def horizon_cache(model: PreTrainedModel, **options: Any) -> Cache:
    """A cache for ``generate(past_key_values=...)`` with a `HorizonCache` in each layer: constant memory, endless text.

    ``cache.layers[i].cache.certificate()`` says what layer i has dropped. A text of another batch needs another cache,
    or ``cache.reset()``.

    Args:
        model: an enabled model.
        options: as `HorizonCache` takes them, the same for every layer; ``backing`` must be None or "cpu".

    Raises:
        ValueError: for a model that is not enabled, for a Falcon that reproduces its rounded biases, and for options
            that do not go together.
    """
    check_module(model)
    if isinstance(options.get("backing"), KVCache):
        raise ValueError('backing: expected None or "cpu", got a KVCache; each layer needs one of its own')
    if any(getattr(module, "reproduces_rounding", False) for module in model.modules()):
        raise ValueError(
            "model: expected a Falcon with the exact line of its biases, got one that reproduces their rounding to "
            "bfloat16; what rounding adds to a key grows with its position, and so would the windows: call "
            "enable(model, falcon_rounding=False), or use kv_cache(model)"
        )
    return Cache(layers=[HorizonLayer(**options) for _ in range(_num_layers(model))])


def _num_layers(model: PreTrainedModel) -> int:
    check_module(model)
    config = model.config
    enabled = (NATIVE, GENERAL) if config.model_type == "falcon" else (NATIVE,)
    if config._attn_implementation not in enabled:
        raise ValueError(
            f"model: expected an enabled BLOOM, MPT or Falcon, got a {type(model).__name__} whose attention is "
            f"{config._attn_implementation!r}; call enable(model) first. Models after "
            "replace_positions take transformers.DynamicCache"
        )
    number: int = config.num_hidden_layers
    return number
