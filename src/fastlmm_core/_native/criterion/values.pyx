"""The numbers of a model in a layout's order: what an evaluator reads, apart from where it reads it.

    blocks      A_i, diagonal blocks of the leading factor              (q, l, l)
    cells       its row blocks against the tail, strips (`_assemble`)   (l * nnz,)
    tail        the tail rows of Z'WZ (`_assemble`)                     (nnz,)
    dense_lead  Z'W[X y] of the leading factor                          (q * l, d)
    dense_tail  the same of the tail                                    (d, m)
    dense       [X y]'W[X y]                                            (d, d)

``total_weight`` is the sum of the weights that are in them: how large a level's block is on average. ``even`` says
that every entry of ``cells`` is one, which kernels use; it is decided where the values are made, and weighted ones
never are. ``version`` grows whenever the numbers change in place, so that an evaluator knows its factors to be of older
ones.
"""

import numpy as np

__all__ = ["Values"]


cdef class Values:
    """Arrays as above, kept and never written to here.

    Parameters
    ----------
    blocks, cells, tail, dense_lead, dense_tail, dense : arrays
    total_weight : float
    even : bool
    """

    def __init__(self, blocks, cells, tail, dense_lead, dense_tail, dense, double total_weight, bint even=False):
        self.blocks, self.cells, self.tail = blocks, cells, tail
        self.dense_lead, self.dense_tail, self.dense = dense_lead, dense_tail, dense
        self.a, self.val, self.tail_val = blocks, cells, tail
        self.zd, self.zd_tail, self.dtd = dense_lead, dense_tail, dense
        self.total_weight, self.even = total_weight, even
        self.version = 0

    def recombined(self, to):
        """The same model with other dense columns: [X y] ``to``, (d, k)."""
        if self.blocks is None:
            raise ValueError("these Values cannot be used: their constructor did not come to its end")
        m = self.zd_tail.shape[1]
        tail = np.ascontiguousarray(to.T @ self.dense_tail) if m else np.empty((to.shape[1], 0))
        return Values(self.blocks, self.cells, self.tail, np.ascontiguousarray(self.dense_lead @ to), tail,
                      np.ascontiguousarray(to.T @ self.dense @ to), self.total_weight, self.even)

    def __reduce__(self):
        return Values, (self.blocks, self.cells, self.tail, self.dense_lead, self.dense_tail, self.dense,
                        self.total_weight, self.even)
