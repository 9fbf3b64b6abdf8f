"""The part of CHOLMOD that is called: Core and Cholesky, both LGPL, through the long-integer interface."""

cdef extern from "cholmod.h" nogil:
    ctypedef struct cholmod_method_struct:
        int ordering

    ctypedef struct cholmod_common:
        int status
        int supernodal
        int final_asis
        int final_ll
        int final_pack
        int final_monotonic
        int nmethods
        int postorder
        int print_ "print"
        int try_catch
        int quick_return_if_not_posdef
        double grow0
        double fl
        double lnz
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
        size_t n, minor
        void *Perm
        void *ColCount
        size_t nzmax
        void *p
        void *i
        void *x
        void *nz
        int ordering, is_ll, is_super, is_monotonic, itype, xtype, dtype

    int CHOLMOD_OK, CHOLMOD_NOT_POSDEF, CHOLMOD_OUT_OF_MEMORY, CHOLMOD_TOO_LARGE
    int CHOLMOD_SIMPLICIAL, CHOLMOD_NATURAL, CHOLMOD_AMD, CHOLMOD_METIS
    int CHOLMOD_LONG, CHOLMOD_REAL, CHOLMOD_PATTERN, CHOLMOD_DOUBLE

    int cholmod_l_start(cholmod_common *)
    int cholmod_l_finish(cholmod_common *)
    cholmod_factor *cholmod_l_analyze(cholmod_sparse *, cholmod_common *)
    int cholmod_l_factorize(cholmod_sparse *, cholmod_factor *, cholmod_common *)
    int cholmod_l_free_factor(cholmod_factor **, cholmod_common *)
