"""Cross-entropy, divergence and gradient of rows of logits, each row by one program of a Triton kernel.

A row is read once for the norms of its softmaxes (Milakov and Gimelshein 2018, "Online normalizer calculation for
softmax", arXiv 1805.02867), once more where the gradient of a divergence wants a sum over the row first, and once for
the gradient, which is written over the logits. What is computed of it is said in :mod:`ted_ds.numerics.divergences`.

Upper-case arguments are known when a kernel is compiled. Functions of ``libdevice`` are not used: Triton's interpreter,
which the tests run in, has none.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports] - an extra
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def losses_kernel(
    student,
    teacher,
    labels,
    of_task,
    of_divergence,
    values,
    student_ids,
    teacher_ids,
    shared_ids,
    DIVERGENCE: tl.constexpr,
    LOG_SHARE: tl.constexpr,
    LOG_REST: tl.constexpr,
    COOLING: tl.constexpr,
    DIVISOR: tl.constexpr,
    BOUND: tl.constexpr,
    TEACHER_DIVISOR: tl.constexpr,
    TEACHER_BOUND: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    WITH_TEACHER_TASK: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of one row, and their gradient in the place of the student's products.

    Args:
        student: Products of its head, ``[rows, student_ids]``.
        teacher: The same, ``[rows, teacher_ids]``; not read where there is no ``DIVERGENCE``.
        labels: ``[rows]``, 0 where there is none.
        of_task: What the gradient of the cross-entropy is multiplied by, ``[rows]``.
        of_divergence: The same of the divergence, over the temperature.
        values: Gets ``[rows, 3]``: the cross-entropy, the divergence, the teacher's own cross-entropy.
        student_ids: How many the student has.
        teacher_ids: How many the teacher has.
        shared_ids: How many of the first are compared.
        DIVERGENCE: Its name in a recipe; "" for none.
        LOG_SHARE: Of the share that is its parameter, the log.
        LOG_REST: Of 1 less the share.
        COOLING: 1 over the temperature.
        DIVISOR: Of the student's :class:`~ted_ds.numerics.logits.LogitRule`.
        BOUND: The same; 0 for none.
        TEACHER_DIVISOR: Of the teacher's.
        TEACHER_BOUND: The same.
        WITH_GRADIENT: Else the products stay as they are.
        WITH_TEACHER_TASK: Whether the teacher's own cross-entropy is wanted.
        EXACT: What is computed in.
        BLOCK: Ids at a time, a power of 2.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * student_ids
    values += row * 3
    label = tl.load(labels + row)
    of_label = _logits(student, label, student_ids, DIVISOR, BOUND, EXACT)
    largest, total, soft_largest, soft_total = _nothing(EXACT)
    for start in range(0, student_ids, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = _logits(student, ids, student_ids, DIVISOR, BOUND, EXACT)
        largest, total = _add(largest, total, tl.where(ids < student_ids, logits, -float("inf")))
        if DIVERGENCE != "":
            softened = tl.where(ids < shared_ids, logits * COOLING, -float("inf"))
            soft_largest, soft_total = _add(soft_largest, soft_total, softened)
    log_norm = largest + tl.log(total)
    tl.store(values, log_norm - of_label)
    log_q_norm, log_p_norm, mean = soft_largest, soft_largest, -tl.full((), 1, EXACT)
    if DIVERGENCE != "":
        teacher += row * teacher_ids
        log_q_norm = soft_largest + tl.log(soft_total)
        largest, total, soft_largest, soft_total = _nothing(EXACT)
        for start in range(0, teacher_ids if WITH_TEACHER_TASK else shared_ids, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            logits = _logits(teacher, ids, teacher_ids, TEACHER_DIVISOR, TEACHER_BOUND, EXACT)
            softened = tl.where(ids < shared_ids, logits * COOLING, -float("inf"))
            soft_largest, soft_total = _add(soft_largest, soft_total, softened)
            if WITH_TEACHER_TASK:
                largest, total = _add(largest, total, tl.where(ids < teacher_ids, logits, -float("inf")))
        log_p_norm = soft_largest + tl.log(soft_total)
        if WITH_TEACHER_TASK:
            of_label = _logits(teacher, label, teacher_ids, TEACHER_DIVISOR, TEACHER_BOUND, EXACT)
            tl.store(values + 2, largest + tl.log(total) - of_label)
    # of the KL the sum over q g is -1 whatever is predicted, and its value is found along with the gradient
    VALUE_FIRST: tl.constexpr = DIVERGENCE != "" and (DIVERGENCE != "kl" or not WITH_GRADIENT)
    each = tl.zeros((BLOCK,), EXACT)
    if VALUE_FIRST:
        slopes = tl.zeros((BLOCK,), EXACT)
        for start in range(0, shared_ids, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            is_shared = ids < shared_ids
            logits = _logits(student, ids, shared_ids, DIVISOR, BOUND, EXACT)
            log_q = tl.where(is_shared, logits * COOLING - log_q_norm, 0)
            logits = _logits(teacher, ids, shared_ids, TEACHER_DIVISOR, TEACHER_BOUND, EXACT)
            log_p = tl.where(is_shared, logits * COOLING - log_p_norm, 0)
            value, slope = _compare(log_p, log_q, DIVERGENCE, LOG_SHARE, LOG_REST)
            each += tl.where(is_shared, value, 0)
            slopes += tl.where(is_shared, slope, 0)
        mean = tl.sum(slopes, 0)
    if WITH_GRADIENT:
        by_task = tl.load(of_task + row)
        for start in range(0, student_ids, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            logits = _logits(student, ids, student_ids, DIVISOR, BOUND, EXACT)
            gradient = by_task * (tl.exp(logits - log_norm) - tl.where(ids == label, 1.0, 0.0))
            if DIVERGENCE != "":
                is_shared = ids < shared_ids
                log_q = tl.where(is_shared, logits * COOLING - log_q_norm, 0)
                theirs = _logits(teacher, ids, shared_ids, TEACHER_DIVISOR, TEACHER_BOUND, EXACT)
                log_p = tl.where(is_shared, theirs * COOLING - log_p_norm, 0)
                value, slope = _compare(log_p, log_q, DIVERGENCE, LOG_SHARE, LOG_REST)
                if not VALUE_FIRST:
                    each += tl.where(is_shared, value, 0)
                by_divergence = tl.load(of_divergence + row) * (slope - tl.exp(log_q) * mean)
                gradient += tl.where(is_shared, by_divergence, 0)
            gradient /= DIVISOR
            if BOUND != 0:
                gradient *= 1 - (logits / BOUND) * (logits / BOUND)
            tl.store(student + ids, gradient.to(student.dtype.element_ty), mask=ids < student_ids)
    if DIVERGENCE != "":
        tl.store(values + 1, tl.sum(each, 0))


@triton.jit
def _nothing(EXACT: tl.constexpr):
    """The norms of no logits; the least number stands for minus infinity, from which nothing can be taken."""
    least = tl.full((), -1e38, EXACT)
    none = tl.full((), 0, EXACT)
    return least, none, least, none


@triton.jit
def _add(largest, total, logits):
    """The largest of logits, and the sum of e to each of them less that, with some more of them."""
    new = tl.maximum(largest, tl.max(logits, 0))
    return new, total * tl.exp(largest - new) + tl.sum(tl.exp(logits - new), 0)


@triton.jit
def _logits(products, ids, num_ids, DIVISOR: tl.constexpr, BOUND: tl.constexpr, EXACT: tl.constexpr):
    """By the rule of a model; 0 beyond its ids."""
    logits = tl.load(products + ids, mask=ids < num_ids, other=0).to(EXACT) / DIVISOR
    if BOUND != 0:
        power = tl.exp(-2 * tl.abs(logits / BOUND))
        tanh = (1 - power) / (1 + power)
        logits = tl.where(logits < 0, -tanh, tanh) * BOUND
    return logits


@triton.jit
def _compare(log_p, log_q, DIVERGENCE: tl.constexpr, LOG_SHARE: tl.constexpr, LOG_REST: tl.constexpr):
    """What each id adds to the divergence, and q times the slope by q."""
    p, q = tl.exp(log_p), tl.exp(log_q)
    if DIVERGENCE == "kl":
        value, slope = p * (log_p - log_q), -p
    elif DIVERGENCE == "reverse_kl":
        value = q * (log_q - log_p)
        slope = value
    elif DIVERGENCE == "tv":
        value = tl.abs(p - q) / 2
        slope = q * tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0))
    elif DIVERGENCE == "jsd":
        of_p, of_q = _logs_beside_mixture(log_p - log_q, LOG_SHARE, LOG_REST)
        slope = tl.exp(log_q + LOG_REST) * of_q
        value = tl.exp(log_p + LOG_SHARE) * of_p + slope
    elif DIVERGENCE == "skew_kl":
        of_p, of_q = _logs_beside_mixture(log_p - log_q, LOG_SHARE, LOG_REST)
        value, slope = p * of_p, -p * tl.exp(of_q + LOG_REST)
    else:
        tl.static_assert(DIVERGENCE == "skew_reverse_kl")
        of_q, _ = _logs_beside_mixture(log_q - log_p, LOG_SHARE, LOG_REST)
        value, slope = q * of_q, q * (of_q - tl.exp(of_q + LOG_SHARE))
    return value, slope


@triton.jit
def _logs_beside_mixture(difference, LOG_SHARE: tl.constexpr, LOG_REST: tl.constexpr):
    """As :func:`ted_ds.numerics.divergences.logs_beside_mixture`, of which the share's logs are given."""
    x_is_larger = difference > 0
    gap = -tl.abs(difference)
    log_share, log_rest = tl.full((), LOG_SHARE, difference.dtype), tl.full((), LOG_REST, difference.dtype)
    of_larger = tl.where(x_is_larger, log_share, log_rest)
    of_smaller = tl.where(x_is_larger, log_rest, log_share)
    near = tl.exp(of_smaller) * _expm1(gap)
    apart = of_smaller + gap - of_larger
    far = of_larger + tl.maximum(apart, 0.0) + _log1p(tl.exp(-tl.abs(apart)))
    mixture = tl.where(near > -0.5, _log1p(tl.maximum(near, -0.5)), far)
    return tl.where(x_is_larger, 0.0, difference) - mixture, tl.where(x_is_larger, -difference, 0.0) - mixture


@triton.jit
def _log1p(x):
    """``log(1 + x)`` of what is above -1, to the last bits (Kahan; Higham 2002, "Accuracy and Stability", 1.14.1)."""
    sum_ = 1 + x
    is_lost = sum_ == 1
    return tl.where(is_lost, x, tl.log(sum_) * (x / tl.where(is_lost, 1.0, sum_ - 1)))


@triton.jit
def _expm1(x):
    """``exp(x) - 1`` of what is at most 0, to the last bits (the same)."""
    power = tl.exp(x)
    at_an_end = (power == 1) | (power < 1e-8)
    inside = tl.where(at_an_end, 0.5, power)
    return tl.where(at_an_end, tl.where(power == 1, x, power - 1), (inside - 1) * (x / tl.log(inside)))
