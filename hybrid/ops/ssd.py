"""State-space duality: the recurrence at the heart of Mamba-2 (Dao & Gu 2024, sections 3 and 6).

With a head's state h of shape (P, N), for every position t:

    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T          y_t = h_t C_t

`ssd_naive` is that loop. `ssd_chunked` cuts time into chunks of Q positions, does the inside of a chunk
as matrix products, and carries the state from chunk to chunk; a step of decoding is the loop's body. `ssd` chooses
between implementations.

How the chunked form avoids a (Q, Q) decay matrix for every head. With cum = cumsum(dt A) inside a chunk,
the weight of position j in output i is (C_i . B_j) exp(cum_i - cum_j). For any number m,

    exp(cum_i - cum_j) = exp(cum_i - m) exp(m - cum_j)

so the weights factor into the lower triangle of C B^T, shared by all heads of a group, between two
diagonal scalings: one (Q, Q) (Q, H P) product does all heads at once. m = cum_last / 2 keeps both factors
within exp(|cum_last| / 2). Where a chunk forgets so much that a product of two such factors could overflow
float32 (cum_last below `LOG_DECAY_LIMIT`), the whole call takes the exact form instead, with one decay matrix per
head, in blocks. The choice depends on the values of dt and A alone, and moves results by rounding only.

Shapes: B batch (times groups inside `_ChunkedSSD`), L length, K chunks, Q positions in a chunk, H heads, P head_dim,
N d_state, G groups. The matrices B and C of the recurrence keep their names from the paper.
"""

from collections.abc import Iterator
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.ops import fused_ssd
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.precision import compute_dtype, without_autocast

LOG_DECAY_LIMIT = -80.0
"""exp(80) = 5.5e34 leaves a factor of 6,000 below the largest float32."""

_DECAY_BLOCK_ELEMENTS = 1 << 18
"""The exact form holds decay matrices of about 1 MB in float32 at a time, to stay in cache."""


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    chunk: int,
    initial_state_BHPN: Tensor | None = None,
    return_state: bool = True,
    kernels: Kernels = TORCH,
) -> tuple[Tensor, Tensor | None]:
    """Outputs and final state of the recurrence, by the path that `kernels` names, if it takes these tensors.

    `dt_BLH` is positive (after its softplus), `A_H` negative. Heads h of group g are the G equal,
    consecutive parts of H. The state (B, H, P, N) is float32, or float64 for float64 inputs; it starts at zero
    unless given, and None is returned in its place without `return_state`, which saves its computation.
    Differentiable once, in all tensor arguments and through both results.
    """
    match kernels.ssd:
        case "triton":
            path = fused_ssd.fused_ssd if fused_ssd.takes(x_BLHP) else ssd_chunked
        case "torch":
            if x_BLHP.shape[1] == 1 and initial_state_BHPN is not None and not torch.is_grad_enabled():
                return _ssd_one_position(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, initial_state_BHPN)
            path = ssd_chunked
        case _:
            assert_never(kernels.ssd)
    return path(
        x_BLHP,
        dt_BLH,
        A_H,
        B_BLGN,
        C_BLGN,
        chunk=chunk,
        initial_state_BHPN=initial_state_BHPN,
        return_state=return_state,
    )


