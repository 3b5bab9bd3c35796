"""Every path of the launcher on a stand-in for the device: what it starts, over what grid, with which arguments."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")

import stand_in
from stand_in import Recorded, Start, record, standing_in, variant_of
from torch import Tensor

from alibi_attention import KVCache, alibi_attention
from alibi_attention.backends.triton import TritonBackend, configs, launch, tune
from alibi_attention.backends.triton import device as devices
from alibi_attention.dispatch import choose, explain_backends
from alibi_attention.problem import Problem

META = {"device": "meta"}
TABLES = {
    "forward_kernel": ("forward",),
    "query_kernel": ("query",),
    "key_kernel": ("key",),
    "rows_kernel": ("rows",),
    "summary_kernel": ("summary",),
    "mend_forward_kernel": ("mend",),
    "mend_query_kernel": ("mend",),
    "mend_key_kernel": ("mend",),
    "plan_kernel": ("plan", "plan_few"),
    "split_kernel": ("decode",),
}
ALL_KINDS = [
    "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120",
    "gfx90a", "gfx942", "gfx1100", "gfx1201",
]  # fmt: skip
PACKED = {"batch": 1, "cu_seqlens": torch.empty(4, dtype=torch.int32, **META)}
CALLS: dict[str, dict[str, Any]] = {
    "causal": {},
    "both ways": {"is_causal": False},
    "float32": {"dtype": torch.float32},
    "float16": {"dtype": torch.float16},
    "one row": {"q_len": 1, "k_len": 200},
    "one key": {"q_len": 5, "k_len": 1},
    "narrow": {"head_dim": 16, "value_dim": 24},
    "odd width": {"head_dim": 80, "value_dim": 100},
    "wide": {"head_dim": 256},
    "wide float32": {"head_dim": 192, "dtype": torch.float32},
    "grouped": {"heads": 6, "kv_heads": 2},
    "transposed": {"transposed": True},
    "slopes by batch": {"by_batch": True},
    "learned": {"learned_slopes": True},
    "dense": {"tolerance": 0.0, "q_len": 3000},
    "long": {"q_len": 3000},
    "long both ways": {"q_len": 3000, "is_causal": False, "window": (None, 100)},
    "window": {"window": (100, None)},
    "offset": {"query_offset": 1 << 20},
    "offsets": {"query_offset": torch.empty(2, dtype=torch.int64, **META)},
    "padded": {"key_mask": torch.empty(2, 300, dtype=torch.bool, **META)},
    "long and padded": {"q_len": 3000, "key_mask": torch.empty(2, 3000, dtype=torch.bool, **META)},
    "packed": PACKED,
    "long and packed": {**PACKED, "q_len": 3000},
    "packed apart": {**PACKED, "k_len": 200, "cu_seqlens_k": torch.empty(4, dtype=torch.int32, **META)},
    "dropout": {"dropout_p": 0.3},
    "dropout of next to nothing": {"dropout_p": 1e-12},
    "decoding": {"q_len": 1, "k_len": 5000, "cached": True, "gradients": False},
    "decoding grouped": {"q_len": 2, "k_len": 5000, "kv_heads": 1, "cached": True, "gradients": False},
    "decoding padded": {
        "q_len": 1, "k_len": 5000, "cached": True, "gradients": False,
        "key_mask": torch.empty(2, 5000, dtype=torch.bool, **META),
    },
    "decoding without a summary": {"q_len": 1, "k_len": 5000, "gradients": False},
    "a chunk after a cache": {"q_len": 200, "k_len": 5000, "cached": True, "gradients": False},
}  # fmt: skip


@pytest.fixture(params=CALLS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return record("sm_90", **CALLS[request.param])


def test_every_argument_is_given_once_and_fits(recorded: Recorded) -> None:
    for start in recorded.starts:
        assert set(start.everything) == set(start.kernel.arg_names), start.name
        assert not set(start.arguments) & set(start.config.constants), start.name
        annotations = {name: each.annotation for name, each in inspect.signature(start.kernel.fn).parameters.items()}
        for name, value in start.everything.items():
            if isinstance(value, int) and not isinstance(value, bool) and "int64" not in str(annotations[name]):
                assert -(2**31) <= value < 2**31, f"{start.name}: {name} = {value}"
            if isinstance(value, float):
                assert math.isfinite(value), f"{start.name}: {name}"


def test_programs_cover_every_row_and_key(recorded: Recorded) -> None:
    problem = recorded.problem
    pairs, shared = problem.batch * problem.num_heads, problem.batch * problem.num_kv_heads
    for start in recorded.starts:
        programs = math.prod(start.grid)
        assert 0 < programs < 2**31, start.name
        sizes = start.everything
        whole = -(-problem.q_len // 128)
        if problem.cu_seqlens is not None:
            # A sequence ends a block wherever it ends.
            whole += len(problem.cu_seqlens) - 2
        if start.name in ("forward_kernel", "query_kernel", "mend_forward_kernel", "mend_query_kernel"):
            rows = sizes["at_once"] if "mend" in start.name else sizes["block_m"]
            blocks = -(-problem.q_len // rows) if problem.cu_seqlens is None else whole * (128 // rows)
            assert programs == pairs * blocks, start.name
            assert sizes["entries"] == whole, start.name
        elif start.name == "rows_kernel":
            assert programs == pairs * -(-problem.q_len // sizes["block_m"])
        elif start.name == "plan_kernel":
            assert programs == pairs * whole
            assert sizes["entries"] == whole
        elif start.name == "key_kernel":
            assert programs == shared * -(-problem.k_len // sizes["block_n"])
        elif start.name == "mend_key_kernel":
            assert programs == shared * -(-problem.k_len // sizes["at_once"])
        elif start.name == "split_kernel":
            assert programs == shared * sizes["splits"]
            assert sizes["rows_of_group"] >= problem.group_size * problem.q_len
        elif start.name == "merge_kernel":
            assert programs == pairs * problem.q_len
            assert sizes["block_s"] >= sizes["splits"]


def test_pointers_come_with_the_strides_of_their_tensors(recorded: Recorded) -> None:
    tensors = {"query": "query", "key": "key", "value": "value", "grad_out": "flow"}
    for start in recorded.starts:
        given = start.everything
        for pointer, prefix in tensors.items():
            tensor = given.get(pointer)
            if tensor is None or f"{prefix}_row" not in given:
                continue
            strides = tuple(given[f"{prefix}_{axis}"] for axis in ("batch", "head", "row"))
            assert strides == tensor.stride()[:3], f"{start.name}: {pointer}"
            assert tensor.stride(3) == 1, f"{start.name}: {pointer}"
        for name, value in given.items():
            if isinstance(value, Tensor):
                assert value.device == recorded.problem.device, f"{start.name}: {name}"
                assert name in ("query", "key", "value", "grad_out", "slopes") or value.is_contiguous(), (
                    f"{start.name}: {name} has no strides of its own, and is not contiguous"
                )


def test_no_tensor_is_copied_for_its_layout(recorded: Recorded) -> None:
    # Any strides whose last dimension is contiguous are taken as they are.
    query, key, value, _ = recorded.tensors
    for start in recorded.starts:
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            given = start.arguments.get(name)
            assert given is None or given is tensor, f"{start.name}: {name} was copied"


def test_results_are_as_the_operator_promises(recorded: Recorded) -> None:
    problem, (out, lse, plan) = recorded.problem, recorded.results
    rows = (problem.batch, problem.num_heads, problem.q_len)
    assert (out.shape, out.dtype) == ((*rows, problem.value_dim), problem.dtype)
    assert (lse.shape, lse.dtype) == (rows, torch.float32)
    assert (tuple(plan.shape), plan.dtype) == (TritonBackend().plan_shape(problem), torch.int32)
    if recorded.gradients is not None:
        for gradient, tensor in zip(recorded.gradients[:3], recorded.tensors[:3], strict=True):
            assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)
        assert recorded.gradients.slopes.shape == rows[:2]


def test_memory_is_linear_in_the_length(recorded: Recorded) -> None:
    problem = recorded.problem
    longest = max(problem.q_len, problem.k_len)
    most = 8 * problem.batch * problem.num_heads * longest * max(problem.head_dim, problem.value_dim, 16)
    for start in recorded.starts:
        for name, value in start.arguments.items():
            if isinstance(value, Tensor):
                assert value.numel() <= most, f"{start.name}: {name} has {value.numel()} elements"


@pytest.mark.parametrize("architecture", ALL_KINDS)
@pytest.mark.parametrize("call", ["causal", "wide", "float32", "decoding", "dropout", "learned", "both ways"])
def test_what_is_started_is_shipped(architecture: str, call: str) -> None:
    recorded = record(architecture, **CALLS[call])
    problem = recorded.problem
    width = max(64, configs.width_of(problem.head_dim, problem.value_dim))
    mine = (configs.family_of(architecture), problem.dtype.itemsize, width)
    shipped: dict[str, list[configs.Config]] = {}
    for family, kernel, *kind, config in configs.shipped():
        if (family, *kind) == mine:
            # A table of its own for a feature is named behind the kernel.
            shipped.setdefault(kernel.partition(",")[0], []).append(config)
    seen = 0
    for start in recorded.starts:
        tables = TABLES.get(start.name, ())
        seen += bool(tables)
        # A kernel without a table has one size for everybody.
        known = [config for table in tables for config in shipped.get(table, ())]
        assert not tables or start.config in known, f"{start.name}: {start.config}"
        assert start.arguments.get("bias", True) is True, "the bias is left out to count instructions alone"
    assert seen


def test_tiles_are_asked_for_by_features_there_are() -> None:
    for _, kernel, *_ in configs.shipped():
        feature = kernel.partition(", ")[2]
        assert not feature or feature in configs.FEATURES, kernel
    # Among them a string, whose letters are strings.
    for wrong in (["droput"], "dropout"):
        with pytest.raises(ValueError, match="features: expected some of 'dropout', 'learned', 'masked'"):
            configs.config_for("key", "sm_80", 2, 128, wrong)  # type: ignore[arg-type]


def test_what_takes_more_registers_or_memory_has_tiles_of_its_own() -> None:
    def tiles(architecture: str, name: str, **options: Any) -> tuple[int, int]:
        (start,) = (start for start in record(architecture, **options).starts if start.name == name)
        return start.config.constants["block_m"], start.config.constants["block_n"]

    assert tiles("sm_80", "key_kernel", dropout_p=0.1) != tiles("sm_80", "key_kernel")
    assert tiles("sm_80", "query_kernel", dropout_p=0.1) == tiles("sm_80", "query_kernel")
    assert tiles("sm_90", "query_kernel", learned_slopes=True) != tiles("sm_90", "query_kernel")
    assert tiles("sm_90", "key_kernel", learned_slopes=True) == tiles("sm_90", "key_kernel")
    wide = {"head_dim": 256}
    long = {"head_dim": 128}
    assert tiles("sm_90", "key_kernel", window=(100, 0), **long) != tiles("sm_90", "key_kernel", **long)
    assert tiles("sm_90", "key_kernel", is_causal=False, **long) == tiles("sm_90", "key_kernel", window=(9, 0), **long)
    # Of two features the one that has tiles.
    both = {"learned_slopes": True, "is_causal": False}
    assert tiles("sm_90", "query_kernel", **both) == tiles("sm_90", "query_kernel", learned_slopes=True)
    # Two gradients of 256 columns have the registers for small tiles alone.
    parts = [start.everything["of"] for start in record("sm_90", **wide).starts if start.name == "key_kernel"]
    assert parts == ["values", "keys"], "the marks of the first are read by the second"
    # A width or a size of element without any of its own.
    for options in ({"dtype": torch.float32}, {"head_dim": 256}):
        assert tiles("sm_80", "key_kernel", dropout_p=0.1, **options) == tiles("sm_80", "key_kernel", **options)


def test_every_gpu_has_the_tiles_of_its_kin() -> None:
    kin = {
        "sm_86": "sm_80", "sm_90": "sm_90", "sm_100": "sm_100", "sm_103": "sm_100", "sm_110": "sm_100",
        "sm_120": "sm_80", "sm_121": "sm_80", "gfx90a": "gfx942", "gfx950": "gfx942", "gfx1100": "gfx11",
        "gfx1201": "gfx11",
    }  # fmt: skip
    assert {architecture: configs.family_of(architecture) for architecture in kin} == kin


def test_a_call_starts_the_same_kernels_every_time() -> None:
    # What a CUDA graph has captured is what runs.
    for call in CALLS.values():
        one, two = (
            [(start.name, start.grid, start.config) for start in record("sm_90", **call).starts] for _ in range(2)
        )
        assert one == two


def test_dense_calls_spare_the_pre_pass() -> None:
    def names(**options: Any) -> list[str]:
        return [start.name for start in record("sm_90", gradients=False, **options).starts]

    assert "plan_kernel" in names(q_len=3000)
    assert not any("plan" in name or "summary" in name for name in names(q_len=3000, tolerance=0.0))


def test_dropout_has_a_seed_and_nothing_else_has() -> None:
    for name, call in CALLS.items():
        seeds = [start.arguments.get("seed") is not None for start in record("sm_90", **call).starts]
        assert any(seeds) == (name == "dropout"), name


def test_products_of_float32_are_formed_on_purpose() -> None:
    # Of the kernels that do the work; those that mend form them in float32 proper.
    def precisions(architecture: str, dtype: torch.dtype, head_dim: int = 64) -> set[str]:
        starts = record(architecture, dtype=dtype, head_dim=head_dim).starts
        sweeping = ("forward_kernel", "query_kernel", "key_kernel")
        return {start.everything["precision"] for start in starts if start.name in sweeping}

    assert precisions("sm_90", torch.float32, 256) == {"ieee"}
    assert precisions("sm_90", torch.float32) == {"tf32x3"}
    assert precisions("gfx942", torch.float32) == {"ieee"}
    assert precisions("sm_90", torch.bfloat16) == {"ieee"}


def test_variants_are_few() -> None:
    """Lengths and head counts compile nothing anew."""
    sizes = ({}, {"q_len": 777}, {"q_len": 1024}, {"heads": 12, "kv_heads": 12}, {"batch": 5}, {"query_offset": 3})
    starts = [start for size in sizes for start in record("sm_90", tolerance=0.0, **size).starts]
    found = {stand_in.key_of(variant_of(start, "sm_90")) for start in starts}
    once = record("sm_90", tolerance=0.0).starts
    # Strides of a length or a head count that is, or is not, a multiple of 16 are two kinds, and 1 is a third.
    assert len(found) <= 3 * len(once)


def _code(**options: Any) -> dict[str, str]:
    """The key of each kernel's code."""
    return {start.name: stand_in.key_of(variant_of(start, "sm_90")) for start in record("sm_90", **options).starts}


