"""Covariance structures of random effects: correlations by a rule, known relationships between levels.

`shapes` and `distance` are the rules, `covariances` their names among the columns of a term; `structured` fits them
above the ordinary evaluator. `pedigree` and `equations` are for relationships and sparse fixed effects: one sparse
matrix of mixed-model equations. Covariances among the rows of a subject are in `core.residuals`.
"""