def ssd_naive(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    initial_state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference: the recurrence as a loop over positions, in the dtype of its inputs."""
    batch, length, n_heads, head_dim = x_BLHP.shape
    heads_per_group = n_heads // B_BLGN.shape[2]
    B_BLHN = B_BLGN.repeat_interleave(heads_per_group, dim=2)
    C_BLHN = C_BLGN.repeat_interleave(heads_per_group, dim=2)
    state_BHPN = initial_state_BHPN
    if state_BHPN is None:
        state_BHPN = x_BLHP.new_zeros(batch, n_heads, head_dim, B_BLGN.shape[3])
    outputs: list[Tensor] = []
    for t in range(length):
        decay_BH = torch.exp(dt_BLH[:, t] * A_H)
        input_BHP = dt_BLH[:, t, :, None] * x_BLHP[:, t]
        state_BHPN = decay_BH[..., None, None] * state_BHPN + input_BHP[..., None] * B_BLHN[:, t, :, None, :]
        outputs.append((state_BHPN * C_BLHN[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state_BHPN


def _ssd_one_position(
    x_B1HP: Tensor, dt_B1H: Tensor, A_H: Tensor, B_B1GN: Tensor, C_B1GN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence itself, for a step of decoding; the state is written into, unless it has to be converted."""
    batch, _, n_heads, head_dim = x_B1HP.shape
    n_groups, d_state = B_B1GN.shape[2:]
    dtype = compute_dtype(x_B1HP.dtype)
    # Groups never meet, so they can be batch; a group's heads are rows of one product.
    rows = (batch * n_groups, n_heads // n_groups * head_dim)
    with without_autocast(x_B1HP):
        dt_BH1 = dt_B1H.to(dtype).view(batch, n_heads, 1)
        decay_BH11 = torch.exp(dt_BH1 * A_H.to(dtype).unsqueeze(-1)).unsqueeze(-1)
        input_BHP = x_B1HP.to(dtype).view(batch, n_heads, head_dim) * dt_BH1
        B_b1N, C_b1N = (t.to(dtype).reshape(-1, 1, d_state) for t in (B_B1GN, C_B1GN))
        # In place: to have memory for a new one from the system takes longer than the product.
        after_bWN = state_BHPN.to(dtype).mul_(decay_BH11).reshape(*rows, d_state)
        after_bWN.addcmul_(input_BHP.view(*rows, 1), B_b1N)
        # The row times the matrix: the matrix times the column takes several times as long on the CPU.
        y_b1W = torch.bmm(C_b1N, after_bWN.transpose(1, 2))
    y_B1HP = y_b1W.view(x_B1HP.shape).to(x_B1HP.dtype)
    return y_B1HP, after_bWN.view(state_BHPN.shape)


def ssd_chunked(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    chunk: int,
    initial_state_BHPN: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`ssd` in plain PyTorch with a hand-written backward; any length, chunks of at most `chunk` positions.

    Computed in float32 at least; y has the dtype of x. Besides its arguments, backward keeps y, the
    cumulative log-decays and one state per chunk: nothing of size (Q, Q).
    """
    batch, length, n_heads, head_dim = x_BLHP.shape
    n_groups, d_state = B_BLGN.shape[2:]
    dtype = compute_dtype(x_BLHP.dtype)
    with without_autocast(x_BLHP):
        x_BLHP_c, dt_BLH, A_H = x_BLHP.to(dtype), dt_BLH.to(dtype), A_H.to(dtype)
        B_BLGN, C_BLGN = B_BLGN.to(dtype), C_BLGN.to(dtype)
        log_decay_BLH = dt_BLH * A_H

        # Chunks of equal size, as few as `chunk` allows, with the least padding: dt = 0 leaves the state alone.
        n_chunks = -(-length // chunk)
        chunk_len = -(-length // n_chunks)
        padding = n_chunks * chunk_len - length
        if padding:
            x_BLHP_c, B_BLGN, C_BLGN = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (x_BLHP_c, B_BLGN, C_BLGN))
            dt_BLH, log_decay_BLH = (F.pad(t, (0, 0, 0, padding)) for t in (dt_BLH, log_decay_BLH))

        state_BNHP: Tensor | None = None
        if initial_state_BHPN is not None:
            state_BNHP = _fold_state(initial_state_BHPN.to(dtype), n_groups)
        y_BLHP, final_BNHP = _ChunkedSSD.apply(
            _fold_groups(x_BLHP_c, n_groups),
            _fold_groups(dt_BLH, n_groups),
            _fold_groups(log_decay_BLH, n_groups),
            _fold_groups(B_BLGN, n_groups).squeeze(2),
            _fold_groups(C_BLGN, n_groups).squeeze(2),
            state_BNHP,
            chunk_len,
            return_state,
        )
        if n_groups > 1:
            y_BLHP = y_BLHP.unflatten(0, (batch, n_groups)).transpose(1, 2).flatten(2, 3)
        if padding:
            y_BLHP = y_BLHP[:, :length]
        final_BHPN = None
        if final_BNHP is not None:
            final_BHPN = final_BNHP.permute(0, 2, 3, 1).reshape(batch, n_heads, head_dim, d_state)
        return y_BLHP.to(x_BLHP.dtype), final_BHPN


def _fold_groups(t: Tensor, n_groups: int) -> Tensor:
    """(B, L, G * m, ...) to (B * G, L, m, ...): groups never meet, so they can be batch."""
    if n_groups == 1:
        return t
    return t.unflatten(2, (n_groups, -1)).transpose(1, 2).flatten(0, 1)


def _fold_state(state_BHPN: Tensor, n_groups: int) -> Tensor:
    """(B, G * h, P, N) to (B * G, N, h, P), the layout in which all heads are one matrix product."""
    return state_BHPN.unflatten(1, (n_groups, -1)).flatten(0, 1).permute(0, 3, 1, 2)


class _ChunkedSSD(torch.autograd.Function):
    """One group of B and C; the length is a whole number of chunks.

    With `in`, `out`, `pre` and `post` exponentials of cum (see `_Scales`), each chunk does

        V = in dt x      K = B^T V      R = pre P      y = out (tril(C B^T) V + C R)      P' = carry P + post K

    where P is the state before the chunk; in the exact form the term in V is a sum with decay matrices.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_BLHP: Tensor,
        dt_BLH: Tensor,
        log_decay_BLH: Tensor,
        B_BLN: Tensor,
        C_BLN: Tensor,
        initial_BNHP: Tensor | None,
        chunk_len: int,
        return_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, n_heads, head_dim = x_BLHP.shape
        d_state = B_BLN.shape[2]
        n_chunks = length // chunk_len
        width = n_heads * head_dim
        cum_BKQH = log_decay_BLH.reshape(batch, n_chunks, chunk_len, n_heads).cumsum(2)
        exact = _needs_exact(cum_BKQH)
        scales = _Scales(cum_BKQH, exact)
        dt_BKQH = dt_BLH.reshape(cum_BKQH.shape)
        x_BKQHP = x_BLHP.reshape(*cum_BKQH.shape, head_dim)
        B_kQN = B_BLN.reshape(-1, chunk_len, d_state)
        C_kQN = C_BLN.reshape(-1, chunk_len, d_state)

        V_kQW = (x_BKQHP * (scales.in_BKQH * dt_BKQH).unsqueeze(-1)).reshape(-1, chunk_len, width)
        scores_kQQ = torch.bmm(C_kQN, B_kQN.transpose(1, 2)).tril_()
        y_kQW = None if exact else torch.bmm(scores_kQQ, V_kQW)

        # A single chunk from a zero state, in training, never needs a state.
        carries = n_chunks > 1 or initial_BNHP is not None
        before_BKNHP = final_BNHP = None
        if carries or return_state:
            after_BKNHP = torch.bmm(B_kQN.transpose(1, 2), V_kQW).view(batch, n_chunks, d_state, n_heads, head_dim)
            after_BKNHP.mul_(scales.post_BKH[:, :, None, :, None])
            carry_BKNHP = scales.carry_BKH[:, :, None, :, None]
            before_BKNHP = torch.empty_like(after_BKNHP)
            if initial_BNHP is None:
                before_BKNHP[:, 0].zero_()
            else:
                before_BKNHP[:, 0].copy_(initial_BNHP)
            for k in range(n_chunks - 1):
                torch.addcmul(after_BKNHP[:, k], carry_BKNHP[:, k], before_BKNHP[:, k], out=before_BKNHP[:, k + 1])
            if return_state:
                final_BNHP = torch.addcmul(after_BKNHP[:, -1], carry_BKNHP[:, -1], before_BKNHP[:, -1])
        if carries:
            assert before_BKNHP is not None
            R_kNW = (before_BKNHP * scales.pre_BKH[:, :, None, :, None]).reshape(-1, d_state, width)
            y_kQW = torch.bmm(C_kQN, R_kNW) if y_kQW is None else y_kQW.baddbmm_(C_kQN, R_kNW)
        else:
            before_BKNHP = None

        if y_kQW is None:
            y_BKQHP = torch.zeros_like(x_BKQHP, memory_format=torch.contiguous_format)
        else:
            y_BKQHP = y_kQW.view(x_BKQHP.shape).mul_(scales.out_BKQH.unsqueeze(-1))
        if exact:
            _add_exact_diagonal(y_BKQHP, x_BKQHP, dt_BKQH, cum_BKQH, scores_kQQ)
        y_BLHP = y_BKQHP.view(batch, length, n_heads, head_dim)
        saved = (x_BLHP, dt_BLH, cum_BKQH, B_BLN, C_BLN, before_BKNHP, y_BLHP, final_BNHP)
        ctx.save_for_backward(*saved)  # type: ignore[arg-type]  # its annotation leaves out None, which it takes
        ctx.exact = exact  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y_BLHP, final_BNHP

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, dy_BLHP: Tensor | None, dfinal_BNHP: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_BLHP, dt_BLH, cum_BKQH, B_BLN, C_BLN, before_BKNHP, y_BLHP, final_BNHP = ctx.saved_tensors  # type: ignore[attr-defined]
        with without_autocast(x_BLHP):
            if dy_BLHP is None:
                dy_BLHP = torch.zeros_like(y_BLHP)
            return _backward(
                x_BLHP,
                dt_BLH,
                cum_BKQH,
                B_BLN,
                C_BLN,
                before_BKNHP,
                y_BLHP,
                final_BNHP,
                dy_BLHP,
                dfinal_BNHP,
                exact=ctx.exact,  # type: ignore[attr-defined]
                initial_grad=ctx.needs_input_grad[5],  # type: ignore[attr-defined]
            )


def _backward(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    cum_BKQH: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    before_BKNHP: Tensor | None,
    y_BLHP: Tensor,
    final_BNHP: Tensor | None,
    dy_BLHP: Tensor,
    dfinal_BNHP: Tensor | None,
    *,
    exact: bool,
    initial_grad: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, log-decay, B, C and the initial state.

    cum_i multiplies y_i as exp(cum_i) and divides the input at j as exp(-cum_j), so that its gradient is
    <dy_i, y_i> - <x_i, dx_i>, plus <dP', P'> at the last position of a chunk; the shift m drops out. The difference
    costs digits where decay is strong: in float32 about four remain for dt and A, six for the others.
    """
    batch, n_chunks, chunk_len, n_heads = cum_BKQH.shape
    head_dim, d_state = x_BLHP.shape[3], B_BLN.shape[2]
    width = n_heads * head_dim
    scales = _Scales(cum_BKQH, exact)
    dt_BKQH = dt_BLH.reshape(cum_BKQH.shape)
    x_BKQHP = x_BLHP.reshape(*cum_BKQH.shape, head_dim)
    y_BKQHP = y_BLHP.view(x_BKQHP.shape)
    dy_BKQHP = dy_BLHP.reshape(x_BKQHP.shape)
    B_kQN = B_BLN.reshape(-1, chunk_len, d_state)
    C_kQN = C_BLN.reshape(-1, chunk_len, d_state)
    in_dt_BKQH1 = (scales.in_BKQH * dt_BKQH).unsqueeze(-1)

    dout_kQW = (dy_BKQHP * scales.out_BKQH.unsqueeze(-1)).reshape(-1, chunk_len, width)
    V_kQW = (x_BKQHP * in_dt_BKQH1).reshape(-1, chunk_len, width)
    scores_kQQ = torch.bmm(C_kQN, B_kQN.transpose(1, 2)).tril_()

    dU_BKQHP = dV_kQW = None
    if exact:
        dU_BKQHP, dscores_kQQ = _exact_diagonal_grads(dy_BKQHP, x_BKQHP, dt_BKQH, cum_BKQH, scores_kQQ)
    else:
        dV_kQW = torch.bmm(scores_kQQ.transpose(1, 2), dout_kQW)
        dscores_kQQ = torch.bmm(dout_kQW, V_kQW.transpose(1, 2)).tril_()
    dC_kQN = torch.bmm(dscores_kQQ, B_kQN)
    dB_kQN = torch.bmm(dscores_kQQ.transpose(1, 2), C_kQN)

    # dafter is the gradient of the state after each chunk, dbefore of the state before it.
    dinitial_BNHP: Tensor | None = None
    dlast_BKH: Tensor | None = None
    if before_BKNHP is not None or dfinal_BNHP is not None:
        dafter_BKNHP = x_BLHP.new_empty(batch, n_chunks, d_state, n_heads, head_dim)
        if dfinal_BNHP is None:
            dafter_BKNHP[:, -1].zero_()
        else:
            dafter_BKNHP[:, -1].copy_(dfinal_BNHP)
        dlast_BKH = torch.zeros_like(scales.carry_BKH)
        if before_BKNHP is not None:
            pre_BKNHP = scales.pre_BKH[:, :, None, :, None]
            carry_BKNHP = scales.carry_BKH[:, :, None, :, None]
            dC_kQN.baddbmm_(dout_kQW, (before_BKNHP * pre_BKNHP).reshape(-1, d_state, width).transpose(1, 2))
            dbefore_BKNHP = torch.bmm(C_kQN.transpose(1, 2), dout_kQW).view(dafter_BKNHP.shape).mul_(pre_BKNHP)
            for k in range(n_chunks - 1, 0, -1):
                torch.addcmul(dbefore_BKNHP[:, k], carry_BKNHP[:, k], dafter_BKNHP[:, k], out=dafter_BKNHP[:, k - 1])
            if initial_grad:
                dinitial_BNHP = torch.addcmul(dbefore_BKNHP[:, 0], carry_BKNHP[:, 0], dafter_BKNHP[:, 0])
            dlast_BKH[:, :-1] = (dafter_BKNHP[:, :-1] * before_BKNHP[:, 1:]).sum((2, 4))
        if dfinal_BNHP is not None:
            assert final_BNHP is not None
            dlast_BKH[:, -1] = (dfinal_BNHP * final_BNHP).sum((1, 3))
        dK_kNW = dafter_BKNHP.mul_(scales.post_BKH[:, :, None, :, None]).view(-1, d_state, width)
        dV_kQW = torch.bmm(B_kQN, dK_kNW) if dV_kQW is None else dV_kQW.baddbmm_(B_kQN, dK_kNW)
        dB_kQN.baddbmm_(V_kQW, dK_kNW.transpose(1, 2))

    # U = dt x, and V = in U: the factored form has all of dU in dV, and needs one pass less.
    if dU_BKQHP is None:
        assert dV_kQW is not None
        dx_BKQHP = dV_kQW.view(x_BKQHP.shape)
        ddt_BKQH = (x_BKQHP * dx_BKQHP).sum(-1).mul_(scales.in_BKQH)
        dx_BKQHP.mul_(in_dt_BKQH1)
    else:
        if dV_kQW is not None:
            dU_BKQHP.addcmul_(dV_kQW.view(x_BKQHP.shape), scales.in_BKQH.unsqueeze(-1))
        ddt_BKQH = (x_BKQHP * dU_BKQHP).sum(-1)
        dx_BKQHP = dU_BKQHP.mul_(dt_BKQH.unsqueeze(-1))
    dcum_BKQH = (dy_BKQHP * y_BKQHP).sum(-1).addcmul_(dt_BKQH, ddt_BKQH, value=-1)
    if dlast_BKH is not None:
        dcum_BKQH[:, :, -1] += dlast_BKH
    # Summed from the end, so that positions after the last one that matters get exactly zero.
    dlog_decay_BKQH = dcum_BKQH.flip(2).cumsum(2).flip(2)
    return (
        dx_BKQHP.view(x_BLHP.shape),
        ddt_BKQH.view(dt_BLH.shape),
        dlog_decay_BKQH.view(dt_BLH.shape),
        dB_kQN.view(B_BLN.shape),
        dC_kQN.view(C_BLN.shape),
        dinitial_BNHP,
        None,
        None,
    )


def _needs_exact(cum_BKQH: Tensor) -> bool:
    """Whether the factored form could overflow; on the meta device, where there are no values, no."""
    if cum_BKQH.is_meta or cum_BKQH.numel() == 0:
        return False
    return bool(cum_BKQH[:, :, -1].min() < LOG_DECAY_LIMIT)


class _Scales:
    """Exponentials of cum about two reference points, both cum_last / 2 in the factored form.

    The exact form, whose diagonal part does not use them, takes 0 and cum_last: no factor then exceeds 1.
    """

    def __init__(self, cum_BKQH: Tensor, exact: bool) -> None:
        last_BKH = cum_BKQH[:, :, -1]
        if exact:
            self.carry_BKH = last_BKH.exp()
            self.pre_BKH = self.post_BKH = torch.ones_like(last_BKH)
            self.out_BKQH = cum_BKQH.exp()
            self.in_BKQH = (last_BKH.unsqueeze(2) - cum_BKQH).exp_()
        else:
            middle_BKH = last_BKH * 0.5
            shifted_BKQH = cum_BKQH - middle_BKH.unsqueeze(2)
            self.pre_BKH = self.post_BKH = middle_BKH.exp_()
            self.carry_BKH = self.pre_BKH.square()
            self.out_BKQH = shifted_BKQH.exp()
            self.in_BKQH = shifted_BKQH.neg_().exp_()


def _decay_blocks(cum_BKQH: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """exp(cum_i - cum_j) for j <= i and zero above, a block of chunks at a time: (chunks, H, Q, Q)."""
    chunk_len, n_heads = cum_BKQH.shape[2:]
    cum_kHQ = cum_BKQH.flatten(0, 1).transpose(1, 2)
    future_QQ = torch.ones(chunk_len, chunk_len, dtype=torch.bool, device=cum_BKQH.device).triu_(1)
    step = max(1, _DECAY_BLOCK_ELEMENTS // (n_heads * chunk_len * chunk_len))
    for start in range(0, cum_kHQ.shape[0], step):
        block = slice(start, start + step)
        log_decay_kHQQ = cum_kHQ[block, :, :, None] - cum_kHQ[block, :, None, :]
        yield block, log_decay_kHQQ.masked_fill_(future_QQ, -torch.inf).exp_()


def _add_exact_diagonal(
    y_BKQHP: Tensor, x_BKQHP: Tensor, dt_BKQH: Tensor, cum_BKQH: Tensor, scores_kQQ: Tensor
) -> None:
    """Add to y what a chunk's own inputs contribute, with one decay matrix per head."""
    y_kHQP = y_BKQHP.flatten(0, 1).transpose(1, 2)
    U_kHQP = (x_BKQHP * dt_BKQH.unsqueeze(-1)).flatten(0, 1).transpose(1, 2)
    for block, decay_kHQQ in _decay_blocks(cum_BKQH):
        y_kHQP[block] += decay_kHQQ.mul_(scores_kQQ[block].unsqueeze(1)) @ U_kHQP[block]


def _exact_diagonal_grads(
    dy_BKQHP: Tensor, x_BKQHP: Tensor, dt_BKQH: Tensor, cum_BKQH: Tensor, scores_kQQ: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of U = dt x and of the scores C B^T through `_add_exact_diagonal`."""
    dy_kHQP = dy_BKQHP.flatten(0, 1).transpose(1, 2)
    U_kHQP = (x_BKQHP * dt_BKQH.unsqueeze(-1)).flatten(0, 1).transpose(1, 2)
    dU_BKQHP = torch.empty_like(x_BKQHP, memory_format=torch.contiguous_format)
    dU_kHQP = dU_BKQHP.flatten(0, 1).transpose(1, 2)
    dscores_kQQ = torch.empty_like(scores_kQQ)
    for block, decay_kHQQ in _decay_blocks(cum_BKQH):
        dscores_kQQ[block] = ((dy_kHQP[block] @ U_kHQP[block].transpose(2, 3)).mul_(decay_kHQQ)).sum(1)
        weights_kHQQ = decay_kHQQ.mul_(scores_kQQ[block].unsqueeze(1))
        dU_kHQP[block] = weights_kHQQ.transpose(2, 3) @ dy_kHQP[block]
    return dU_BKQHP, dscores_kQQ