def test_a_growing_cache_compiles_nothing_anew() -> None:
    step = {"q_len": 1, "cached": True, "gradients": False}
    first = _code(k_len=4096, **step)
    assert set(first) == {"plan_kernel", "split_kernel", "merge_kernel"}
    for length in (4097, 4112, 4160, 5000):
        assert _code(k_len=length, **step) == first, length


@pytest.mark.parametrize("tolerance", [None, 0.0])
@pytest.mark.parametrize(
    "moved", [[{"query_offset": n} for n in (0, 1, 3, 16)], [{"window": (n, 0)} for n in (1, 5, 16)]]
)
def test_where_rows_stand_compiles_nothing_anew(moved: list[dict[str, Any]], tolerance: float | None) -> None:
    first, *rest = (_code(q_len=2100, tolerance=tolerance, learned_slopes=True, **each) for each in moved)
    assert all(code == first for code in rest)


def test_what_a_row_sees_is_compiled_in_where_it_is_its_position_alone() -> None:
    for name, call in CALLS.items():
        apart = ("both ways", "long both ways", "window", "offsets", "padded", "long and padded", "decoding padded")
        for start in record("sm_90", **call).starts:
            if "plain" in start.everything:
                assert start.everything["plain"] is (name not in apart and "packed" not in name), (
                    f"{name}: {start.name}"
                )


