"""Dense factor, inverse and products by tiles, shared out among threads: the dense tail, and large supernodes.

Matrices are column-major, symmetric ones in their lower triangle. Each tile is one call to BLAS by one thread, and the
tiles of a matrix depend on its size alone, so results do not depend on the number of threads.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dsymm, dsyrk, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf


cdef enum:
    BLOCKS = 12      # tiles along a matrix: enough to share out, few enough to keep BLAS at its best
    MIN_BLOCK = 64
    MAX_BLOCK = 256


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


cdef inline void tiled_inverse(double *a, Py_ssize_t ld, Py_ssize_t m, Py_ssize_t nb, int threads,
                               double *panels) noexcept nogil:
    """Lower triangle of the inverse in place of an m x m factor; ``panels`` is workspace of threads * m * nb."""
    cdef Py_ssize_t blocks = (m + nb - 1) // nb, first = 0, b, last
    while first < blocks:
        last = min(blocks, first + threads)
        for b in prange(first, last, schedule="static", chunksize=1, num_threads=threads):
            inverse_columns(a, ld, m, nb, b, panels + (b - first) * m * nb)
        for b in prange(first, last, schedule="static", chunksize=1, num_threads=threads):
            store_columns(a, ld, m, nb, b, panels + (b - first) * m * nb)
        first = last


cdef inline void inverse_columns(const double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t b,
                                 double *panel) noexcept nogil:
    """Rows b * nb and below of block column b of the inverse into ``panel``, columns m apart."""
    cdef char side = b"L", uplo = b"L", no = b"N", yes = b"T"
    cdef Py_ssize_t j = b * nb, c
    cdef int rows = <int>(m - j), columns = <int>min(nb, m - j), ld = <int>m, ld_a = <int>lda
    cdef double one = 1.0
    for c in range(columns):
        memset(panel + c * m, 0, rows * sizeof(double))
        panel[c * m + c] = 1.0
    dtrsm(&side, &uplo, &no, &no, &rows, &columns, &one, <double*>a + j * lda + j, &ld_a, panel, &ld)
    dtrsm(&side, &uplo, &yes, &no, &rows, &columns, &one, <double*>a + j * lda + j, &ld_a, panel, &ld)


cdef inline void store_columns(double *a, Py_ssize_t lda, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t b,
                               const double *panel) noexcept nogil:
    """The lower part of a panel over the factor's columns."""
    cdef Py_ssize_t j = b * nb, c
    for c in range(min(nb, m - j)):
        memcpy(a + (j + c) * lda + j + c, panel + c * m + c, (m - j - c) * sizeof(double))
