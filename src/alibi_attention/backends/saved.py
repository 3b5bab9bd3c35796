"""What backward is handed, held against the call: a kernel reads memory by the sizes that it is told."""

from __future__ import annotations

from torch import Tensor, dtype, int32

from alibi_attention.problem import Problem, Saved, check_tensors


def check_saved(
    problem: Problem, plan_shape: tuple[int, ...], saved: Saved, grad_out: Tensor, grad_lse: Tensor
) -> None:
    """Hooks may have brought saved tensors back as something else; operators may be called by hand.

    Raises:
        ValueError: for a tensor whose shape, dtype or device is not what forward was given or gave.
    """
    check_tensors(saved.query, saved.key, saved.value, saved.slopes)
    rows = (problem.batch, problem.num_heads, problem.q_len)
    _check("out", saved.out, (*rows, problem.value_dim), problem.dtype, problem)
    _check("lse", saved.lse, rows, problem.compute_dtype, problem)
    _check("plan", saved.plan, plan_shape, int32, problem)
    _check("grad_out", grad_out, (*rows, problem.value_dim), problem.dtype, problem)
    _check("grad_lse", grad_lse, rows, problem.compute_dtype, problem)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], kind: dtype, problem: Problem) -> None:
    if tensor.shape == shape and tensor.dtype is kind and tensor.device == problem.device:
        return
    raise ValueError(
        f"{name}: backward expected {kind} of shape {shape} on {problem.device}, which goes with query, key and value "
        f"as they were saved, got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; saved-tensor hooks "
        "must hand back what they were given, in its shape and dtype"
    )