def test_a_step_of_decoding_is_shared_by_many_programs_flattest_heads_first() -> None:
    step = {"batch": 4, "heads": 32, "kv_heads": 32, "q_len": 1, "k_len": 131072, "cached": True, "gradients": False}
    planned, dense = (record("sm_90", **step, tolerance=tolerance) for tolerance in (None, 0.0))
    (split,) = (start for start in planned.starts if start.name == "split_kernel")
    assert (split.grid, split.arguments["splits"]) == ((128 * 16,), 16)
    order = split.arguments["order"]
    # The end of the plan, where the pre-pass writes the pairs of (batch, key head) by slope.
    assert order.shape == (128,)
    assert order.untyped_storage()._cdata == planned.results[2].untyped_storage()._cdata
    assert order.storage_offset() == planned.results[2].numel() - 128
    (split,) = (start for start in dense.starts if start.name == "split_kernel")
    assert (split.grid, split.arguments["order"]) == ((128 * 4,), None)


# The way to the launch


def test_tensors_without_values_fail_whoever_reads_one() -> None:
    # What the checks above rest on.
    for read in (Tensor.item, bool, lambda t: t.nonzero(), Tensor.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.ones((), device="meta"))


def test_a_cache_reads_no_values() -> None:
    cache = KVCache()
    for tokens in (100, 1, 1):
        cache.append(torch.empty(2, 2, tokens, 64, **META), torch.empty(2, 2, tokens, 64, **META))
    mask = torch.ones(2, 30, dtype=torch.bool, **META)
    padded = KVCache()
    padded.append(torch.empty(2, 2, 30, 64, **META), torch.empty(2, 2, 30, 64, **META), key_mask=mask)
    assert cache.length == 102
    assert cache.attend(torch.empty(2, 4, 1, 64, **META)).shape == (2, 4, 1, 64)


