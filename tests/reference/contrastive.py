"""The contrastive loss and its gradients in dense NumPy float64, straight from the formula in docs/loss.md.

Used by tests/test_contrastive.py. Imports nothing of qpt; builds every N x (M + K) array that the real one avoids.
"""

import numpy as np


def contrastive(
    queries,  # [N, D]
    keys,  # [M, D]
    query_groups,  # [N]
    key_groups,  # [M]
    query_images=None,  # [N]
    key_images=None,  # [M]
    pool=None,  # [K, D]
    pool_groups=None,  # [K]
    pool_images=None,  # [K]
    temperature=0.2,
    same_image_weight=1.0,
    exclude_self=False,
    in_batch_negatives=True,
    query_severities=None,  # [N, S]
    key_severities=None,  # [M, S]
    severity_width=None,
):
    """Dict with loss, valid_rows, grad_queries [N, D], grad_keys [M, D], grad_temperature, positive and negative
    similarity (mean over rows of the mean over pairs)."""
    q, k = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    n, m = len(q), len(k)
    everything = k if pool is None else np.concatenate([k, np.asarray(pool, np.float64)])
    groups = np.asarray(key_groups) if pool is None else np.concatenate([key_groups, pool_groups])
    total = len(everything)

    def images_of(ids, count):
        return np.full(count, -1) if ids is None else np.asarray(ids)

    images = np.concatenate([images_of(key_images, m), images_of(pool_images, total - m)])
    rows = images_of(query_images, n)

    same_group = np.asarray(query_groups)[:, None] == groups[None]
    eligible = np.broadcast_to(groups >= 0, (n, total)).copy()
    in_batch = np.arange(total) < m
    if not in_batch_negatives:
        eligible &= ~in_batch[None] | same_group
    if exclude_self:
        eligible[np.arange(n), np.arange(n)] = False
    negatives = eligible & ~same_group
    same_image = (rows[:, None] == images[None]) & (rows[:, None] >= 0) & ~same_group
    if same_image_weight == 0:
        eligible &= ~same_image
        bias = np.zeros((n, total))
    else:
        bias = np.where(same_image, np.log(same_image_weight), 0.0)
    positive = eligible & same_group & (np.asarray(query_groups) >= 0)[:, None]
    weight = positive.astype(np.float64)  # of a pair in the mean of the positives
    if query_severities is not None:
        s, t = np.asarray(query_severities, np.float64), np.asarray(key_severities, np.float64)
        near = np.exp(-((s[:, None] - t[None]) ** 2).sum(2) / (2 * severity_width**2))
        weight[:, :m] = np.where(same_group[:, :m], weight[:, :m], near * eligible[:, :m])

    dots = q @ everything.T
    z = dots / temperature + bias
    out = {
        "loss": 0.0,
        "valid_rows": int(positive.any(1).sum()),
        "grad_queries": np.zeros_like(q),
        "grad_keys": np.zeros_like(k),
        "grad_temperature": 0.0,
    }
    scale = 1.0 / max(out["valid_rows"], 1)
    means = {"positive": [], "negative": []}
    for i in np.flatnonzero(positive.any(1)):
        e, share = np.flatnonzero(eligible[i]), weight[i] / weight[i].sum()
        highest = z[i, e].max()
        exponentials = np.exp(z[i, e] - highest)
        lse = highest + np.log(exponentials.sum())
        out["loss"] -= scale * (share @ dots[i] / temperature - lse)
        # d L / d (q_i.k_j / tau): softmax over the eligible, minus w_ij / W_i at the positives.
        slope = -share
        slope[e] += exponentials / exponentials.sum()
        slope *= scale
        out["grad_queries"][i] = slope @ everything / temperature
        out["grad_keys"] += np.outer(slope[:m], q[i]) / temperature
        out["grad_temperature"] -= slope @ dots[i] / temperature**2
        means["positive"].append(share @ dots[i])
        if negatives[i].any():
            means["negative"].append(dots[i, negatives[i]].mean())
    out["positive_similarity"] = np.mean(means["positive"]) if means["positive"] else 0.0
    out["negative_similarity"] = np.mean(means["negative"]) if means["negative"] else np.nan
    return out
