"""Dense factor, inverse and products by tiles, shared out among threads: the dense tail, and large supernodes.

Matrices are column-major, symmetric ones in their lower triangle; what lies above the diagonal of a square belongs to
somebody else (the dense tail keeps C there) and is not written to, hence syrk for tiles on the diagonal. Each tile is
one call to BLAS by one thread, and the tiles of a matrix depend on its size alone, so results do not depend on the
number of threads.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dsymm, dsyrk, dtrmm, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf, dtrtri


cdef enum:
    BLOCKS = 12      # tiles along a matrix: enough to share out, few enough to keep BLAS at its best
    MIN_BLOCK = 64
    MAX_BLOCK = 384


cdef inline Py_ssize_t tile_size(Py_ssize_t m) noexcept nogil:
    """Rows of a tile."""
    return max(MIN_BLOCK, min(MAX_BLOCK, m // BLOCKS // 16 * 16))


cdef inline int tiled_cholesky(double *a, Py_ssize_t rows, Py_ssize_t m, Py_ssize_t nb, int threads) noexcept nogil:
    """Lower Cholesky factor in place of the first m rows of a rows x m panel, which the rows below are divided by.

    Nonzero where it is not positive definite.
    """
    cdef Py_ssize_t k = 0, next_k, tile, tiles
    cdef int n, ld = <int>rows, info = 0
    cdef char uplo = b"L"
    while k < m:
        next_k = min(m, k + nb)
        n = <int>(next_k - k)
        dpotrf(&uplo, &n, a + k * rows + k, &ld, &info)
        if info != 0:
            return 1
        tiles = (rows - next_k + nb - 1) // nb
        for tile in prange(tiles, schedule="dynamic", chunksize=1, num_threads=threads):
            divide_tile(a + k * rows + k, rows, next_k - k, b"T", next_k - k + tile * nb, rows - k, nb)
        subtract_square(a + k * rows + next_k, rows, next_k - k, a + next_k * rows + next_k, rows, rows - next_k,
                        m - next_k, 1.0, nb, threads)
        k = next_k
    return 0


cdef inline void subtract_square(const double *l, Py_ssize_t ldl, Py_ssize_t w, double *c, Py_ssize_t ldc,
                                 Py_ssize_t rows, Py_ssize_t columns, double beta, Py_ssize_t nb,
                                 int threads) noexcept nogil:
    """First ``columns`` columns of C <- beta C - L L', L being rows x w."""
    cdef Py_ssize_t pair, tiles = (rows + nb - 1) // nb
    for pair in prange(tiles * (tiles + 1) // 2, schedule="dynamic", chunksize=1, num_threads=threads):
        subtract_tile(l, ldl, w, c, ldc, rows, columns, beta, nb, pair)


cdef inline void subtract_tile(const double *l, Py_ssize_t ldl, Py_ssize_t w, double *c, Py_ssize_t ldc,
                               Py_ssize_t n_rows, Py_ssize_t n_columns, double beta, Py_ssize_t nb,
                               Py_ssize_t pair) noexcept nogil:
    """Tile number ``pair`` of that, counted by rows of the triangle."""
    cdef char uplo = b"L", no = b"N", yes = b"T"
    cdef Py_ssize_t row = <Py_ssize_t>((sqrt(8.0 * pair + 1.0) - 1.0) / 2.0), column, i, j
    cdef int rows, columns, inner = <int>w, ld = <int>ldl, ld_c = <int>ldc
    cdef double minus = -1.0
    while row * (row + 1) // 2 > pair:  # the root may round either way
        row -= 1
    while (row + 1) * (row + 2) // 2 <= pair:
        row += 1
    column = pair - row * (row + 1) // 2
    i, j = row * nb, column * nb
    if j >= n_columns:
        return
    rows, columns = <int>min(nb, n_rows - i), <int>min(nb, n_columns - j)
    if row == column and rows == columns:
        dsyrk(&uplo, &no, &rows, &inner, &minus, <double*>l + i, &ld, &beta, c + j * ldc + i, &ld_c)
    else:
        dgemm(&no, &yes, &rows, &columns, &inner, &minus, <double*>l + i, &ld, <double*>l + j, &ld, &beta,
              c + j * ldc + i, &ld_c)


cdef inline void divide_tile(double *a, Py_ssize_t height, Py_ssize_t w, char trans, Py_ssize_t i, Py_ssize_t end,
                             Py_ssize_t nb) noexcept nogil:
    """Rows from i (at most nb, none from ``end``) of a panel times the inverse of its own factor, or its transpose."""
    cdef char side = b"R", uplo = b"L", diag = b"N"
    cdef int rows = <int>min(nb, end - i), columns = <int>w, ld = <int>height
    cdef double one = 1.0
    dtrsm(&side, &uplo, &trans, &diag, &rows, &columns, &one, a, &ld, a + i, &ld)


cdef inline void tiled_divide(double *a, Py_ssize_t height, Py_ssize_t w, Py_ssize_t nb, int threads) noexcept nogil:
    """Rows below the factor of a panel times its inverse."""
    cdef Py_ssize_t tile
    for tile in prange((height - w + nb - 1) // nb, schedule="dynamic", chunksize=1, num_threads=threads):
        divide_tile(a, height, w, b"N", w + tile * nb, height, nb)


cdef inline void tiled_symmetric(const double *s, Py_ssize_t r, const double *y, Py_ssize_t ldy, Py_ssize_t w,
                                 double *z, Py_ssize_t nb, int threads) noexcept nogil:
    """z (r x w) <- -S y for a symmetric r x r matrix."""
    cdef Py_ssize_t tile
    for tile in prange((r + nb - 1) // nb, schedule="dynamic", chunksize=1, num_threads=threads):
        symmetric_tile(s, r, y, ldy, w, z, tile * nb, nb)


cdef inline void symmetric_tile(const double *s, Py_ssize_t r, const double *y, Py_ssize_t ldy, Py_ssize_t w,
                                double *z, Py_ssize_t i, Py_ssize_t nb) noexcept nogil:
    """Rows from i of that: what lies left of the diagonal tile, the tile, and what lies below it, transposed."""
    cdef char side = b"L", uplo = b"L", no = b"N", yes = b"T"
    cdef int rows = <int>min(nb, r - i), left = <int>i, below = <int>max(0, r - i - nb)
    cdef int columns = <int>w, ld = <int>r, ld_y = <int>ldy
    cdef double minus = -1.0, one = 1.0, zero = 0.0
    dsymm(&side, &uplo, &rows, &columns, &minus, <double*>s + i * r + i, &ld, <double*>y + i, &ld_y, &zero, z + i, &ld)
    if left:
        dgemm(&no, &no, &rows, &columns, &left, &minus, <double*>s + i, &ld, <double*>y, &ld_y, &one, z + i, &ld)
    if below:
        dgemm(&yes, &no, &rows, &columns, &below, &minus, <double*>s + i * r + i + nb, &ld, <double*>y + i + nb, &ld_y,
              &one, z + i, &ld)


cdef inline int tiled_inverse(double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, int threads,
                              double *panel) noexcept nogil:
    """Lower triangle of (L L')^-1 in the place of L, m x m; nonzero where L is singular.

    W = L^-1 in place, then W'W, by products of triangles: BLAS's trmm is twice as fast as its trsm. ``panel`` is
    workspace of m * nb.
    """
    cdef Py_ssize_t tiles = (m + nb - 1) // nb, i, j, n
    cdef int failed = 0
    for i in prange(tiles, schedule="dynamic", chunksize=1, num_threads=threads):
        failed += invert_diagonal(a, lda, m, nb, i)
    if failed:
        return 1
    for j in range(tiles - 2, -1, -1):  # W from the last block column to the first
        for i in prange(j + 1, tiles, schedule="dynamic", chunksize=1, num_threads=threads):
            panel_tile(a, lda, m, nb, i, j, panel)
        for i in prange(tiles - 1, j, -1, schedule="dynamic", chunksize=1, num_threads=threads):
            inverse_tile(a, lda, m, nb, i, j, panel)
    for i in range(tiles):  # W'W by block rows; W_ii is needed by all of its row, so it is set aside
        n = min(nb, m - i * nb)
        for j in range(n):
            memset(panel + j * n, 0, j * sizeof(double))
            memcpy(panel + j * n + j, a + (i * nb + j) * lda + i * nb + j, (n - j) * sizeof(double))
        for j in prange(i + 1, schedule="dynamic", chunksize=1, num_threads=threads):
            product_tile(a, lda, m, nb, i, j, panel)
    return 0


cdef inline int invert_diagonal(double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t i) noexcept nogil:
    """W_ii = L_ii^-1; one where L_ii is singular."""
    cdef char uplo = b"L", diag = b"N"
    cdef int n = <int>min(nb, m - i * nb), ld = <int>lda, info = 0
    dtrtri(&uplo, &diag, &n, a + i * nb * lda + i * nb, &ld, &info)
    return 1 if info != 0 else 0


cdef inline void panel_tile(const double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t i, Py_ssize_t j,
                            double *panel) noexcept nogil:
    """P_i = -L_ij W_jj."""
    cdef char side = b"R", uplo = b"L", no = b"N"
    cdef Py_ssize_t c
    cdef int rows = <int>min(nb, m - i * nb), columns = <int>nb, ld = <int>lda, ld_p = <int>m
    cdef double minus = -1.0
    for c in range(nb):
        memcpy(panel + c * m + i * nb, a + (j * nb + c) * lda + i * nb, rows * sizeof(double))
    dtrmm(&side, &uplo, &no, &no, &rows, &columns, &minus, <double*>a + j * nb * lda + j * nb, &ld, panel + i * nb,
          &ld_p)


cdef inline void inverse_tile(double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t i, Py_ssize_t j,
                              double *panel) noexcept nogil:
    """W_ij = W_ii P_i + sum_{j < k < i} W_ik P_k."""
    cdef char side = b"L", uplo = b"L", no = b"N"
    cdef Py_ssize_t c, k = j + 1
    cdef int rows = <int>min(nb, m - i * nb), columns = <int>nb, inner = <int>((i - k) * nb)
    cdef int ld = <int>lda, ld_p = <int>m
    cdef double one = 1.0
    cdef double *out = a + j * nb * lda + i * nb
    for c in range(nb):
        memcpy(out + c * lda, panel + c * m + i * nb, rows * sizeof(double))
    dtrmm(&side, &uplo, &no, &no, &rows, &columns, &one, a + i * nb * lda + i * nb, &ld, out, &ld)
    if inner:
        dgemm(&no, &no, &rows, &columns, &inner, &one, a + k * nb * lda + i * nb, &ld, panel + k * nb, &ld_p, &one,
              out, &ld)


cdef inline void product_tile(double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t i, Py_ssize_t j,
                              double *w) noexcept nogil:
    """Tile (i, j), j <= i, of W'W: W_ii'W_ij + sum_{k > i} W_ki'W_kj, with W_ii in ``w``, zeros above its diagonal."""
    cdef char side = b"L", uplo = b"L", no = b"N", yes = b"T"
    cdef Py_ssize_t below = min(m, (i + 1) * nb)
    cdef int rows = <int>(below - i * nb), columns = <int>nb, inner = <int>(m - below), ld = <int>lda
    cdef double one = 1.0, zero = 0.0
    cdef double *left = a + i * nb * lda + below
    cdef double *out = a + j * nb * lda + i * nb
    if i == j:
        # not dlauum: its rounding depends on the threads that BLAS may use, whatever the size
        dsyrk(&uplo, &yes, &rows, &rows, &one, w, &rows, &zero, out, &ld)
        if inner:
            dsyrk(&uplo, &yes, &rows, &inner, &one, left, &ld, &one, out, &ld)
        return
    dtrmm(&side, &uplo, &yes, &no, &rows, &columns, &one, w, &rows, out, &ld)
    if inner:
        dgemm(&yes, &no, &rows, &columns, &inner, &one, left, &ld, a + j * nb * lda + below, &ld, &one, out, &ld)
