"""The part of CHOLMOD that is called, through the long-integer interface: symbolic, LGPL (Core, Cholesky, Partition).

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
        size_t n
        void *Perm

    int CHOLMOD_OK, CHOLMOD_OUT_OF_MEMORY, CHOLMOD_TOO_LARGE
    int CHOLMOD_SIMPLICIAL, CHOLMOD_NATURAL, CHOLMOD_GIVEN, CHOLMOD_AMD, CHOLMOD_METIS
    int CHOLMOD_LONG, CHOLMOD_PATTERN, CHOLMOD_DOUBLE

    int cholmod_l_start(cholmod_common *)
    int cholmod_l_finish(cholmod_common *)
    cholmod_factor *cholmod_l_analyze(cholmod_sparse *, cholmod_common *)
    int cholmod_l_analyze_ordering(cholmod_sparse *A, int ordering, void *perm, void *fset, size_t fsize, void *parent,
                                   void *post, void *col_count, void *first, void *level, cholmod_common *)
    int cholmod_l_free_factor(cholmod_factor **, cholmod_common *)
