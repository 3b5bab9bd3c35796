"""The registry of peers."""

from __future__ import annotations

from collections.abc import Sequence

from alibi_attention.bench.errors import BenchError
from alibi_attention.bench.ours import OUR_PEERS
from alibi_attention.bench.peer import Peer
from alibi_attention.bench.peers_flex import FLEX_PEERS
from alibi_attention.bench.peers_layer import LAYER_PEERS
from alibi_attention.bench.peers_sdpa import SDPA_PEERS

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*SDPA_PEERS, *FLEX_PEERS, *LAYER_PEERS, *OUR_PEERS)}


def pick_peers(names: Sequence[str]) -> list[str]:
    """The names, checked; those of all peers for none.

    Raises:
        BenchError: for a name that is none; lists those there are.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        got, known = ", ".join(map(repr, unknown)), ", ".join(PEERS)
        raise BenchError("peers", expected="names of peers", got=got, remedy=f"choose from {known}")
    return [name for name in PEERS if not names or name in names]