class _Kernel:
    """Takes what `launch.run` gives a kernel."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda **arguments: self.started.append((grid, arguments))


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_start_hands_everything_to_triton_on_the_device_of_the_tensors(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Any] = []

    @contextlib.contextmanager
    def on_device(which: torch.device) -> Iterator[None]:
        entered.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "device", on_device)
    kernel, config = _Kernel(), configs.Config({"block_m": 64}, 8, 3)
    launch.run(kernel, (5,), config, torch.device(device), {"q_len": 7})
    assert kernel.started == [((5,), {"q_len": 7, "block_m": 64, "num_warps": 8, "num_stages": 3})]
    assert entered == ([torch.device("cuda:1")] if device.startswith("cuda") else [])


# Who runs what


def problem(**changes: Any) -> Problem:
    found = record("sm_90", gradients=False).problem
    return found._replace(**{"device": torch.device("cuda:0"), **changes})


def test_tensors_on_a_gpu_choose_it() -> None:
    for architecture in ("sm_80", "sm_90", "sm_121", "gfx942"):
        with standing_in(architecture):
            assert choose(problem(), None).name == "triton"
            assert choose(problem(), "triton").name == "triton"


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        (None, {"device": torch.device("cpu")}, "runs on CUDA and ROCm devices, the tensors are on cpu"),
        (None, {"device": torch.device("xpu")}, "runs on CUDA and ROCm devices, the tensors are on xpu"),
        ("sm_75", {}, "needs compute capability 8.0 or later, cuda:0 is sm_75"),
        ("sm_90", {"dtype": torch.float64}, "computes in float32, the tensors are torch.float64"),
        ("sm_90", {"head_dim": 257}, "head dimensions up to 256, got 257 and 64"),
        ("sm_90", {"value_dim": 300}, "head dimensions up to 256, got 64 and 300"),
        ("interpreter", {}, "Triton's interpreter computes bfloat16 wrongly, float32 and float16 are right there"),
    ],
)
def test_what_it_cannot_run_is_refused_with_the_reason(
    architecture: str | None, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "target", lambda device: architecture)  # noqa: ARG005
    assert TritonBackend().why_not(problem(**changes)) == reason
    with pytest.raises(NotImplementedError, match="triton: "):
        choose(problem(**changes), "triton")


def test_on_the_cpu_it_names_what_it_needs() -> None:
    tensors = [torch.randn(1, 1, 4, 16) for _ in range(3)]
    assert "CUDA and ROCm" in str(explain_backends(*tensors)["triton"])
    with pytest.raises(NotImplementedError, match="runs on CUDA and ROCm devices, the tensors are on cpu"):
        alibi_attention(*tensors, backend="triton")


def test_missing_and_old_tritons_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str | None:
        devices.missing.cache_clear()
        return devices.missing()

    try:
        assert told() is None
        monkeypatch.setattr(devices.importlib.metadata, "version", lambda name: "3.5.1")  # noqa: ARG005
        remedy = "pip install -c constraints.txt '.[triton]' in a checkout of alibi-attention"
        assert told() == f"needs Triton 3.6 or later, found 3.5.1: {remedy}"
        monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
        assert told() == f"Triton is not installed: {remedy}"
        # A pinned torch for the CPU in place of one for a GPU would be a poor remedy.
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        assert told() == "Triton is not installed: PyTorch 2.10 and later bring it along; install one of those anew"
    finally:
        monkeypatch.undo()
        devices.missing.cache_clear()


# Autotuning


def test_autotuning_is_on_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    call, tried = problem(), []
    monkeypatch.setattr(devices, "target", lambda device: "sm_90")  # noqa: ARG005
    monkeypatch.setattr(tune, "_CHOSEN", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)

    def seconds(config: configs.Config, run: Any) -> float:
        tried.append(config)
        run(config)
        return 1.0 if config == wanted else 2.0

    monkeypatch.setattr(tune, "_seconds", seconds)
    shipped = configs.config_for("forward", *configs.kind(call))
    wanted = tune._others("forward")[3]
    ran: list[configs.Config] = []
    capturing = False
    assert tune.pick("forward", call, ran.append) == shipped
    monkeypatch.setenv("ALIBI_TRITON_AUTOTUNE", "1")
    capturing = True
    assert tune.pick("forward", call, ran.append) == shipped
    assert not ran, "nothing is tried unasked, or while a graph is captured"
    capturing = False
    assert tune.pick("forward", call, ran.append) == wanted
    assert ran == tried == [shipped, *tune._others("forward")]
    # Found once: again, and under a capture, it is there.
    capturing = True
    assert tune.pick("forward", call, ran.append) == wanted
    assert len(tried) == 1 + len(tune._others("forward"))
    assert tune.pick("forward", call._replace(q_len=call.q_len * 8), ran.append) == shipped


def test_calls_of_other_kernels_are_tuned_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Keys on both sides are compiled in: what a windowed call has registers for, or tensor memory, they may not have.
    monkeypatch.setattr(devices, "target", lambda device: "sm_100")  # noqa: ARG005
    monkeypatch.setattr(tune, "_CHOSEN", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("ALIBI_TRITON_AUTOTUNE", "1")
    tried: list[configs.Config] = []
    monkeypatch.setattr(tune, "_seconds", lambda config, run: tried.append(config) or 1.0)  # noqa: ARG005
    windowed = problem()._replace(window=(100, -1))
    for call in (windowed, windowed._replace(is_causal=False), windowed._replace(is_causal=False, window=(100, 0))):
        tune.pick("key", call, lambda config: None)  # noqa: ARG005
    # The third sees keys on one side again.
    assert len(tried) == 2 * (1 + len(tune._others("key")))


@pytest.mark.parametrize("given", ["yes", "2"])
def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr(devices, "target", lambda device: "sm_90")  # noqa: ARG005
    monkeypatch.setenv("ALIBI_TRITON_AUTOTUNE", given)
    with pytest.raises(ValueError, match=f"ALIBI_TRITON_AUTOTUNE: expected 1 or 0, got '{given}'; 1 tries tiles"):
        tune.pick("forward", problem(), lambda config: None)  # noqa: ARG005


def test_without_asking_nothing_is_timed() -> None:
    # A stand-in counts starts: each kernel once, none tried.
    names = [start.name for start in record("sm_90").starts]
    assert names.count("forward_kernel") == names.count("query_kernel") == names.count("key_kernel") == 1


def test_the_recorder_records() -> None:
    starts: list[Start] = record("sm_90").starts
    assert starts[0].name in ("forward_kernel", "summary_kernel")
    assert any(start.name == "key_kernel" for start in starts)
