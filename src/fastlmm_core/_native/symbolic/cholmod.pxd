"""The part of CHOLMOD that is called, through the long-integer interface: LGPL (Core, Cholesky, Partition).

Index arrays are passed as ``void *``: CHOLMOD's 64-bit integer is ``long`` on some systems, ``int64_t`` on others.
"""

cdef extern from "cholmod.h" nogil:
    ctypedef struct cholmod_method_struct:
        int ordering

    ctypedef struct cholmod_common:
        int status
        int supernodal
        int nmethods
        int postorder
        int final_ll
        int print_ "print"
        cholmod_method_struct method[10]

    ctypedef struct cholmod_sparse:
        size_t nrow, ncol, nzmax
        void *p
        void *i
        void *nz
        void *x
        void *z
        int stype, itype, xtype, dtype, sorted, packed

    ctypedef struct cholmod_factor:
        size_t n, minor, nzmax
        void *Perm
        void *p
        void *i
        void *x
        void *nz

    ctypedef struct cholmod_dense:
        size_t nrow, ncol, nzmax, d
        void *x
        void *z
        int xtype, dtype

    int CHOLMOD_OK, CHOLMOD_OUT_OF_MEMORY, CHOLMOD_TOO_LARGE
    int CHOLMOD_SIMPLICIAL, CHOLMOD_NATURAL, CHOLMOD_GIVEN, CHOLMOD_AMD, CHOLMOD_METIS
    int CHOLMOD_LONG, CHOLMOD_PATTERN, CHOLMOD_REAL, CHOLMOD_DOUBLE
    int CHOLMOD_L, CHOLMOD_Lt

    int cholmod_l_start(cholmod_common *)
    int cholmod_l_finish(cholmod_common *)
    cholmod_factor *cholmod_l_analyze(cholmod_sparse *, cholmod_common *)
    int cholmod_l_analyze_ordering(cholmod_sparse *A, int ordering, void *perm, void *fset, size_t fsize, void *parent,
                                   void *post, void *col_count, void *first, void *level, cholmod_common *)
    int cholmod_l_factorize(cholmod_sparse *, cholmod_factor *, cholmod_common *)
    int cholmod_l_solve2(int system, cholmod_factor *, cholmod_dense *B, cholmod_sparse *Bset, cholmod_dense **X,
                         cholmod_sparse **Xset, cholmod_dense **Y, cholmod_dense **E, cholmod_common *)
    int cholmod_l_free_dense(cholmod_dense **, cholmod_common *)
    int cholmod_l_free_factor(cholmod_factor **, cholmod_common *)
