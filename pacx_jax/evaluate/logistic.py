"""Logistic regressions with an L2 penalty, many at once."""

from __future__ import annotations

import numpy as np

from pacx_jax.objectives.scores import sigmoid


class Solver:
    """Many L2 logistic regressions on one design matrix, solved together.

    Accelerated gradient descent (Nesterov, with restarts) preconditioned by Böhning's
    bound: the Hessian never exceeds X'X / 4 + penalty, which is diagonal in the basis
    of X's singular vectors and, as X is centred, leaves the intercept apart. So every
    label, fold and penalty shares one SVD and each iteration is two matrix products.
    """

    def __init__(self, x: np.ndarray):
        """Take the (n, d) standardised features."""
        self.x = x
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        keep = s > 1e-10 * max(s.max(initial=0.0), 1e-300)
        self.scores = np.ascontiguousarray(u[:, keep] * s[keep])  # (n, k)
        self.basis = vt[keep].T  # (d, k)
        self.curvature = s[keep] ** 2 / 4

    def solve(
        self,
        target: np.ndarray,
        rows: np.ndarray,
        penalty: np.ndarray,
        tolerance: float,
        max_steps: int = 2000,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Minimise sum(rows * log loss) + penalty / 2 * |w|^2 for each problem.

        Args:
          target: (n, q) 0 or 1.
          rows: (n, q) 1 where a study takes part.
          penalty: (q,) 1 / C.
          tolerance: on the preconditioned step's norm, relative to 1 + |w|.
          max_steps: stop there in any case.

        Returns:
          ((d, q) weights, (q,) intercepts).
        """
        k, q = len(self.curvature), target.shape[1]
        step = np.empty((k + 1, q))
        step[:k] = 1 / (self.curvature[:, None] + penalty)
        step[k] = 4 / len(target)
        rate = (rows * target).sum(axis=0) / rows.sum(axis=0)
        best = np.zeros((k + 1, q))
        best[k] = np.log(rate / (1 - rate))
        active = np.arange(q)
        w = ahead = best.copy()
        momentum = np.ones(q)
        for _ in range(max_steps):
            residual = sigmoid(self.scores @ ahead[:k] + ahead[k]) - target[:, active]
            residual *= rows[:, active]
            gradient = np.empty_like(ahead)
            gradient[:k] = self.scores.T @ residual + penalty[active] * ahead[:k]
            gradient[k] = residual.sum(axis=0)
            moved = ahead - step[:, active] * gradient
            change = moved - w
            # Restart where momentum points uphill (O'Donoghue and Candes 2015).
            uphill = np.sum(gradient * change, axis=0) > 0
            momentum = np.where(uphill, 1.0, momentum)
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead_next = moved + (momentum - 1) / following * change
            residual_step = np.linalg.norm(moved - ahead, axis=0)
            best[:, active] = moved
            going = residual_step > tolerance * (1 + np.linalg.norm(moved, axis=0))
            if not going.any():
                break
            active, w, momentum = active[going], moved[:, going], following[going]
            ahead = ahead_next[:, going]
        return self.basis @ best[:k], best[k]
